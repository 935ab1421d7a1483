"""``python -m stripe_stub``: serve until SIGTERM or SIGINT; one line on standard output once it is ready."""

import argparse
import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import uvloop
from aiohttp import web

from stripe_stub.app import Settings, build_app
from stripe_stub.errors import ApiError
from stripe_stub.prices import SeededPrice
from stripe_stub.switches import Endpoint, Switches
from stripe_stub.versions import NEWEST, checked_version

KEEPALIVE_TIMEOUT_S = 75.0
SHUTDOWN_TIMEOUT_S = 2.0  # for the answers under way; then their connections are closed

_Parsed = TypeVar("_Parsed")


def main() -> None:
    logging.basicConfig(level=logging.WARNING, format="stripe_stub: %(levelname)s %(message)s")
    arguments = _arguments()
    secrets = tuple(arguments.webhook_secret)
    settings = Settings(
        endpoints=tuple(
            Endpoint(id=f"we_{number}", url=url, secrets=secrets, api_version=arguments.webhook_api_version)
            for number, url in enumerate(arguments.webhook_url, 1)
        ),
        prices=tuple(arguments.price),
        switches=Switches(retry_first_s=arguments.retry_first_s),
        api_version=arguments.api_version,
        secret_key=arguments.secret_key or None,
        public_url=arguments.public_url,
        data=arguments.data,
    )
    try:
        uvloop.run(_serve(arguments.host, arguments.port, settings))
    except (OSError, ValueError) as error:
        sys.exit(f"stripe_stub: cannot start: {error}")


async def _serve(host: str, port: int, settings: Settings) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    runner = web.AppRunner(
        build_app(settings),
        access_log=None,
        keepalive_timeout=KEEPALIVE_TIMEOUT_S,
        shutdown_timeout=SHUTDOWN_TIMEOUT_S,
        handler_cancellation=False,  # as Stripe: a request is carried out even if nobody waits for it any more
    )
    try:
        await runner.setup()
        await web.TCPSite(runner, host, port).start()
        address, bound_port = runner.addresses[0][:2]
        sys.stdout.write(f"stripe_stub ready on http://{address}:{bound_port}\n")
        sys.stdout.flush()
        await stop.wait()
    finally:
        await runner.cleanup()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m stripe_stub", description="A stand-in for Stripe.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=_port, default=12111, help="0 takes a free one and tells it")
    parser.add_argument(
        "--webhook-url",
        type=_checked(_address),
        action="append",
        default=[],
        help="where events go; may be given again",
    )
    parser.add_argument(
        "--webhook-secret",
        action="append",
        default=[],
        metavar="whsec_…",
        help="what signs them; given again, each makes a signature; default: $STRIPE_WEBHOOK_SECRET",
    )
    parser.add_argument(
        "--webhook-api-version", type=_checked(checked_version), default=NEWEST, help="form of webhooks"
    )
    parser.add_argument("--api-version", type=_checked(checked_version), default=NEWEST, help="the account's version")
    parser.add_argument(
        "--price",
        type=_checked(SeededPrice.parse),
        action="append",
        default=[],
        metavar="ID=CENTS[:NAME]",
        help="a monthly price that is there from the start; may be given again",
    )
    parser.add_argument("--secret-key", help="the only API key taken; default: any sk_…")
    parser.add_argument(
        "--public-url", type=_checked(_address), help="of the hosted pages, where a browser sees another"
    )
    parser.add_argument(
        "--retry-first-s", type=float, default=Switches().retry_first_s, help="until the second attempt"
    )
    parser.add_argument("--data", type=Path, help="a file that keeps all over a restart")
    arguments = parser.parse_args()
    if not arguments.webhook_secret:
        secrets = os.environ.get("STRIPE_WEBHOOK_SECRET", "").split(",")  # several while one takes over from another
        arguments.webhook_secret = [secret.strip() for secret in secrets if secret.strip()]
    if arguments.webhook_url and not arguments.webhook_secret:
        parser.error("--webhook-url needs --webhook-secret or STRIPE_WEBHOOK_SECRET")
    return arguments


def _checked(parse: Callable[[str], _Parsed]) -> Callable[[str], _Parsed]:
    """The sentence of the refusal, as argparse shows it."""

    def checked(text: str) -> _Parsed:
        try:
            return parse(text)
        except (ApiError, ValueError) as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return checked


def _address(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError(f"{text!r} is not an http address")
    return text.rstrip("/")


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) < 65_536):
        raise argparse.ArgumentTypeError(f"{text!r} is not a port number")
    return int(text)


if __name__ == "__main__":
    main()
