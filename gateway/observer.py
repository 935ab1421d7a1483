"""Which requests are watched, and what becomes of what was seen: stage histograms, canonical log lines, spans.

A request of the sample becomes an ``ObservedExchange``; all others the plain one. What was seen is queued, and written
a little later, between requests: a line costs as much as a cast. Each policy has its own sample of lines: as many are
watched as the largest of them asks for, and of those a policy's lines are as many as it asks for.

What a policy always wants a line of (errors, denials, slow calls) is told by the exchange itself, just before its end.
Where it was not watched its line has all but the stages. Such lines are bounded, since a client can ask for refusals
as fast as it likes.
"""

import asyncio
import contextlib
import math
import random
from collections import deque
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from operator import attrgetter
from time import monotonic
from typing import TYPE_CHECKING

import structlog

from gateway.policy.money import cents_text
from gateway.relay import traceparent
from gateway.relay.exchange import Exchange
from gateway.relay.observed import SETTLE, STAGES, Observation, ObservedExchange, noted

if TYPE_CHECKING:
    from gateway.config import Settings
    from gateway.exemplars import Exemplars
    from gateway.metrics import Metrics
    from gateway.otlp import Spans
    from gateway.policy.rules import Rules
    from gateway.policy.verdicts import Denial
    from gateway.relay.client import ClientConnection
    from gateway.relay.relay import Relay
    from gateway.relay.request import Request
    from gateway.usage_events import UsageEvent, WindowUsage

Committed = Callable[["Sequence[UsageEvent]", "Sequence[WindowUsage]"], None]
NewExchange = Callable[["Relay", "ClientConnection", "Request"], Exchange]

WRITE_INTERVAL_S = 0.1
# Lines written in one go, about 5 ms; then requests have their turn.
LINES_AT_ONCE = 50
# Lines that wait; more are dropped and counted, as a log that cannot keep up must not take the memory.
WAITING_MAX = 10_000
# Lines that are written whatever the sample says; more of them are dropped and counted. Some 3 ms of each second.
NOTEWORTHY_PER_S_MAX = 50
# Calls of the sample that the ledger does not have yet; while Postgres is away they go to the spool, and are not timed.
SETTLING_MAX = 1000

_id_of = attrgetter("event_id")
_log = structlog.get_logger()


