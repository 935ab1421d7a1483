"""The gateway's own endpoints: an aiohttp application that the relay reaches like any other upstream."""
