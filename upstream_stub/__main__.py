"""``python -m upstream_stub``: serve until SIGTERM or SIGINT; one line on standard output once it is ready."""

import argparse
import asyncio
import logging
import os
import signal
import sys

import asyncpg
import uvloop
from aiohttp import web

from upstream_stub.app import Settings, build_app

CONNECTIONS_WAITING_MAX = 2048  # hundreds of clients connect at once in tests and benchmarks
KEEPALIVE_TIMEOUT_S = 75.0
SHUTDOWN_TIMEOUT_S = 2.0  # for the answers under way; then their connections are closed


def main() -> None:
    logging.basicConfig(level=logging.WARNING, format="upstream_stub: %(levelname)s %(message)s")
    arguments = _arguments()
    settings = Settings(
        database_url=arguments.database_url,
        redis_url=arguments.redis_url,
        rate_limit_per_minute=arguments.rate_limit_per_minute,
    )
    try:
        uvloop.run(_serve(arguments.host, arguments.port, settings))
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, ValueError) as error:
        sys.exit(f"upstream_stub: cannot start: {error}")


async def _serve(host: str, port: int, settings: Settings) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    runner = web.AppRunner(
        await build_app(settings),
        access_log=None,
        keepalive_timeout=KEEPALIVE_TIMEOUT_S,
        shutdown_timeout=SHUTDOWN_TIMEOUT_S,
        handler_cancellation=False,  # as Phase 1: a cast is finished even if nobody waits for it any more
    )
    try:
        await runner.setup()
        await web.TCPSite(runner, host, port, backlog=CONNECTIONS_WAITING_MAX).start()
        address, bound_port = runner.addresses[0][:2]
        sys.stdout.write(f"upstream_stub ready on http://{address}:{bound_port}\n")
        sys.stdout.flush()
        await stop.wait()
    finally:
        await runner.cleanup()


def _arguments() -> argparse.Namespace:
    environment = os.environ
    parser = argparse.ArgumentParser(prog="python -m upstream_stub", description="A stand-in for Phase 1.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=_port, default=8081, help="0 takes a free one and tells it")
    parser.add_argument("--database-url", default=environment.get("DATABASE_URL"), help="default: $DATABASE_URL")
    parser.add_argument("--redis-url", default=environment.get("REDIS_URL"), help="default: $REDIS_URL")
    parser.add_argument(
        "--rate-limit-per-minute",
        type=_count,
        # A text: argparse passes it through the type, so that a bad variable is refused like a bad argument.
        default=environment.get("STUB_RATE_LIMIT_PER_MINUTE", "60"),
        help="casts a minute and user, 0 is off; default: $STUB_RATE_LIMIT_PER_MINUTE, else 60",
    )
    arguments = parser.parse_args()
    for name in ("database_url", "redis_url"):
        if not getattr(arguments, name):
            parser.error(f"--{name.replace('_', '-')} or {name.upper()} is needed")
    return arguments


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) < 65_536):
        raise argparse.ArgumentTypeError(f"{text!r} is not a port number")
    return int(text)


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 on")
    return int(text)


if __name__ == "__main__":
    main()
