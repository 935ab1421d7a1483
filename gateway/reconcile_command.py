"""``castgate reconcile``: all accounts, or some, compared and shown as a table or as JSON, and mended where asked."""

import json
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from gateway.breaker import Breaker
from gateway.config import Loaded
from gateway.database import Database
from gateway.metrics import Metrics
from gateway.policy.money import cents_text
from gateway.policy.periods import FOREVER_MS
from gateway.reconcile import PAGE, AccountLine, Reconciler, WindowLine, totals
from gateway.reconcile_repair import Repaired, repair
from gateway.redis_store import RedisLostError
from gateway.redis_tell import teller_to
from gateway.tables import table

# An account with a million events in a window is summed within this.
STATEMENT_TIMEOUT_S = 60.0
_HEAD = ("ACCOUNT", "WINDOW", "FROM", "LEDGER", "COUNTER", "REDIS", "HELD", "HOLDS", "OVER", "CASTS", "DRIFT")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What to reconcile. No accounts: all of them."""

    accounts: tuple[str, ...] = ()
    all_lines: bool = False
    repair: bool = False
    casts_since_s: float = 86400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """``lines`` are those to show: with drift, or all. ``left`` is how many accounts still have drift at the end."""

    lines: tuple[AccountLine, ...]
    accounts: int
    drifted: int
    left: int
    repaired: Repaired | None
    redis_error: str
    casts_error: str


async def reconcile(loaded: Loaded, asked: Asked) -> Report:
    """Compare, and mend where asked.

    Raises StoreError, asyncpg.PostgresError; RedisLostError where Redis is lost midway.
    """
    settings = loaded.settings
    async with AsyncExitStack() as stack:
        metrics = Metrics()
        stack.callback(metrics.close)
        database = Database(
            settings.database.url,
            breaker=Breaker(clock=time.monotonic),
            metrics=metrics,
            connections_max=2,
            connect_timeout_s=settings.database.connect_timeout_s,
            acquire_timeout_s=settings.database.acquire_timeout_s,
            statement_timeout_s=STATEMENT_TIMEOUT_S,
        )
        stack.push_async_callback(database.close)
        redis, redis_error = None, ""
        try:
            redis = await stack.enter_async_context(teller_to(settings.redis))
        except RedisLostError as error:
            redis_error = str(error)
        reconciler = Reconciler(
            database, redis, cast_read_sql=settings.ledger.cast_read_sql, casts_since_s=asked.casts_since_s
        )
        shown: list[AccountLine] = []
        accounts = drifted = left = 0
        done = Repaired() if asked.repair else None
        async for page in _pages(reconciler, asked.accounts):
            lines = await reconciler.compare(page)
            wrong = [line for line in lines if line.has_drift]
            accounts += len(lines)
            drifted += len(wrong)
            shown += lines if asked.all_lines else wrong
            left += len(wrong)
            if wrong and done is not None:
                more = await repair(
                    wrong,
                    database=database,
                    redis=redis,
                    reconciler=reconciler,
                    cast_cost_sql=settings.ledger.cast_cost_sql,
                )
                for name, count in asdict(more).items():
                    setattr(done, name, getattr(done, name) + count)
                again = await reconciler.compare([line.account_id for line in wrong])
                left -= sum(not line.has_drift for line in again)
        return Report(
            lines=tuple(shown),
            accounts=accounts,
            drifted=drifted,
            left=left,
            repaired=done,
            redis_error=redis_error,
            casts_error=reconciler.casts_error,
        )


async def _pages(reconciler: Reconciler, accounts: Sequence[str]) -> AsyncIterator[Sequence[str]]:
    if accounts:
        for at in range(0, len(accounts), PAGE):
            yield list(accounts[at : at + PAGE])
        return
    async for page in reconciler.pages():
        yield page


def as_table(report: Report) -> Iterable[str]:
    """For people: amounts in cents."""
    rows = [row for line in report.lines for row in _rows(line)]
    if rows:
        yield from table(_HEAD, rows)
        yield ""
    total = totals(report.lines)
    yield (
        f"{report.accounts} accounts compared, {report.drifted} with drift: counters {_cents(total['counters'])}, "
        f"redis {_cents(total['redis'])}, held {_cents(total['held'])}, holds that are over {_cents(total['over'])}, "
        f"casts {_cents(total['casts'])} cents in all"
    )
    done = report.repaired
    if done is not None:
        yield (
            f"repaired: {done.counters} counters, {done.windows} windows and {done.held} sums of holds in Redis, "
            f"{done.holds} holds that were over, {done.casts} casts; {report.left} accounts with drift are left"
        )


def as_json(report: Report) -> str:
    """For programs: amounts in microcents."""
    accounts = []
    for line in report.lines:
        told = asdict(line)
        told["windows"] = [
            {**asdict(window), "counter_drift": window.counter_drift, "has_drift": window.has_drift}
            for window in line.windows
        ]
        accounts.append({**told, "held_drift": line.held_drift, "has_drift": line.has_drift})
    return json.dumps(
        {
            "accounts": accounts,
            "compared": report.accounts,
            "drifted": report.drifted,
            "left": report.left,
            "totals": totals(report.lines),
            "repaired": None if report.repaired is None else asdict(report.repaired),
            "redis_error": report.redis_error or None,
            "casts_error": report.casts_error or None,
        },
        indent=2,
    )


def _rows(line: AccountLine) -> Iterable[tuple[str, ...]]:
    """The account with its first window, and its further windows below."""
    account = (_cents(line.held), _cents(line.holds), _cents(line.over_microcents), _cents(line.casts))
    for place, window in enumerate(line.windows or (None,)):
        is_first = place == 0
        drift = (*_window_drift(window), *(_account_drift(line) if is_first else ()))
        yield (
            line.account_id if is_first else "",
            *(_window_cells(window) if window is not None else ("-",) * 5),
            *(account if is_first else ("",) * 4),
            ", ".join(drift) or "none",
        )


def _window_cells(window: WindowLine) -> tuple[str, ...]:
    counter = "missing" if window.counter is None else _cents(window.counter)
    if window.is_tier:
        told = tuple("-" if units is None else str(units) for units in (window.ledger, window.counter, window.redis))
        return (window.kind, _date(window.start_ms), *told)
    return window.kind, _date(window.start_ms), _cents(window.ledger), counter, _cents(window.redis)


def _window_drift(window: WindowLine | None) -> Iterable[str]:
    if window is None:
        return
    if window.counter is None:
        yield "counter is missing"
    elif window.is_tier:
        if window.counter_drift:
            yield f"counter {window.counter_drift:+} units"
        if window.redis_drift:
            yield f"redis {window.redis_drift:+} units"
        return
    elif window.counter_drift or window.calls_drift:
        yield f"counter {_signed(window.counter_drift)} cents, {window.calls_drift:+} calls"
    if window.redis_drift:
        yield f"redis {_signed(window.redis_drift)}"


def _account_drift(line: AccountLine) -> Iterable[str]:
    if line.held_drift:
        yield f"held {_signed(line.held_drift)}"
    if line.over:
        yield f"{len(line.over)} holds are over"
    if line.wrong_casts:
        yield f"{len(line.wrong_casts)} casts"


def _cents(amount: int | None) -> str:
    return "-" if amount is None else cents_text(amount)


def _signed(amount: int) -> str:
    return f"+{cents_text(amount)}" if amount > 0 else f"-{cents_text(-amount)}" if amount < 0 else "0"


def _date(at_ms: int) -> str:
    if not 0 < at_ms < FOREVER_MS:
        return "-"
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%MZ")
