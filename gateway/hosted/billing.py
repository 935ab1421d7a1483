"""Billing while it is switched off: the endpoints are there, and say so.

At start the environment is checked for what Stripe needs; without it casts go on and billing answers 503. Stripe
tries a webhook again for days, so one that arrives in the meantime is not lost.
"""

from aiohttp import web

from gateway.hosted.answers import RefusedError


async def refuse_billing(_: web.Request) -> web.Response:
    """503 ``billing_disabled``, whoever asks: nobody can be charged here, so there is nobody to identify."""
    raise RefusedError(503, "billing_disabled", "Billing is switched off on this gateway; nothing was charged.")
