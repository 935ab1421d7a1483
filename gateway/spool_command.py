"""``castgate spool ls`` and ``replay``: the spool by hand, for files that no gateway takes up.

Safe at any time: files that a living worker has are shown, and left alone.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from gateway.config import Loaded
from gateway.config.settings import Settings
from gateway.database import Database
from gateway.ledger import Ledger
from gateway.metrics import Metrics
from gateway.policy.free_tier import is_tier
from gateway.policy.money import cents_text
from gateway.policy.periods import FOREVER_MS
from gateway.redis_store import RedisLostError
from gateway.redis_tell import Teller, teller_to
from gateway.spool import Spool
from gateway.spool_file import is_in_use, look_into, paths_in
from gateway.spool_records import event_of
from gateway.spool_replay import Replay
from gateway.tables import table
from gateway.tasks import Tasks
from gateway.usage_events import UsageEvent, WindowUsage

_NAME = "command"
_DAY_S = 86400


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """What a replay did; ``redis_error`` is why holds were left to a sweeper, or blank."""

    files: int
    events: int
    left_files: int
    redis_error: str


def folder_of(config: Path, settings: Settings) -> Path | None:
    """The spool's folder; None where there is none."""
    folder = settings.ledger.spool.folder
    return None if folder is None else config.parent / folder


def listing(folder: Path) -> list[str]:
    """A table of the files there. Raises OSError."""
    rows = []
    for path in paths_in(folder):
        with contextlib.suppress(FileNotFoundError):  # replayed and removed while we look
            rows.append(_row(path))
    if not rows:
        return [f"the spool in {folder} is empty"]
    return list(table(("FILE", "STATE", "EVENTS", "CENTS", "BYTES", "AGE", "TORN OR DAMAGED"), rows))


def _row(path: Path) -> tuple[str, ...]:
    in_use = is_in_use(path)
    contents = look_into(path)
    cost = 0
    for payload in contents.payloads:
        with contextlib.suppress(ValueError, TypeError):
            cost += event_of(payload).cost_microcents
    age = "?" if contents.header is None else _age(time.time() - contents.header.created_ms / 1000)
    bad_bytes = contents.torn_bytes + contents.damaged_bytes
    return (
        path.name,
        "in use" if in_use else "waiting",
        str(len(contents.payloads)),
        cents_text(cost),
        str(path.stat().st_size),
        age,
        f"{bad_bytes} bytes" if bad_bytes and not in_use else "-",
    )


def _age(age_s: float) -> str:
    whole_s = max(0, int(age_s))
    for unit, length_s in (("d", _DAY_S), ("h", 3600), ("m", 60)):
        if whole_s >= 2 * length_s:
            return f"{whole_s // length_s}{unit}"
    return f"{whole_s}s"


async def replay(folder: Path, loaded: Loaded, report: Callable[[str], None]) -> Replayed:
    """Everything that nobody has, into Postgres; ``report`` hears of each file.

    Raises StoreError, asyncpg.PostgresError and OSError; what was replayed before stays, and the rest can be replayed
    again.
    """
    settings = loaded.settings
    tasks, metrics = Tasks(), Metrics()
    database = Database.from_settings(settings.database, metrics)
    ledger = Ledger(database, settings.ledger, tasks, metrics)
    spool = Spool(folder, settings.ledger.spool, worker_id=_NAME, tasks=tasks, metrics=metrics)
    files = events = 0
    try:
        async with _holds(settings, ledger) as holds:
            replayer = Replay(spool, ledger, worker_id=_NAME, claim=holds.claim)
            await spool.adopt()
            while (file := spool.next_file()) is not None:
                await replayer.replay(file)
                await holds.remove()
                files += 1
                events += file.events
                report(f"{file.path.name}: {file.events} events")
        return Replayed(
            files=files,
            events=events,
            left_files=len(await asyncio.to_thread(paths_in, folder)),
            redis_error=holds.error,
        )
    finally:
        await spool.close()
        await ledger.close()
        await tasks.drain(1.0)
        await database.close()
        metrics.close()


class _Holds:
    """Takes the holds of what was replayed out of Redis, as far as Redis is there: a sweeper finds what is left."""

    def __init__(self) -> None:
        self.teller: Teller | None = None
        self.error = ""
        self._workers: dict[str, str] = {}  # event id -> whose book its hold is in

    def claim(self, worker_id: str, events: Sequence[UsageEvent]) -> None:
        self._workers.update(dict.fromkeys((event.event_id for event in events), worker_id))

    def posted(self, events: Sequence[UsageEvent], usages: Sequence[WindowUsage]) -> None:
        if self.teller is None:
            return
        now_ms = time.time() * 1000
        for usage in usages:
            if usage.end_ms > now_ms or usage.end_ms >= FOREVER_MS or is_tier(usage.kind):  # as Admission.posted
                settled = self.teller.settled_of(usage.account_id)
                settled.use(usage.account_id, usage.kind, usage.start_ms, usage.used_microcents)
        self._remove(events, posted=True)

    def dropped(self, events: Sequence[UsageEvent]) -> None:
        self._remove(events, posted=False)

    def _remove(self, events: Sequence[UsageEvent], *, posted: bool) -> None:
        for event in events:
            worker_id = self._workers.pop(event.event_id, None)
            if worker_id is not None and self.teller is not None:
                self.teller.settled_of(event.account_id).remove(worker_id, (event.event_id,), posted=posted)

    async def remove(self) -> None:
        """Tell Redis of all that was committed."""
        if self.teller is not None:
            try:
                await self.teller.tell()
            except RedisLostError as error:
                self.error, self.teller = str(error), None


@asynccontextmanager
async def _holds(settings: Settings, ledger: Ledger) -> AsyncIterator[_Holds]:
    holds = _Holds()
    ledger.on_committed, ledger.on_dropped = holds.posted, holds.dropped
    async with contextlib.AsyncExitStack() as stack:
        try:
            holds.teller = await stack.enter_async_context(teller_to(settings.redis))
        except RedisLostError as error:
            holds.error = str(error)
        yield holds
