"""Stand-ins for Stripe to test, and the real library as their client."""

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import stripe
from aiohttp import ClientSession, web

from stripe_stub.app import Settings, build_app
from stripe_stub.prices import SeededPrice
from stripe_stub.switches import Endpoint, Switches

ROOT = Path(__file__).parents[2]
STOP_TIMEOUT_S = 10.0
KEY = "sk_test_of_a_stand_in"
SECRET = "whsec_of_a_stand_in"
PRICES = (
    SeededPrice(id="price_pro", amount_cents=4900, name="Pro"),
    SeededPrice(id="price_team", amount_cents=9900, name="Team"),
)
SETTINGS = Settings(prices=PRICES, switches=Switches(retry_first_s=0.02, attempts_max=5))


@dataclass(frozen=True, kw_only=True, slots=True)
class RunningStub:
    base_url: str
    session: ClientSession

    async def control(self, method: str, path: str, body: object = None) -> Any:
        """The JSON that ``/_stub/…`` answers; anything but 200 fails the test."""
        async with self.session.request(method, f"{self.base_url}/_stub/{path}", json=body) as answer:
            assert answer.status == 200, await answer.text()
            return await answer.json()

    async def idle(self) -> None:
        assert await self.control("POST", "delivery/wait") == {"idle": True}

    async def objects(self, kind: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = (await self.control("GET", f"objects/{kind}"))["data"]
        return found


def endpoint(url: str, **more: Any) -> Endpoint:
    return Endpoint(**{"id": "we_1", "url": url, "secrets": (SECRET,), **more})


@asynccontextmanager
async def stub_here(settings: Settings = SETTINGS, **more: Any) -> AsyncIterator[RunningStub]:
    """A stub on the running event loop: quick to start, its coverage and exceptions are the test's."""
    app = build_app(replace(settings, **more))
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1, handler_cancellation=False)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        async with ClientSession() as session:
            yield RunningStub(base_url=f"http://127.0.0.1:{runner.addresses[0][1]}", session=session)
    finally:
        await runner.cleanup()


@asynccontextmanager
async def client_of(
    base_url: str, *, key: str = KEY, version: str | None = None, retries: int = 0, timeout_s: float = 10.0
) -> AsyncIterator[stripe.StripeClient]:
    """The real library, as the gateway uses it: httpx, explicit time-out and retries."""
    stripe.enable_telemetry = False
    http = stripe.HTTPXClient(timeout=timeout_s)
    try:
        yield stripe.StripeClient(
            key,
            base_addresses={"api": base_url},
            http_client=http,
            max_network_retries=retries,
            stripe_version=version,
        )
    finally:
        await http.close_async()  # type: ignore[no-untyped-call]  # stripe 16.1


def start_stub(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "stripe_stub", "--port", "0", *arguments]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def base_url_when_ready(process: subprocess.Popen[str]) -> str:
    """Blocks until the stub says that it is ready, or has ended (it says why on standard error)."""
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("stripe_stub ready on "), f"the stub did not start: {line!r}"
    return line.split()[-1]


def stop_stub(process: subprocess.Popen[str]) -> int:
    process.terminate()
    try:
        return process.wait(STOP_TIMEOUT_S)
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


@asynccontextmanager
async def stub_process(*arguments: str) -> AsyncIterator[str]:
    """``python -m stripe_stub`` on a free port; its address."""
    process = start_stub(*arguments)
    try:
        yield await asyncio.to_thread(base_url_when_ready, process)
    finally:
        with contextlib.suppress(subprocess.TimeoutExpired):
            await asyncio.to_thread(stop_stub, process)
