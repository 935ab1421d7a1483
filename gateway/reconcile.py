"""Ledger, counters, Redis and casts side by side: where do they differ, and what mends it?

Casts run meanwhile, so each comparison is one that what is in flight cannot spoil:
- A counter is the sum of its events at every instant (accounts.py), so one statement, of one snapshot, compares them.
- Redis hears of a sum after its commit, and sums only rise. So a sum that Redis did not have some seconds after we had
  read it in Postgres is missing there; and one that is higher in Redis than in Postgres read afterwards was never
  committed. Whatever looks wrong is looked at again after SETTLE_S, between two readings of Postgres.
- What an account holds and its holds are read in one script, of one moment.
- A hold that is older than OLD_HOLD_MS and whose event the ledger has had for seconds is over, and was never removed.
- Casts hear of their cost in the event's own transaction or, where Phase 1 had locked them, seconds later: events of
  the last seconds are left out.

Only windows that are open, and of which Redis knows something, are compared with Redis: it is seeded with the others
when they are needed.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal

import asyncpg

from gateway.database import QUERIES, Database
from gateway.policy.free_tier import is_tier
from gateway.policy.money import AmountError, microcents_from_cents
from gateway.policy.periods import window_at
from gateway.redis_store import DRIFT
from gateway.redis_tell import Teller

# Accounts that are read together.
PAGE = 500
# Workers tell Redis of a commit within some ms; one that is busy or stopped for a moment does it by then.
SETTLE_S = 2.0
# Entries, of a call or a group of calls; Redis serves nobody else while these are looked through: 10 to 15 ms.
HOLDS_MAX = 5000
# No call takes so long.
OLD_HOLD_MS = 60_000


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowLine:
    """One window of an account, in microcents; a free tier's in units. None: not there (a counter), or not compared
    (Redis)."""

    kind: str
    start_ms: int
    end_ms: int
    ledger: int
    counter: int | None
    redis: int | None
    calls_drift: int = 0
    redis_drift: int = 0

    @property
    def is_tier(self) -> bool:
        return is_tier(self.kind)

    @property
    def counter_drift(self) -> int:
        return (self.counter or 0) - self.ledger

    @property
    def has_drift(self) -> bool:
        return self.counter is None or self.counter_drift != 0 or self.calls_drift != 0 or self.redis_drift != 0


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountLine:
    """One account, in microcents. None: Redis does not know it or has too many holds; casts were not read."""

    account_id: str
    windows: tuple[WindowLine, ...]
    held: int | None = None
    holds: int | None = None
    over: Mapping[str, str] = field(default_factory=dict)  # holds that are over: hold id -> worker id
    over_microcents: int = 0
    casts_ledger: int | None = None
    casts: int | None = None
    casts_drift: int = 0
    wrong_casts: Mapping[str, int] = field(default_factory=dict)  # cast id -> what the ledger says it costs

    @property
    def held_drift(self) -> int:
        return 0 if self.held is None or self.holds is None else self.held - self.holds

    @property
    def has_drift(self) -> bool:
        return bool(
            self.held_drift or self.over or self.wrong_casts or any(window.has_drift for window in self.windows)
        )


def totals(lines: Iterable[AccountLine]) -> dict[str, int]:
    """How far apart they are in all, in microcents; too much here and too little there do not cancel out."""
    total = dict.fromkeys(("counters", "redis", "held", "over", "casts"), 0)
    for line in lines:
        money = [window for window in line.windows if not window.is_tier]
        total["counters"] += sum(abs(window.counter_drift) for window in money)
        total["redis"] += sum(abs(window.redis_drift) for window in money)
        total["held"] += abs(line.held_drift)
        total["over"] += line.over_microcents
        total["casts"] += line.casts_drift
    return total


@dataclass(slots=True)
class _Seen:
    """What Redis said of one account."""

    held: int = 0
    holds: int | None = None
    starts: dict[str, int] = field(default_factory=dict)
    used: dict[str, int] = field(default_factory=dict)
    rolled: set[str] = field(default_factory=set)


class Reconciler:
    """Reads and compares. Every method raises StoreError, asyncpg.PostgresError and, with ``redis``, RedisLostError."""

    def __init__(
        self,
        database: Database,
        redis: Teller | None,
        *,
        cast_read_sql: str | None = None,
        casts_since_s: float = 0.0,
        all_windows: bool = True,
    ) -> None:
        """Without ``redis`` what it knows is not compared; ``casts_since_s`` 0 leaves casts out, as no SQL does."""
        self._database = database
        self._redis = redis
        self._cast_read_sql = cast_read_sql if casts_since_s > 0 else None
        self._casts_since_s = casts_since_s
        self._all_windows = all_windows
        self.casts_error = ""  # why casts were not compared

    async def pages(self) -> AsyncIterator[list[str]]:
        """All accounts, in order."""
        last = ""
        while page := await self.page_after(last):
            yield page
            last = page[-1]

    async def page_after(self, account_id: str, accounts_max: int = PAGE) -> list[str]:
        """The next accounts after this one."""
        rows = await self._database.fetch(QUERIES["reconcile_accounts"], account_id, accounts_max)
        return [row["account_id"] for row in rows]

    async def compare(self, account_ids: Sequence[str]) -> list[AccountLine]:
        """The accounts as they are, with drift that is no mere delay."""
        counters = await self._counters(account_ids)
        seen, old = await self.look(account_ids)
        suspects = [
            account_id
            for account_id in account_ids
            if any(line.has_drift for line in _lines(counters.get(account_id, []), seen.get(account_id)))
        ]
        first = {(one["account_id"], one["kind"], one["start_ms"]): one for rows in counters.values() for one in rows}
        if suspects and self._redis is not None:
            await asyncio.sleep(SETTLE_S)
            seen |= (await self.look(suspects))[0]
            counters |= await self._counters(suspects)
        over = await self._over(old)
        casts = await self._casts(account_ids)
        return [
            self._account_line(account_id, counters.get(account_id, []), seen.get(account_id), first, over, casts)
            for account_id in account_ids
        ]

    async def compare_now(self, account_ids: Sequence[str]) -> list[AccountLine]:
        """Counters and Redis as they are. What is in flight counts as drift: for repairs, which that does not hurt."""
        seen, _ = await self.look(account_ids)
        counters = await self._counters(account_ids)
        return [
            AccountLine(account_id=one, windows=tuple(_lines(counters.get(one, []), seen.get(one))))
            for one in account_ids
        ]

    def _account_line(
        self,
        account_id: str,
        rows: Sequence[asyncpg.Record],
        seen: _Seen | None,
        first: Mapping[tuple[str, str, int], asyncpg.Record],
        over: Mapping[str, Mapping[str, tuple[str, int]]],
        casts: Mapping[str, "_Casts"],
    ) -> AccountLine:
        held_over = over.get(account_id, {})
        of_casts = casts.get(account_id)
        return AccountLine(
            account_id=account_id,
            windows=tuple(_lines(rows, seen, first)),
            held=None if seen is None else seen.held,
            holds=None if seen is None else seen.holds,
            over={hold_id: worker_id for hold_id, (worker_id, _) in held_over.items()},
            over_microcents=sum(amount for _, amount in held_over.values()),
            casts_ledger=None if of_casts is None else of_casts.ledger,
            casts=None if of_casts is None else of_casts.casts,
            casts_drift=0 if of_casts is None else of_casts.apart,
            wrong_casts={} if of_casts is None else of_casts.wrong,
        )

    async def _counters(self, account_ids: Sequence[str]) -> dict[str, list[asyncpg.Record]]:
        found: dict[str, list[asyncpg.Record]] = {}
        for row in await self._database.fetch(QUERIES["reconcile_counters"], account_ids, self._all_windows):
            found.setdefault(row["account_id"], []).append(row)
        return found

    async def look(
        self, account_ids: Sequence[str], *, mend_held: Sequence[str] = ()
    ) -> tuple[dict[str, _Seen], list[tuple[str, str, str, int]]]:
        """What Redis says of accounts, and its old holds (worker id, hold id, account id, amount).

        What each of ``mend_held`` holds is first set to what its holds come to.
        """
        seen: dict[str, _Seen] = {}
        old: list[tuple[str, str, str, int]] = []
        if self._redis is None:
            return seen, old
        by_partition: dict[int, list[str]] = {}
        for account_id in account_ids:
            by_partition.setdefault(self._redis.partition_of(account_id), []).append(account_id)
        for partition, asked in by_partition.items():
            mend = [account_id for account_id in mend_held if account_id in asked]
            count, found, listed = await self._redis.call(
                partition,
                *("EVAL", DRIFT.source, 1, f"cg:{{{partition}}}:workers", HOLDS_MAX, OLD_HOLD_MS),
                *(json.dumps(asked), json.dumps(mend)),
            )
            for account_id, reply in zip(asked, found, strict=True):
                if reply:
                    seen[account_id] = _seen(reply, are_holds_known=count >= 0)
            old += [
                (worker_id.decode(), hold_id.decode(), account_id.decode("utf-8", "surrogatepass"), amount)
                for worker_id, hold_id, account_id, amount in zip(*(iter(listed),) * 4, strict=True)
            ]
        return seen, old

    async def _over(self, old: Sequence[tuple[str, str, str, int]]) -> dict[str, dict[str, tuple[str, int]]]:
        """Those of the old holds that are over, by account: hold id -> (worker id, amount)."""
        if not old:
            return {}
        rows = await self._database.fetch(QUERIES["recorded_events"], [hold_id for _, hold_id, _, _ in old])
        recorded = {row["id"].hex for row in rows}
        over: dict[str, dict[str, tuple[str, int]]] = {}
        for worker_id, hold_id, account_id, amount in old:
            if hold_id in recorded:
                over.setdefault(account_id, {})[hold_id] = worker_id, amount
        return over

    async def _casts(self, account_ids: Sequence[str]) -> dict[str, "_Casts"]:
        if self._cast_read_sql is None:
            return {}
        found: dict[str, _Casts] = {}
        rows = await self._database.fetch(QUERIES["reconcile_casts"], account_ids, self._casts_since_s)
        for at in range(0, len(rows), 1000):
            page = rows[at : at + 1000]
            try:
                costs = await self._cast_costs([row["cast_id"] for row in page])
            except asyncpg.SyntaxOrAccessError as error:  # no such table, or not for us to read
                self._cast_read_sql, self.casts_error = None, str(error)
                return {}
            for row in page:
                if row["cast_id"] in costs:
                    found.setdefault(row["account_id"], _Casts()).add(
                        row["cast_id"], row["cost_microcents"], costs[row["cast_id"]]
                    )
        return found

    async def _cast_costs(self, cast_ids: Sequence[str]) -> dict[str, int]:
        """By cast id, in microcents, -1 where the cast has none; without the casts that are not there."""
        assert self._cast_read_sql is not None
        try:
            rows = await self._database.fetch(self._cast_read_sql, cast_ids)
        except asyncpg.DataError:  # an id that Phase 1 could not have made
            if len(cast_ids) <= 1:
                return {}
            middle = len(cast_ids) // 2
            return {
                **await self._cast_costs(cast_ids[:middle]),
                **await self._cast_costs(cast_ids[middle:]),
            }
        return {row["id"]: _microcents(row["cost_cents"]) for row in rows}


@dataclass(slots=True)
class _Casts:
    ledger: int = 0
    casts: int = 0
    apart: int = 0
    wrong: dict[str, int] = field(default_factory=dict)

    def add(self, cast_id: str, ledger: int, cast: int) -> None:
        self.ledger += ledger
        self.casts += max(cast, 0)
        self.apart += abs(ledger - max(cast, 0))
        if ledger != cast:
            self.wrong[cast_id] = ledger


def _microcents(cents: Decimal | None) -> int:
    try:
        return -1 if cents is None else microcents_from_cents(cents)
    except AmountError:
        return -1


def _lines(
    rows: Sequence[asyncpg.Record],
    seen: _Seen | None,
    first: Mapping[tuple[str, str, int], asyncpg.Record] | None = None,
) -> list[WindowLine]:
    """One account's windows; ``first`` is what Postgres said before Redis was read, ``rows`` what it said after."""
    lines = []
    known = set()
    for row in rows:
        kind, start_ms = row["kind"], row["start_ms"]
        known.add((kind, start_ms))
        counter = row["counter_microcents"]
        used = None
        if seen is not None and row["is_open"] and counter is not None and seen.starts.get(kind) == start_ms:
            used = seen.used.get(kind, 0)
        before = (first or {}).get((row["account_id"], kind, start_ms), row)["counter_microcents"]
        lines.append(
            WindowLine(
                kind=kind,
                start_ms=start_ms,
                end_ms=row["end_ms"],
                ledger=row["ledger_microcents"],
                counter=counter,
                redis=used,
                calls_drift=row["counter_calls"] - row["ledger_calls"],
                redis_drift=0 if used is None else _redis_drift(used, counter if before is None else before, counter),
            )
        )
    return lines + _lost(seen, known)


