"""Mends what reconcile found, in the order in which truth flows: counters from the ledger, Redis from them, casts.

Casts may run meanwhile. Counters are mended under the protocol of migrations/0006_usage_functions.sql. Redis takes a
sum that is higher by max(), at any time; one that is lower it must be told exactly, and what was committed between our
reading and its hearing is told once more afterwards.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from gateway.admission_settle import Seed, Usage
from gateway.database import QUERIES, Database
from gateway.policy.free_tier import is_tier
from gateway.policy.money import cents_decimal
from gateway.reconcile import AccountLine, Reconciler
from gateway.redis_store import FACTS
from gateway.redis_tell import Teller

_CASTS_BATCH = 500


@dataclass(slots=True)
class Repaired:
    """What was mended."""

    counters: int = 0
    windows: int = 0  # in Redis
    held: int = 0  # accounts
    holds: int = 0
    casts: int = 0


async def repair(
    lines: Sequence[AccountLine],
    *,
    database: Database,
    redis: Teller | None,
    reconciler: Reconciler,
    cast_cost_sql: str | None,
) -> Repaired:
    """Mend the accounts of ``lines``, as far as their stores are there.

    Raises StoreError, asyncpg.PostgresError, RedisLostError; what was mended before stays so.
    """
    done = Repaired()
    await _repair_counters(lines, database, done)
    if redis is not None:
        await _repair_windows(lines, database, redis, reconciler, done)
        for line in lines:
            for hold_id, worker_id in line.over.items():
                redis.settled_of(line.account_id).remove(worker_id, (hold_id,), posted=True)
                done.holds += 1
        await redis.tell()
        held = [line.account_id for line in lines if line.held_drift]
        if held:
            await reconciler.look(held, mend_held=held)
            done.held += len(held)
    if cast_cost_sql is not None:
        await _repair_casts(lines, database, cast_cost_sql, done)
    return done


async def _repair_counters(lines: Sequence[AccountLine], database: Database, done: Repaired) -> None:
    for line in lines:
        if any(window.counter_drift or window.calls_drift for window in line.windows if not window.is_tier):
            row = await database.fetchrow(QUERIES["repair_usage"], [line.account_id])
            assert row is not None
            done.counters += row[0]
        if any(window.counter_drift for window in line.windows if window.is_tier):
            row = await database.fetchrow(QUERIES["repair_units"], [line.account_id])
            assert row is not None
            done.counters += row[0]
        lost = [window for window in line.windows if window.counter is None and not window.kind.startswith("total/")]
        if lost:
            parts = [_parts(window.kind) for window in lost]
            await database.fetchrow(
                QUERIES["seed_usage"],
                [line.account_id] * len(lost),
                [period for period, _, _ in parts],
                [zone for _, zone, _ in parts],
                [week_start for _, _, week_start in parts],
                [window.start_ms for window in lost],
                [window.end_ms for window in lost],
            )
            done.counters += len(lost)


async def _repair_windows(
    lines: Sequence[AccountLine], database: Database, redis: Teller, reconciler: Reconciler, done: Repaired
) -> None:
    account_ids = [line.account_id for line in lines if any(window.has_drift for window in line.windows)]
    if not account_ids:
        return
    versions = await _versions(database, account_ids)
    exact = []
    for account_id, (higher, lower) in (await _differences(reconciler, account_ids)).items():
        done.windows += len(higher) + len(lower)
        for kind, (start_ms, used) in higher.items():
            redis.settled_of(account_id).use(account_id, kind, start_ms, used)
        if lower:
            exact.append(account_id)
            tiers = {kind: window for kind, window in lower.items() if is_tier(kind)}
            redis.settled_of(account_id).seed(
                Seed(
                    account_id=account_id,
                    version=versions.get(account_id, 0),
                    usage={kind: window for kind, window in lower.items() if kind not in tiers},
                    exactly=True,
                    tiers=tiers,
                )
            )
    await redis.tell()
    if not exact:
        return
    for account_id, (higher, _) in (await _differences(reconciler, exact)).items():
        for kind, (start_ms, used) in higher.items():
            redis.settled_of(account_id).use(account_id, kind, start_ms, used)
    await redis.tell()
    for account_id, version in (await _versions(database, exact)).items():
        partition = redis.partition_of(account_id)
        await redis.call(partition, "EVAL", FACTS.source, 1, f"cg:{{{partition}}}:workers", account_id, version)


async def _differences(reconciler: Reconciler, account_ids: Sequence[str]) -> dict[str, tuple[Usage, Usage]]:
    """Sums of the counters that are higher, and lower, than those that Redis has, by account."""
    found = {}
    for line in await reconciler.compare_now(account_ids):
        higher: Usage = {}
        lower: Usage = {}
        for window in line.windows:
            if window.redis is not None and window.counter is not None and window.redis != window.counter:
                (higher if window.redis < window.counter else lower)[window.kind] = window.start_ms, window.counter
        found[line.account_id] = higher, lower
    return found


async def _versions(database: Database, account_ids: Sequence[str]) -> dict[str, int]:
    rows = await database.fetch(QUERIES["load_facts"], account_ids)
    return {row["account_id"]: row["facts_version"] for row in rows}


async def _repair_casts(lines: Sequence[AccountLine], database: Database, sql: str, done: Repaired) -> None:
    wrong = [pair for line in lines for pair in line.wrong_casts.items()]
    for at in range(0, len(wrong), _CASTS_BATCH):
        batch = wrong[at : at + _CASTS_BATCH]
        async with database.transaction() as connection:
            await connection.execute(QUERIES["repair_lock_timeout"])
            tag = await connection.execute(
                sql, [cast_id for cast_id, _ in batch], [cents_decimal(cost) for _, cost in batch]
            )
        done.casts += _rows_of(tag)


def _rows_of(tag: str) -> int:
    """Of a command tag, as UPDATE 3."""
    count = tag.rpartition(" ")[2]
    return int(count) if count.isdigit() else 0


def _parts(kind: str) -> tuple[str, str, int]:
    period, _, rest = kind.partition("/")
    time_zone, _, week_start = rest.rpartition("/")
    return period, time_zone, int(week_start)
