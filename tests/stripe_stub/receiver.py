"""A place that webhooks are sent to: keeps what comes, and answers as it is told."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web


@dataclass(kw_only=True, slots=True)
class Webhook:
    body: bytes
    signature: str
    headers: dict[str, str]

    @property
    def event(self) -> dict[str, Any]:
        parsed: dict[str, Any] = json.loads(self.body)
        return parsed


@dataclass(kw_only=True, slots=True)
class Receiver:
    url: str = ""
    got: list[Webhook] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)  # of the next answers; then 200
    most_at_once: int = 0
    hold: asyncio.Barrier | None = None  # answers wait until so many are there
    _now: int = 0

    @property
    def types(self) -> list[str]:
        return [webhook.event["type"] for webhook in self.got]

    @property
    def ids(self) -> list[str]:
        return [webhook.event["id"] for webhook in self.got]

    def of_type(self, kind: str) -> dict[str, Any]:
        """The object of the only event of this type."""
        (found,) = (webhook.event["data"]["object"] for webhook in self.got if webhook.event["type"] == kind)
        thing: dict[str, Any] = found
        return thing

    async def take(self, request: web.Request) -> web.Response:
        self._now += 1
        self.most_at_once = max(self.most_at_once, self._now)
        body = await request.read()
        self.got.append(
            Webhook(body=body, signature=request.headers["Stripe-Signature"], headers=dict(request.headers))
        )
        if self.hold is not None:
            await self.hold.wait()
        self._now -= 1
        return web.Response(status=self.statuses.pop(0) if self.statuses else 200)


@asynccontextmanager
async def receiver_here() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    app = web.Application()
    app.router.add_post("/webhooks/stripe", receiver.take)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        receiver.url = f"http://127.0.0.1:{runner.addresses[0][1]}/webhooks/stripe"
        yield receiver
    finally:
        await runner.cleanup()
