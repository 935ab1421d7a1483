"""Whether the casts that were counted were really admitted, metered and charged: speed counts for nothing without.

The ledger must hold each call that was answered with 200, and no more than were asked. Calls that the generator
abandoned may be there or not; a burst at the end leaves none, and must come out exactly.
"""

import asyncio
import json
import time
from dataclasses import dataclass

import asyncpg

from bench import load
from bench.generators import Request, Sample
from bench.processes import BenchError
from bench.surroundings import Surroundings, call
from bench.targets import COST_PER_CAST_CENTS
from gateway.policy.money import MICROCENTS_PER_CENT

BURST_CALLS = 1000
BURST_CONNECTIONS = 32
SETTLE_TIMEOUT_S = 30.0  # a ledger that is this far behind is a finding
SETTLE_POLL_S = 0.1

_LEDGER = (
    "SELECT count(*) AS calls, coalesce(sum(cost_microcents), 0)::bigint AS cost"
    " FROM usage_events WHERE account_id = $1"
)
_COUNTERS = (
    "SELECT period, sum(calls)::bigint AS calls, sum(used_microcents)::bigint AS cost"
    " FROM usage_counters WHERE account_id = $1 GROUP BY period"
)


@dataclass(slots=True)
class Tally:
    """Calls that must be charged, and calls that may be."""

    certain: int = 0
    possible: int = 0

    def add(self, sample: Sample) -> None:
        """Count what a generator did on a charged route."""
        self.certain += sample.requests - sample.refused
        self.possible += sample.abandoned_max


@dataclass(frozen=True, slots=True, kw_only=True)
class Books:
    """What Postgres says once everything has settled."""

    calls: int
    counters: dict[str, tuple[int, int]]
    cost_microcents: int


def audit(around: Surroundings, port: int, request: Request, tally: Tally) -> str:
    """A sentence about what was found right; raises BenchError about what was not."""
    books = _settled(around, port)
    if not tally.certain <= books.calls <= tally.certain + tally.possible:
        raise BenchError(
            f"the ledger has {books.calls} calls, expected {tally.certain} "
            f"and at most {tally.possible} more that the generator abandoned"
        )
    endpoint = load.Endpoint.of(
        f"http://127.0.0.1:{port}{request.path}",
        method=request.method,
        headers=request.headers,
        body=request.body.encode(),
    )
    burst = asyncio.run(load.run([endpoint], load.Load(connections=BURST_CONNECTIONS, total=BURST_CALLS)))
    if burst.statuses != {200: BURST_CALLS}:
        raise BenchError(f"of a burst of {BURST_CALLS}: {dict(burst.statuses)}, errors {dict(burst.errors)}")
    after = _settled(around, port)
    if after.calls - books.calls != BURST_CALLS:
        raise BenchError(f"a burst of {BURST_CALLS} calls added {after.calls - books.calls} to the ledger")
    return f"audit: {tally.certain + BURST_CALLS} casts counted, {after.calls} charged, counters agree, nothing held"


def _settled(around: Surroundings, port: int) -> Books:
    """The books once no hold is left; they must agree with each other and with what the gateway tells the customer."""
    deadline = time.monotonic() + SETTLE_TIMEOUT_S
    while True:
        budget = _budget(around, port)
        if budget["held_cents"] == 0:
            break
        if time.monotonic() > deadline:
            raise BenchError(
                f"{budget['held_cents']} cents are still held {SETTLE_TIMEOUT_S:.0f} s after the last cast"
            )
        time.sleep(SETTLE_POLL_S)
    books = asyncio.run(_books(around))
    if books.cost_microcents != books.calls * COST_PER_CAST_CENTS * MICROCENTS_PER_CENT:
        raise BenchError(f"{books.calls} calls in the ledger cost {books.cost_microcents} microcents")
    for period in ("total", "monthly"):
        if books.counters.get(period) != (books.calls, books.cost_microcents):
            raise BenchError(
                f"usage_counters say (calls, microcents) {books.counters.get(period)} for the period {period}, "
                f"usage_events {(books.calls, books.cost_microcents)}"
            )
    if budget["used_cents"] * MICROCENTS_PER_CENT != books.cost_microcents:
        raise BenchError(
            f"GET /v1/budgets says {budget['used_cents']} cents used, the ledger {books.cost_microcents} microcents"
        )
    return books


def _budget(around: Surroundings, port: int) -> dict[str, int]:
    status, text = call(port, around.api_key, "GET", "/v1/budgets")
    if status != 200:
        raise BenchError(f"GET /v1/budgets answered {status}: {text}")
    for budget in json.loads(text)["budgets"]:
        if budget["period"] == "monthly":
            return dict(budget)
    raise BenchError(f"GET /v1/budgets has no monthly budget: {text}")


async def _books(around: Surroundings) -> Books:
    connection = await asyncpg.connect(around.database_url)
    try:
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            ledger = await connection.fetchrow(_LEDGER, around.account_id)
            counters = await connection.fetch(_COUNTERS, around.account_id)
    finally:
        await connection.close()
    assert ledger is not None
    return Books(
        calls=ledger["calls"],
        cost_microcents=ledger["cost"],
        counters={row["period"]: (row["calls"], row["cost"]) for row in counters},
    )