def _redis_drift(used: int, before: int, after: int) -> int:
    """``before`` and ``after`` are a counter as read before and after Redis; a repair may have lowered it."""
    low, high = min(before, after), max(before, after)
    return used - low if used < low else max(used - high, 0)


def _lost(seen: _Seen | None, known: set[tuple[str, int]]) -> list[WindowLine]:
    """Windows that Redis goes on with while their counter is gone, so that it never hears of their use again."""
    lines = []
    now_ms = time.time() * 1000
    for kind, start_ms in ({} if seen is None else seen.starts).items():
        assert seen is not None
        period, _, rest = kind.partition("/")
        zone, _, week_start = rest.rpartition("/")
        if (kind, start_ms) in known or kind in seen.rolled or period == "total":
            continue
        try:
            window = window_at(period, zone, int(week_start), start_ms)
        except (ValueError, KeyError, OverflowError):
            continue
        if window.end_ms > now_ms:
            used = seen.used.get(kind, 0)
            lines.append(
                WindowLine(kind=kind, start_ms=start_ms, end_ms=window.end_ms, ledger=0, counter=None, redis=used)
            )
    return lines


def _seen(reply: list[object], *, are_holds_known: bool) -> _Seen:
    held, holds, windows = reply
    assert isinstance(held, int)
    assert isinstance(holds, int)
    assert isinstance(windows, list)
    seen = _Seen(held=held, holds=holds if are_holds_known else None)
    for name, start_ms, used, is_rolled in zip(*(iter(windows),) * 4, strict=True):
        kind = name.decode()
        seen.starts[kind] = start_ms
        seen.used[kind] = used
        if is_rolled:
            seen.rolled.add(kind)
    return seen
