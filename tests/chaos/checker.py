"""What must be true of the accounts of an episode, by the cast service's own record of the casts that it made.

    over      more casts of a window than its hard limit, or more charged
    missing   a cast without an event in the ledger
    double    a cast with more than one, or an event of a cast that was never made
    wrong     an answer that no call should get: 402 with budget left, 5xx, no answer, a connection lost for no reason
    held      holds that are left: in Redis, in Postgres, in the spool
    drift     counters that are not the sum of the ledger, or not what Redis has
    unspent   a budget of which less could be spent than there was

An event may have no cast: its worker was killed after the hold was taken, and by ``on_orphan: charge`` the hold is
charged. These are counted as ``orphans``; there can be no more of them than calls whose answers were lost.
"""

import asyncio
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg

from gateway.policy.periods import window_at
from tests.chaos.fleet import HOLD_TTL_S
from tests.chaos.load import CUT, NO_ANSWER, REFUSED, Account, Call
from tests.chaos.stores import Redis
from tests.gateways import ROOT
from tests.redis_accounts import held_at

WHAT = ("over", "missing", "double", "wrong", "held", "drift", "unspent")
# So long a call that is over may still count, or count twice: until Redis has heard of it, be it after an outage, or by
# a sweeper, because its worker died between the ledger's commit and telling Redis.
OVER_S = 2 * HOLD_TTL_S + 4
# Before its worker was killed. A commit is told within some ms; this machine is busy.
UNTOLD_S = 1.0
_EVENTS = (
    "SELECT replace(id::text, '-', '') AS id, account_id, cost_microcents, outcome, upstream_status AS status, cast_id,"
    " (extract(epoch FROM occurred_at) * 1000)::bigint AS ms FROM usage_events WHERE account_id = ANY($1::text[])"
)
_COUNTERS = (
    "SELECT counter.account_id, counter.period, counter.time_zone, counter.used_microcents AS used, counter.calls,"
    " coalesce(sum(event.cost_microcents), 0)::bigint AS sum, count(event.id) AS events"
    " FROM usage_counters AS counter LEFT JOIN usage_events AS event ON event.account_id = counter.account_id"
    " AND event.occurred_at >= counter.window_start AND event.occurred_at < counter.window_end"
    " WHERE counter.account_id = ANY($1::text[])"
    " GROUP BY counter.account_id, counter.window_end, counter.period, counter.time_zone, counter.week_start"
    " HAVING counter.used_microcents <> coalesce(sum(event.cost_microcents), 0) OR counter.calls <> count(event.id)"
)
_HOLDS = "SELECT account_id, amount_microcents, worker_id FROM usage_holds WHERE account_id = ANY($1::text[])"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cast:
    ms: int
    cast_id: str
    hold_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """From then until then, seconds since 1970, connections were bound to be lost; ``is_idle``: only those of calls
    that had not come through, as when a worker that is replaced closes what a client is about to use."""

    from_s: float
    until_s: float
    is_idle: bool

    def explains(self, call: Call, *, has_cast: bool) -> bool:
        return self.from_s <= call.ended_s and call.sent_s <= self.until_s and not (self.is_idle and has_cast)


