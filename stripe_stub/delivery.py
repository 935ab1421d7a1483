"""Webhooks: every event goes to every endpoint until it answers 2xx, at least once and in whatever order is asked for.

waiting ──> sending ──2xx──> delivered
   ↑           │
   └──back-off─┴─last attempt──> given_up        lost: never sent, because a switch says so
"""

import asyncio
import json
import logging
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from itertools import count
from typing import Any, Literal

from aiohttp import ClientError, ClientSession, ClientTimeout, DummyCookieJar, TCPConnector

from stripe_stub.journal import shown
from stripe_stub.signing import signature_header
from stripe_stub.state import Json, State
from stripe_stub.switches import Endpoint, Switches

DELIVERIES_KEPT_MAX = 20_000
ANSWER_BYTES_MAX = 4096
LONGEST_WAIT_S = 60.0  # then it looks again, whatever it waits for

log = logging.getLogger("stripe_stub")

Where = Literal["waiting", "sending", "delivered", "given_up", "lost"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    at_s: float
    took_s: float
    status: int | None  # None: no answer
    error: str | None
    signature: str


@dataclass(kw_only=True, slots=True)
class Delivery:
    number: int
    event: str
    type: str
    endpoint: str
    due_s: float
    where: Where = "waiting"
    asked_for: bool = False  # by hand: goes at once, even where delivery is stopped, and is not tried again
    attempts: list[Attempt] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


class Deliveries:
    def __init__(self, state: State, endpoints: Sequence[Endpoint], switches: Switches) -> None:
        self._state = state
        self._endpoints = {endpoint.id: endpoint for endpoint in endpoints}
        self._switches = switches
        self._random = random.Random(switches.seed)
        self._numbers = count(1)
        self._all: dict[int, Delivery] = {}
        self._of_event: dict[str, list[Delivery]] = {}
        self._waiting: dict[int, Delivery] = {}
        self._sending: dict[str, int] = {}  # endpoint -> deliveries under way
        self._wake = asyncio.Event()
        self._moved = asyncio.Event()

    @property
    def switches(self) -> Switches:
        return self._switches

    @switches.setter
    def switches(self, switches: Switches) -> None:
        if switches.seed != self._switches.seed:
            self._random = random.Random(switches.seed)
        self._switches = switches
        self._wake.set()

    @property
    def endpoints(self) -> list[Endpoint]:
        return list(self._endpoints.values())

    @endpoints.setter
    def endpoints(self, endpoints: Sequence[Endpoint]) -> None:
        self._endpoints = {endpoint.id: endpoint for endpoint in endpoints}
        self._wake.set()

    def tell(self, event: Json) -> None:
        """Have an event delivered as the switches say."""
        switches = self._switches
        for endpoint in self._endpoints.values():
            if not endpoint.wants(event["type"]):
                continue
            for _ in range(1 + switches.duplicates):
                late_s = switches.delay_s + switches.jitter_s * self._random.random()
                delivery = self._new(event, endpoint.id, time.time() + late_s)
                if switches.loses(event["type"]):
                    self._move(delivery, "lost")

    def send_again(self, event: Json, *, times: int = 1) -> list[Delivery]:
        """Deliver at once and in parallel, whatever the switches say."""
        deliveries = [self._new(event, identifier, 0.0) for identifier in self._endpoints for _ in range(times)]
        for delivery in deliveries:
            delivery.asked_for = True
        return deliveries

    def pending_of(self, event_id: str) -> int:
        """Endpoints that have not taken this event yet."""
        deliveries = self._of_event.get(event_id, [])
        done = {delivery.endpoint for delivery in deliveries if delivery.where == "delivered"}
        return len({delivery.endpoint for delivery in deliveries} - done)

    def find(self, event_id: str | None = None) -> list[Delivery]:
        return list(self._all.values()) if event_id is None else list(self._of_event.get(event_id, []))

    async def idle(self, timeout_s: float) -> bool:
        """Wait until nothing waits and nothing is under way; False where that took too long."""
        return await self._until(lambda: not self._waiting and not any(self._sending.values()), timeout_s)

    async def tried(self, deliveries: Sequence[Delivery], timeout_s: float) -> bool:
        """Wait until each of them was attempted once."""
        return await self._until(
            lambda: all(delivery.attempts or delivery.where == "lost" for delivery in deliveries), timeout_s
        )

    def clear(self) -> None:
        self._all.clear()
        self._of_event.clear()
        self._waiting.clear()
        self._notify()

    def dump(self) -> list[Json]:
        """What is still to be delivered; what is done is not kept over a restart."""
        return [
            {"event": delivery.event, "endpoint": delivery.endpoint, "due_s": delivery.due_s}
            for delivery in self._all.values()
            if delivery.where in {"waiting", "sending"} and not delivery.asked_for
        ]

    def load(self, rows: list[Json]) -> None:
        for row in rows:
            event = self._state.find("event", row["event"])
            if event is not None and row["endpoint"] in self._endpoints:
                self._new(event, row["endpoint"], row["due_s"])

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        """Inside, events are delivered. What is under way at the end is cut off, and would be tried again."""
        # The task is owned here: made, ended and waited for in this function.
        task = asyncio.get_running_loop().create_task(self._run(), name="deliveries")
        task.add_done_callback(_log_a_mistake)
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])

    async def _run(self) -> None:
        # A connection for each delivery, as from Stripe's many machines: they reach all processes behind one port.
        connector = TCPConnector(force_close=True, limit=0)
        async with (
            ClientSession(connector=connector, cookie_jar=DummyCookieJar()) as session,
            asyncio.TaskGroup() as group,
        ):
            while True:
                self._wake.clear()
                # One reading of the clock for both: what comes due between two readings would be in neither.
                now_s = time.time()
                for delivery in self._due(now_s):
                    self._sending[delivery.endpoint] = self._sending.get(delivery.endpoint, 0) + 1
                    self._move(delivery, "sending")
                    group.create_task(self._attempt(session, delivery))
                try:
                    async with asyncio.timeout(self._next_due_in_s(now_s)):
                        await self._wake.wait()
                except TimeoutError:
                    pass

    def _due(self, now_s: float) -> list[Delivery]:
        """Those to start now, at most as many as the switches allow."""
        switches = self._switches
        ready = [delivery for delivery in self._waiting.values() if delivery.due_s <= now_s]
        chosen = [delivery for delivery in ready if delivery.asked_for]
        if switches.running:
            ordinary = [delivery for delivery in ready if not delivery.asked_for]
            if switches.order == "reverse":
                ordinary.reverse()
            elif switches.order == "shuffle":
                self._random.shuffle(ordinary)
            room = {
                identifier: switches.concurrency - self._sending.get(identifier, 0) for identifier in self._endpoints
            }
            for delivery in ordinary:
                if room.get(delivery.endpoint, 0) > 0:
                    room[delivery.endpoint] -= 1
                    chosen.append(delivery)
        return chosen

    def _next_due_in_s(self, now_s: float) -> float:
        later = [delivery.due_s - now_s for delivery in self._waiting.values() if delivery.due_s > now_s]
        return min(later, default=LONGEST_WAIT_S)

    async def _attempt(self, session: ClientSession, delivery: Delivery) -> None:
        endpoint, event = self._endpoints.get(delivery.endpoint), self._state.find("event", delivery.event)
        attempt = None
        try:
            if endpoint is not None and event is not None:
                attempt = await self._post(session, endpoint, event)
                delivery.attempts.append(attempt)
        finally:
            self._sending[delivery.endpoint] -= 1
            self._settle(delivery, attempt)

    def _settle(self, delivery: Delivery, attempt: Attempt | None) -> None:
        if delivery.number not in self._all:
            self._notify()  # all was reset meanwhile
        elif attempt is not None and attempt.status is not None and 200 <= attempt.status < 300:
            self._move(delivery, "delivered")
        elif delivery.asked_for or attempt is None or len(delivery.attempts) >= self._switches.attempts_max:
            self._move(delivery, "given_up")
        else:
            delivery.due_s = time.time() + self._switches.retry_after_s(len(delivery.attempts))
            self._move(delivery, "waiting")

    async def _post(self, session: ClientSession, endpoint: Endpoint, event: Json) -> Attempt:
        pending = {**shown(event, endpoint.api_version), "pending_webhooks": self.pending_of(event["id"])}
        body = json.dumps(pending, indent=2, ensure_ascii=False).encode()
        at_s = time.time()
        signature = signature_header(body, endpoint.secrets, int(at_s) + self._switches.clock_offset_s)
        headers = {
            "Content-Type": "application/json; charset=utf-8",
            "Stripe-Signature": signature,
            "User-Agent": "Stripe/1.0 (+https://stripe.com/docs/webhooks)",
        }
        status, error = None, None
        try:
            async with session.post(
                endpoint.url,
                data=body,
                headers=headers,
                allow_redirects=False,
                timeout=ClientTimeout(total=self._switches.timeout_s),
            ) as answer:
                await answer.content.read(ANSWER_BYTES_MAX)
                status = answer.status
        except (ClientError, OSError, TimeoutError, ValueError) as problem:
            error = f"{type(problem).__name__}: {problem}"
        return Attempt(at_s=at_s, took_s=time.time() - at_s, status=status, error=error, signature=signature)

    def _new(self, event: Json, endpoint_id: str, due_s: float) -> Delivery:
        delivery = Delivery(
            number=next(self._numbers), event=event["id"], type=event["type"], endpoint=endpoint_id, due_s=due_s
        )
        self._all[delivery.number] = delivery
        self._of_event.setdefault(delivery.event, []).append(delivery)
        if len(self._all) > DELIVERIES_KEPT_MAX:
            self._forget(next(iter(self._all.values())))
        self._move(delivery, "waiting")
        return delivery

    def _forget(self, delivery: Delivery) -> None:
        del self._all[delivery.number]
        self._waiting.pop(delivery.number, None)
        of_event = self._of_event[delivery.event]
        of_event.remove(delivery)
        if not of_event:
            del self._of_event[delivery.event]

    def _move(self, delivery: Delivery, where: Where) -> None:
        delivery.where = where
        if where == "waiting":
            self._waiting[delivery.number] = delivery
        else:
            self._waiting.pop(delivery.number, None)
        self._state.touch()
        self._notify()

    def _notify(self) -> None:
        self._wake.set()
        self._moved.set()
        self._moved = asyncio.Event()

    async def _until(self, met: Callable[[], bool], timeout_s: float) -> bool:
        try:
            async with asyncio.timeout(timeout_s):
                while not met():
                    await self._moved.wait()
        except TimeoutError:
            return False
        return True


def _log_a_mistake(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("delivery has stopped", exc_info=error)
