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

_OTHERS = """
SELECT ledger.calls, ledger.cost, counters.calls AS counted_calls, counters.cost AS counted_cost FROM
  (SELECT count(*) AS calls, coalesce(sum(cost_microcents), 0)::bigint AS cost
   FROM usage_events WHERE account_id <> $1) AS ledger,
  (SELECT coalesce(sum(calls), 0)::bigint AS calls, coalesce(sum(used_microcents), 0)::bigint AS cost
   FROM usage_counters WHERE account_id <> $1 AND period = 'total') AS counters
"""
_CHARGED = "SELECT count(*) FROM usage_counters WHERE account_id <> $1 AND period = 'total' AND calls > 0"
BURST_CALLS = 1000
BURST_CONNECTIONS = 32
SETTLE_TIMEOUT_S = 30.0  # a ledger that is this far behind is a finding
FLUSH_TIMEOUT_S = 5.0  # of calls that another round makes again, if they are not there
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


def audit_many(around: Surroundings, tally: Tally) -> str:
    """The same of all other accounts: every call in the ledger, and in the counters what the ledger has."""
    deadline = time.monotonic() + SETTLE_TIMEOUT_S
    while True:
        calls, cost, counted_calls, counted_cost = asyncio.run(_books_of_others(around))
        if calls >= tally.certain and calls == counted_calls:
            break
        if time.monotonic() > deadline:
            raise BenchError(f"the ledger has {calls} calls of many accounts, its counters {counted_calls}, expected "
                             f"at least {tally.certain}")  # fmt: skip
        time.sleep(SETTLE_POLL_S)
    if calls > tally.certain + tally.possible:
        raise BenchError(f"the ledger has {calls} calls of many accounts, expected at most {tally.possible} more "
                         f"than {tally.certain}")  # fmt: skip
    if not cost == counted_cost == calls * COST_PER_CAST_CENTS * MICROCENTS_PER_CENT:
        raise BenchError(f"{calls} calls of many accounts cost {cost} microcents, by the counters {counted_cost}")
    return f"audit of many accounts: {tally.certain} casts counted, {calls} charged, counters agree"


def accounts_not_charged(around: Surroundings) -> int:
    """How many of many accounts have no call in the ledger, once what is on its way to it has had time to come."""
    deadline = time.monotonic() + FLUSH_TIMEOUT_S
    while missing := around.many_accounts - asyncio.run(_accounts_charged(around)):
        if time.monotonic() > deadline:
            break
        time.sleep(SETTLE_POLL_S)
    return missing


async def _accounts_charged(around: Surroundings) -> int:
    connection = await asyncpg.connect(around.database_url)
    try:
        return int(await connection.fetchval(_CHARGED, around.account_id))
    finally:
        await connection.close()


async def _books_of_others(around: Surroundings) -> tuple[int, int, int, int]:
    connection = await asyncpg.connect(around.database_url)
    try:
        row = await connection.fetchrow(_OTHERS, around.account_id)
    finally:
        await connection.close()
    assert row is not None
    return row["calls"], row["cost"], row["counted_calls"], row["counted_cost"]


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