class Record:
    """The cast service's, by the ids of calls."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = 0
        self.casts: dict[str, list[Cast]] = defaultdict(list)

    def read(self) -> None:
        with self._path.open() as file:
            file.seek(self._read)
            for line in file:
                if not line.endswith("\n"):
                    break
                self._read += len(line)
                ms, cast_id, call_id, hold_id = json.loads(line)
                self.casts[call_id].append(Cast(ms=ms, cast_id=cast_id, hold_id=hold_id))


@dataclass(slots=True)
class Findings:
    """Of one episode. ``said`` explains each."""

    calls: int = 0
    casts: int = 0
    results: Counter[str] = field(default_factory=Counter)
    over_max: int = 0  # casts, of the window that is most over its limit
    counts: Counter[str] = field(default_factory=Counter)  # accounts with over; casts, answers, holds … for the rest
    orphans: int = 0
    said: list[str] = field(default_factory=list)

    def find(self, what: str, text: str, count: int = 1) -> None:
        self.counts[what] += count
        self.said.append(f"{what}: {text}")


def check_ledger(
    findings: Findings, account: Account, casts: Mapping[str, list[Cast]], rows: Sequence[asyncpg.Record]
) -> None:
    """Over, missing and double, of one account."""
    by_id: dict[str, asyncpg.Record] = {row["id"]: row for row in rows}
    of_cast: dict[str, asyncpg.Record] = {row["cast_id"]: row for row in rows if row["cast_id"] is not None}
    by_cast: Counter[str] = Counter(row["cast_id"] for row in rows if row["cast_id"] is not None)
    made = [(call, cast) for call in account.calls for cast in casts.get(call.call_id, ())]
    known = {cast.cast_id for _, cast in made}
    holds = {cast.hold_id for _, cast in made}
    used_at: list[int] = []
    before = len(findings.said)
    for call, cast in made:
        event = by_id.get(cast.hold_id) or of_cast.get(cast.cast_id)
        used_at.append(cast.ms if event is None else event["ms"])
        if event is None:
            findings.find("missing", f"cast {cast.cast_id} of hold {cast.hold_id}, call {call.shown()}")
        else:
            holds.add(event["id"])  # what passed without a hold has an event of another id than the service was told
        if by_cast[cast.cast_id] > 1 or (event is not None and event["cast_id"] not in (None, cast.cast_id)):
            findings.find("double", f"cast {cast.cast_id} of hold {cast.hold_id}, {by_cast[cast.cast_id]} events")
    for row in rows:
        if row["cast_id"] is not None and row["cast_id"] not in known:
            findings.find("double", f"event {row['id']} of a cast {row['cast_id']} that was never made")
        if row["id"] not in holds:
            findings.orphans += 1
            if row["outcome"] != "expired":
                findings.find("double", f"event {row['id']} ({row['outcome']}) of a call that came to no cast")
    lost = sum(call.result not in (200, 402, 429) for call in account.calls)
    without = sum(row["id"] not in holds for row in rows)
    if without > lost:
        findings.find("double", f"{without} events without a cast, and only {lost} calls without a known end")
    for budget in account.budgets:
        for what, times in (("casts", used_at), ("charged", [row["ms"] for row in rows])):
            over = _most(budget.period, budget.time_zone, times) - budget.limit
            if over > 0:
                findings.over_max = max(findings.over_max, over)
                findings.find("over", f"{what}: {over} more than {budget}")
    if len(findings.said) > before:
        findings.said += _story(account, casts, rows)


def _most(period: str, time_zone: str, times_ms: Iterable[int]) -> int:
    """In the fullest window."""
    windows = Counter(window_at(period, time_zone, 1, ms).start_ms for ms in times_ms)
    return max(windows.values(), default=0)


def check_answers(
    findings: Findings,
    account: Account,
    casts: Mapping[str, list[Cast]],
    rows: Sequence[asyncpg.Record],
    cuts: Sequence[Cut],
) -> None:
    """No answer is wrong: not one of the account's calls got what none should get."""
    before = len(findings.said)
    for call in account.calls:
        findings.calls += 1
        findings.results[str(call.result)] += 1
        if call.result in (CUT, REFUSED):
            if not any(cut.explains(call, has_cast=call.call_id in casts) for cut in cuts):
                findings.find("wrong", call.shown())
        elif call.result == NO_ANSWER or (
            isinstance(call.result, int)
            and call.result not in (200, 402, 429)
            and call.fault != f"status={call.result}"
        ):
            findings.find("wrong", call.shown())
        elif call.result == 402:
            could_count = sum(_may_count(other, call, cuts) for other in account.calls if other is not call)
            if could_count < min(budget.limit for budget in account.budgets):
                findings.find("wrong", f"only {could_count} may count of {account.budgets}: {call.shown()}")
        elif call.result == 429 and account.plan != "hurried":
            findings.find("wrong", call.shown())
    if len(findings.said) > before:
        findings.said += _story(account, casts, rows)