class Observer:
    """One worker's sample."""

    def __init__(
        self, settings: "Settings", metrics: "Metrics", spans: "Spans | None", examples: "Exemplars | None" = None
    ) -> None:
        self._stage_rate = settings.metrics.stage_sample
        self._line_rate = settings.log.request_sample
        self._line_rates: dict[str | None, float] = {}  # of policies, where they have their own
        self._line_rate_max = 0.0
        self._span_rate = settings.traces.sample if spans is not None else 0.0
        self._spans = spans
        self._examples = examples
        self._stages = {
            stage: metrics.histogram("castgate_stage_duration_seconds", stage=stage)
            for stage in ((*STAGES, SETTLE) if self._stage_rate else ())
        }
        self.exchange: NewExchange = Exchange  # what a request becomes
        self._unwatched = 0
        self._dropped = metrics.counter("castgate_request_lines_dropped_total")
        self._waiting: deque[Observation] = deque()
        self._settling: dict[str, float] = {}  # event id -> when its call was over, the oldest first
        self._last_noted: Exchange | None = None
        self._second = 0
        self._noted_in_second = 0

    def use(self, rules: "Rules") -> None:
        """Goes by the policies' own samples from now on; ``exchange`` may be another one then."""
        samples = {policy.name: policy.log.sample for policy in rules.policies}
        self._line_rates = {name: sample for name, sample in samples.items() if sample is not None}
        self._line_rate_max = max((self._line_rate, *self._line_rates.values()))
        if self._spans is not None or self._line_rate_max:
            self.exchange = self._exchange
        elif self._stage_rate:
            # Where stages are all that is watched, most requests cost a subtraction.
            self.exchange, self._unwatched = self._exchange_of_stages, self._gap()
        else:
            self.exchange = Exchange

    def _gap(self) -> int:
        """How many requests go unwatched until the next one that is: as often as if each were drawn."""
        return int(random.expovariate(-math.log1p(-self._stage_rate))) if self._stage_rate < 1 else 0

    def _exchange_of_stages(self, relay: "Relay", client: "ClientConnection", request: "Request") -> Exchange:
        unwatched = self._unwatched
        if unwatched > 0:
            self._unwatched = unwatched - 1
            return Exchange(relay, client, request)
        self._unwatched = self._gap()
        return ObservedExchange(relay, client, request, self, draw=1.0, trace=None)

    def _exchange(self, relay: "Relay", client: "ClientConnection", request: "Request") -> Exchange:
        """One draw decides of everything, so that the spans of a line that is logged are there too."""
        draw = random.random()
        trace = None
        if self._spans is not None:
            parent = traceparent.parent_of(request.lines)
            # The caller's decision is kept, whichever it is.
            if parent.sampled if parent is not None else draw < self._span_rate:
                trace = traceparent.begin(parent)
        if trace is None and draw >= self._line_rate_max and draw >= self._stage_rate:
            return Exchange(relay, client, request)
        return ObservedExchange(relay, client, request, self, draw=draw, trace=trace)

    def charged(self, event_id: str) -> None:
        """A call that is watched is on its way to the ledger."""
        if self._stages:
            if len(self._settling) >= SETTLING_MAX:
                del self._settling[next(iter(self._settling))]
            self._settling[event_id] = monotonic()

    def committed(self, listener: Committed) -> Committed:
        """What is told of the ledger's commits in place of ``listener``, which hears of them first."""
        if not self._stages:
            return listener
        settled = self._stages[SETTLE]

        def listen(events: "Sequence[UsageEvent]", usages: "Sequence[WindowUsage]") -> None:
            listener(events, usages)
            if self._settling:  # some of many: found without a look at each event in turn
                for event_id in self._settling.keys() & set(map(_id_of, events)):
                    settled.observe(monotonic() - self._settling.pop(event_id))

        return listen

    def saw(self, observation: Observation) -> None:
        """An exchange is over."""
        for stage, (begin_s, end_s) in observation.stages.items():
            histogram = self._stages.get(stage)
            if histogram is not None:
                histogram.observe(end_s - begin_s)
        if self._examples is not None and observation.policy is not None and observation.answered_by == "upstream":
            self._examples.note(observation.policy, observation.duration_s, observation.request_id)
        if observation.trace is not None and self._spans is not None:
            self._spans.add(observation)
        if observation.draw < self._line_rates.get(observation.policy, self._line_rate) or (
            observation.noteworthy and self._has_room()
        ):
            self._log(observation)

    def noteworthy(self, exchange: Exchange, status: int, ended: str, denial: "Denial | None") -> None:
        """A call that nobody watches is about to end in a way that its policy wants a line of."""
        if exchange is not self._last_noted and self._has_room():
            self._last_noted = exchange  # it may be told of twice in a row
            self._log(noted(exchange, status, ended, denial))

    def _has_room(self) -> bool:
        second = int(monotonic())
        if second != self._second:
            self._second, self._noted_in_second = second, 0
        self._noted_in_second += 1
        if self._noted_in_second <= NOTEWORTHY_PER_S_MAX:
            return True
        self._dropped.add()
        return False

    def _log(self, observation: Observation) -> None:
        if len(self._waiting) >= WAITING_MAX:
            self._dropped.add()
        else:
            self._waiting.append(observation)

    async def write_forever(self) -> None:
        """Writes what waits, until it is cancelled; ``close`` writes the rest."""
        while True:
            await asyncio.sleep(WRITE_INTERVAL_S)
            if self._examples is not None:
                self._examples.write()
            while self._waiting:
                self._write(LINES_AT_ONCE)
                await asyncio.sleep(0)

    def close(self) -> None:
        """Writes what still waits."""
        self._write(len(self._waiting))

    def _write(self, lines_max: int) -> None:
        with contextlib.suppress(IndexError):
            for _ in range(lines_max):
                _log.info("request", **line_of(self._waiting.popleft()))


def line_of(seen: Observation) -> dict[str, object]:
    """The facts of the canonical line; what does not apply to a request is left out. The log takes secrets out."""
    facts: dict[str, object | None] = {
        "at": datetime.fromtimestamp(seen.began_ns / 1e9, UTC).isoformat(timespec="milliseconds"),
        "request_id": seen.request_id or None,
        "method": seen.method,
        "path": seen.path,
        "client": seen.client,
        "kind": seen.kind,
        "policy": seen.policy,
        "mode": seen.mode,
        "account": seen.account,
        "verdict": seen.verdict,
        "status": seen.status or None,
        "answered_by": seen.answered_by if seen.status else None,
        "ended": seen.ended,
        "cost_cents": None if seen.charged_microcents is None else cents_text(seen.charged_microcents),
        "duration_ms": _milliseconds(seen.duration_s),
        **{f"{stage}_ms": _milliseconds(end_s - begin_s) for stage, (begin_s, end_s) in seen.stages.items()},
        "trace_id": seen.trace.trace_id if seen.trace else None,
        "span_id": seen.trace.span_id if seen.trace else None,
    }
    return {name: value for name, value in facts.items() if value is not None}


def _milliseconds(span_s: float) -> float:
    return round(span_s * 1000, 3)