def _may_count(call: Call, at: Call, cuts: Sequence[Cut]) -> int:
    """How often ``call`` may have been counted, used or held, at some moment while ``at`` was under way."""
    if call.sent_s > at.ended_s or call.result in (402, 429):
        return 0
    if isinstance(call.result, int) and call.result != 200:
        return int(call.ended_s + OVER_S >= at.sent_s)
    is_untold = any(
        not cut.is_idle and abs(call.ended_s - cut.from_s) < UNTOLD_S and at.sent_s < cut.from_s + OVER_S
        for cut in cuts
    )
    return 2 if is_untold else 1


def check_spent(findings: Findings, account: Account, rows: Sequence[asyncpg.Record]) -> None:
    """After ``load.spend_all``: one of the budgets is spent to the last cent."""
    last = account.calls[-1] if account.calls else None
    if last is None or last.result != 402:
        return  # it has more than was tried
    left = [
        budget.limit - _most(budget.period, budget.time_zone, (row["ms"] for row in rows)) for budget in account.budgets
    ]
    if min(left) > 0:
        findings.find("unspent", f"{account.account_id}: {min(left)} left of {account.budgets}")


def _story(account: Account, casts: Mapping[str, list[Cast]], rows: Sequence[asyncpg.Record]) -> list[str]:
    """All there is to know of the account."""
    of_call = {call.call_id: casts[call.call_id][0] for call in account.calls if call.call_id in casts}
    events = {row["id"]: row for row in rows}
    lines = [f"  account {account.account_id}, {account.plan}, {account.budgets}:"]
    for call in sorted(account.calls, key=lambda one: one.sent_s):
        if call.result in (402, 429):
            continue
        cast = of_call.get(call.call_id)
        event = events.get(cast.hold_id) if cast is not None else None
        told = "no cast" if cast is None else f"cast {cast.cast_id[:8]} at {cast.ms} hold {cast.hold_id}"
        charged = "" if event is None else f", event {event['outcome']} at {event['ms']}"
        lines.append(f"    {call.shown()[:120]}: {told}{charged}")
    holds = {cast.hold_id for cast in of_call.values()}
    lines += [f"    event without a cast: {dict(row)}" for row in rows if row["id"] not in holds]
    return lines


async def read_events(
    connection: "asyncpg.Connection[asyncpg.Record]", accounts: Sequence[Account]
) -> dict[str, list[asyncpg.Record]]:
    events: dict[str, list[asyncpg.Record]] = defaultdict(list)
    for row in await connection.fetch(_EVENTS, [account.account_id for account in accounts]):
        events[row["account_id"]].append(row)
    return events


async def check_drift(
    findings: Findings,
    connection: "asyncpg.Connection[asyncpg.Record]",
    accounts: Sequence[Account],
    *,
    config: Path,
    environment: Mapping[str, str],
) -> None:
    """Counters against the ledger, by SQL of our own; and all of it by ``castgate reconcile``."""
    ids = [account.account_id for account in accounts]
    for row in await connection.fetch(_COUNTERS, ids):
        findings.find("drift", f"counter {dict(row)}")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway", "reconcile", "--config", str(config), "--json", *ids),
        cwd=ROOT,
        env=dict(environment),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await process.communicate()
    if process.returncode not in (0, 1) or not output:
        findings.find("drift", f"castgate reconcile: {errors.decode()}")
        return
    report = json.loads(output)
    for line in report["accounts"]:
        if line["has_drift"]:
            findings.find("drift", f"castgate reconcile: {line}")


def holds_in_redis(redis: Redis, accounts: Sequence[Account] = ()) -> list[str]:
    """Every hold there is in a book, and what accounts hold by their sums; worker and hold ids, or accounts."""
    with redis.client() as client:
        found = [
            f"{key} {hold_id}"
            for key in client.scan_iter("cg:{0}:h:*")
            for hold_id in client.hkeys(key)
            if hold_id not in ("epoch", "seq")
        ]
        for account in accounts:
            held = held_at(client, f"cg:{{0}}:a:{account.account_id}")
            if held:
                found.append(f"{account.account_id} holds {held}")
    return found


async def holds_in_postgres(connection: "asyncpg.Connection[asyncpg.Record]", accounts: Sequence[Account]) -> list[str]:
    rows = await connection.fetch(_HOLDS, [account.account_id for account in accounts])
    return [str(dict(row)) for row in rows]
