"""Admission: may this call pass, and what does it take from the account's budgets and rate limits?

The way of one ask: what is known of the account (``Known``) → its partition's ``Lane`` → the script (``lua/admit.lua``)
→ a verdict, or a reason to learn more first (``Refresh``) and ask again. Afterwards the hold is settled: ``void``, or
``finished`` and, when the ledger has the event, ``posted`` (``OpenHolds``). Nothing here waits.

What the script says, and what follows:

    ADMITTED   a Hold, or PASS where there is nothing to hold
    BUDGET     BudgetExceeded            RATE   RateLimited
    STALE      the facts are read from Postgres again, then asked again
    COLD       the windows are seeded from Postgres, then asked again
    WINDOW     the windows are worked out again at Redis' time, then asked again
    no answer  decided on a lower rung (``gateway.admission_ladder``)
"""

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Protocol
from zlib import crc32

import structlog

from gateway.account_record import AccountRecord, account_record
from gateway.admission_batch import Ask, Known, Shape, windows_at
from gateway.admission_holds import OpenHolds
from gateway.admission_ladder import RETRY_AFTER_MS, Ladder
from gateway.admission_lane import HANDOVER, Lane
from gateway.admission_orphans import CHARGE, Orphans
from gateway.admission_refresh import Facts, Refresh
from gateway.admission_repeats import Repeats
from gateway.admission_restore import Fleet
from gateway.admission_settle import Seed
from gateway.admission_verdicts import budget_exceeded, rate_limited
from gateway.breaker import announcer
from gateway.database import QUERIES
from gateway.ledger import event_id
from gateway.policy.rules import Policy, Rules
from gateway.policy.verdicts import (
    PASS,
    Hold,
    LimitLeft,
    Pass,
    StoreUnavailable,
    Verdict,
)
from gateway.redis_store import RedisLostError, Reply
from gateway.redis_topology import topology_of

if TYPE_CHECKING:
    from gateway.accounts import Account
    from gateway.config.settings import Settings
    from gateway.database import Database
    from gateway.ledger import UsageEvent
    from gateway.metrics import Metrics
    from gateway.tasks import Tasks

__all__ = ["Admission", "Ask", "BudgetState"]

# lua/admit.lua
_ADMITTED, _BUDGET, _RATE, _STALE, _COLD, _OUTSIDE = 0, 1, 2, 3, 4, 5
_OUTCOMES = {_BUDGET: "budget", _RATE: "rate", _STALE: "stale", _COLD: "cold", _OUTSIDE: "window"}

# An ask is sent again when more is known; a healthy one needs at most three: load, seed, and a change in between.
RETRIES_MAX = 20
# A call counts twice between the commit of its event and the end of its hold, some ms, where Redis hears of the new sum
# by another worker's write or by a seed. So who is refused by a sum that was not seen before waits for so long and asks
# again: once, and up to so many times while the sum is more than a budget can have admitted.
DOUBT_S = 0.01
DOUBTS_MAX = 15
# Asks that wait in a worker: as many as it has connections by default, each of which waits for at most one.
ASKS_MAX = 20_000
# Policies times plans that are kept as text; far more than anybody has.
SHAPES_MAX = 10_000

_log = structlog.get_logger()
# Makes a named tuple of all its fields, in half of the time that calling its class takes.
_hold_of = tuple.__new__


class Charges(Protocol):
    """What the holds of dead workers become."""

    def append(self, event: "UsageEvent") -> None:
        """Take ``event`` on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetState:
    """Microcents used by ``BudgetLimit.kind`` in the windows that now are; ``held`` counts against each of them."""

    used_microcents: Mapping[str, int]
    held_microcents: int


class Admission:
    """Admission of one worker. Start it before asking; without Redis it starts as well."""

    def __init__(
        self,
        *,
        worker_id: str,
        settings: "Settings",
        accounts: Facts,
        ledger: "Charges",
        rules: Callable[[], Rules],
        tasks: "Tasks",
        metrics: "Metrics",
        fleet: Fleet,
        database: "Database | None" = None,
        test_clock_ms: Callable[[], int] | None = None,
    ) -> None:
        """``database`` None: below Redis there is only memory. ``test_clock_ms`` replaces Redis' clock, in tests."""
        self._accounts = accounts
        self._database = database
        self._rules = rules
        self._rules_seen = rules()
        self._tasks = tasks
        self._connect_timeout_s = settings.redis.connect_timeout_s
        self._loop = asyncio.get_running_loop()
        # Holds of this worker that are not settled, by their ids. Bounded by the calls under way and the ledger.
        self._open: dict[str, Ask] = {}
        announce = announcer("redis", metrics)
        topology = topology_of(settings.redis)
        self._lanes = [
            Lane(
                partition,
                topology=topology,
                worker_id=worker_id,
                timeout_s=settings.redis.timeout_s,
                connect_timeout_s=settings.redis.connect_timeout_s,
                batch_max=settings.redis.batch_max,
                queue_max=ASKS_MAX,
                tasks=tasks,
                metrics=metrics,
                announce=announce,
                answered=self._answered,
                unanswered=self._unanswered,
                holds=self._holds_in,
                has_holds=self._open.__len__,
                is_open=self._open.__contains__,
                fleet=fleet,
                quiesce=self._quiesce,
                left=self._left,
                served=self._served,
                test_clock_ms=test_clock_ms,
            )
            for partition in range(settings.redis.partitions)
        ]
        self._shapes: dict[tuple[int, str], Shape] = {}
        self._refresh = Refresh(accounts, tasks, self._loop.time, self._again, self._undecided)
        self._repeats = Repeats(
            database,
            tasks,
            timeout_s=settings.database.admission_timeout_s,
            again=self._again,
            tell=self._tell,
        )
        self.ladder = Ladder(
            worker_id=worker_id,
            database=database,
            timeout_s=settings.database.admission_timeout_s,
            lanes=self._lanes,
            holds=lambda: list(self._open.values()),
            admit=self._held,
            budget_exceeded=self._exhausted,
            rate_limited=rate_limited,
            stale=self._stale,
            tell=self._tell,
            again=self._again,
            tasks=tasks,
            metrics=metrics,
        )
        self.orphans = Orphans(
            self._lanes,
            worker_id=worker_id,
            database=database,
            hold_ttl_s=settings.hold_ttl_s,
            append=ledger.append,
            on_orphan=self._on_orphan,
            keys_kept_s=settings.ledger.spool.age_max_s,
            metrics=metrics,
        )
        holds = OpenHolds(
            self._open,
            worker_id=worker_id,
            lanes=self._lanes,
            lane_of=self._lane_of,
            ladder=self.ladder,
            orphans=self.orphans,
            metrics=metrics,
        )
        self._give_back = holds.give_back
        # After the call.
        self.void, self.finished, self.posted, self.dropped = holds.void, holds.finished, holds.posted, holds.dropped
        self._sweeper: asyncio.Task[None] | None = None
        self._holds_open = metrics.gauge("castgate_holds_open")
        self._outcomes = {
            name: metrics.counter("castgate_admission_outcomes_total", outcome=name)
            for name in ("admitted", *_OUTCOMES.values(), "store_allow", "store_deny", "overloaded")
        }

    async def start(self) -> None:
        """Connect, or find that Redis is away; then serve either way."""
        for lane in self._lanes:
            lane.start()
        await asyncio.gather(*(lane.wait_tried(self._connect_timeout_s) for lane in self._lanes))
        self._sweeper = self._tasks.start("admission.sweep", self.orphans.run())

    async def close(self, timeout_s: float = 2.0) -> None:
        """Tell Redis what is settled, within ``timeout_s``. Holds still open are left to other workers' sweepers."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        await asyncio.gather(*(lane.close(timeout_s) for lane in self._lanes))
        await self.ladder.close()

    # --- before the call

    def ask(self, ask: Ask) -> None:
        """``ask.done`` hears the verdict, once; where Redis is away that is before this returns."""
        account, policy = ask.account, ask.policy
        known = None if account is None else account.admission
        # What is known of an account is of its plan and these rules.
        shape = None if known is None else known.shape
        if shape is None or shape.policy is not policy:
            shape = self._shape_of(policy, account)
            if known is not None:
                known.shape = shape
        ask.shape = shape
        if shape.tier is not None:
            ask.units = 0 if ask.is_repeat else shape.tier.hold_units
        ask.group = None
        ask.hold_id = event_id() if ask.hold_microcents > 0 or shape.has_slots else ""
        if account is None:
            ask.known = None
            lane = ask.lane = self._lane_of(ask.rate_keys[0] if ask.rate_keys else "")
        else:
            if known is None:
                known = self._know(ask, account)
                if known is None:
                    return
            lane = ask.lane = known.lane
            if shape.tier is not None:
                known = known.of_tier(account, shape, shape.tier, lane.now_ms)
            ask.known = known
            is_doubtful = known.generation != lane.generation
            if known.rolling_until_s and not is_doubtful:
                is_doubtful = known.rolling_until_s < self._loop.time()
                if known.is_outdated and not is_doubtful and policy.on_store_failure != "allow":
                    self.ladder.decide_in_memory(ask)
                    return
            if is_doubtful and lane.state >= HANDOVER:
                self._refresh.seed(ask, account)
                return
        if lane.state < HANDOVER:
            self.ladder.decide(ask)
        elif not lane.ask(ask):
            self._outcomes["overloaded"].add()
            self._tell(ask, StoreUnavailable(retry_after_ms=RETRY_AFTER_MS))

    def _shape_of(self, policy: Policy, account: "Account | None") -> Shape:
        rules = self._rules()
        if rules is not self._rules_seen or len(self._shapes) > SHAPES_MAX:
            self._rules_seen = rules
            self._shapes.clear()
        plan = "" if account is None else account.plan
        shape = self._shapes.get((id(policy), plan))
        if shape is None:
            shape = Shape(policy, rules.plan_of(plan) if account is not None else None)
            self._shapes[id(policy), plan] = shape
        return shape

    def _know(self, ask: Ask, account: "Account") -> Known | None:
        """The account's windows now; None where the ask waits for the account's facts, or was answered without."""
        lane = ask.lane = self._lane_of(account.account_id)
        ask.known = None
        if account.version < 0:
            if lane.state < HANDOVER and not self.ladder.can_read:
                self.ladder.decide(ask)
            else:
                self._refresh.load(ask, account)
            return None
        known = Known(account, lane, windows_at(account.limits, lane.now_ms))
        account.admission = known
        return known

    def _lane_of(self, name: str) -> Lane:
        if len(self._lanes) == 1:
            return self._lanes[0]
        return self._lanes[crc32(name.encode("utf-8", "surrogatepass")) % len(self._lanes)]

    def _answered(self, lane: Lane, asks: list[Ask], reply: list[Reply]) -> None:
        now_ms = reply[0]
        admitted = 0
        takes = False
        waiting = iter(asks)
        for outcome in islice(reply, 1, None):
            if outcome.__class__ is int:  # so many of a group, or one
                for ask in islice(waiting, outcome or 1):
                    admitted += 1
                    if ask.hold_id:
                        takes = True
                        self._tell(ask, self._held(ask, now_ms))
                    else:
                        self._tell(ask, PASS)
                continue
            ask = next(waiting)
            if outcome[0] != _ADMITTED:
                self._not_admitted(ask, outcome, now_ms)
                continue
            left = ask.shape.left(outcome[1])
            admitted += 1
            if ask.hold_id:
                takes = True
                self._tell(ask, self._held(ask, now_ms, left))
            else:
                self._tell(ask, Pass(left))
        if takes:
            lane.took_holds()
        self._outcomes["admitted"].add(admitted)
        self._holds_open.set(len(self._open))

    def _held(self, ask: Ask, now_ms: int, left: tuple[LimitLeft, ...] = ()) -> Hold:
        hold_id = ask.hold_id
        self._open[hold_id] = ask
        ask.admitted_ms = now_ms
        account_id = ""
        if ask.account is not None:
            account_id = ask.account.account_id
            if ask.known is not None:
                ask.known.exhausted = None
        return _hold_of(Hold, (hold_id, account_id, ask.hold_microcents, now_ms, left))

    def _not_admitted(self, ask: Ask, outcome: list[int], now_ms: int) -> None:
        ask.group = None
        code = outcome[0]
        if code == _BUDGET and self._is_doubtful(ask, outcome[1], outcome[2]):
            ask.doubts += 1
            self._loop.call_later(DOUBT_S, self.ask, ask)
            return
        self._outcomes[_OUTCOMES[code]].add()
        if code == _RATE:
            self._tell(ask, rate_limited(ask, outcome[1], outcome[2]))
            return
        account, known = ask.account, ask.known
        assert account is not None, "only rate limits can refuse a call without an account"
        assert known is not None
        if code == _BUDGET:
            need = outcome[3] if len(outcome) > 3 else ask.hold_microcents
            self._exhausted(ask, outcome[1], outcome[2], need, now_ms)
        elif account.admission is None or not account.admission.has(known):  # more was learnt meanwhile, for another
            self._again(ask)
        elif code == _STALE:
            self._stale(ask, outcome[1])
        elif code == _COLD:
            self._refresh.seed(ask, account)
        else:
            account.admission = None
            self._again(ask)

    def _again(self, ask: Ask) -> None:
        ask.retries += 1
        if ask.retries > RETRIES_MAX:
            _log.error("ask_never_settled", policy=ask.policy.name, retries=RETRIES_MAX)
            self._outcomes["store_deny"].add()
            self._tell(ask, StoreUnavailable(retry_after_ms=RETRY_AFTER_MS))
        else:
            self.ask(ask)

    def _unanswered(self, asks: list[Ask], was_sent: bool) -> None:
        """A lane was lost before it answered. What it had sent may have been done, or may yet be: it is undone."""
        for ask in asks:
            if was_sent and ask.hold_id:
                self._give_back(ask)
                ask.hold_id = event_id()
            self._again(ask)

    def _undecided(self, asks: list[Ask]) -> None:
        """Nothing is known of their accounts, and Postgres does not tell."""
        for ask in asks:
            self.ladder.decide_in_memory(ask)

    def _is_doubtful(self, ask: Ask, place: int, taken: int) -> bool:
        """Whether a refusal may come of calls that count twice just now."""
        known = ask.known
        assert known is not None
        last = known.exhausted
        if last is not None and last.used_microcents == taken:
            return False
        return ask.doubts < (1 if taken <= known.limits[place].hard_limit_microcents else DOUBTS_MAX)

    def _exhausted(self, ask: Ask, place: int, taken: int, need: int, now_ms: int) -> None:
        assert ask.known is not None
        verdict = budget_exceeded(ask.known, place, taken, need, now_ms)
        ask.known.exhausted = verdict
        if ask.key:
            self._repeats.refused(ask, verdict)
        else:
            self._tell(ask, verdict)

    def _stale(self, ask: Ask, at_least: int) -> None:
        assert ask.account is not None
        # Not counted as a retry: each brings newer facts, and facts that change fast are followed while they do.
        ask.retries -= 1
        self._refresh.load(ask, ask.account, at_least=at_least)

    def has_rows(self) -> bool:
        """For the ledger: whether Postgres may have holds of what it writes."""
        return self.ladder.has_rows or bool(self.orphans.pending_rows)

    def _tell(self, ask: Ask, verdict: Verdict) -> None:
        # Kept for as long as it holds something, an ask must not keep its call alive with it.
        done, ask.done = ask.done, _told
        try:
            done(verdict)
        except Exception:  # noqa: BLE001  one call's fault must not take the verdicts of its neighbours along
            _log.exception("verdict_not_taken", policy=ask.policy.name)

    # --- facts and budgets

    async def facts_changed(self, account_id: str, version: int) -> None:
        """Every worker's next ask of the account knows ``version``, from when this returns; where Redis is away, from
        when it is back."""
        await self._lane_of(account_id).raise_version(account_id, version)

    async def budget_state(self, account: "Account") -> BudgetState:
        """Used and held in the account's windows, from Redis, and from Postgres what Redis does not know (now).

        Raises StoreError where Postgres is needed and away.
        """
        await self._accounts.load([account])
        lane = self._lane_of(account.account_id)
        limits = account.limits
        windows = dict(zip((limit.kind for limit in limits), windows_at(limits, lane.now_ms), strict=True))
        record, held = AccountRecord(), 0
        if lane.is_up:
            with contextlib.suppress(RedisLostError):
                record = account_record(await lane.call("GET", lane.account_key(account.account_id)))
                held = record.held_microcents
        elif self._database is not None:
            held = await self._held_in_postgres(self._database, account.account_id)
        used = {
            kind: amount
            for kind, (start_ms, amount) in record.windows.items()
            if kind in windows and start_ms == windows[kind].start_ms
        }
        if len(used) < len(windows):
            seeded = (await self._accounts.seed([(account, windows)]))[account.account_id]
            usage = {kind: (windows[kind].start_ms, microcents) for kind, microcents in seeded.items()}
            lane.settled.seed(Seed(account_id=account.account_id, version=account.version, usage=usage))
            lane.settle_soon()
            used = {kind: max(microcents, used.get(kind, 0)) for kind, microcents in seeded.items()}
        return BudgetState(used_microcents=used, held_microcents=held)

    async def _held_in_postgres(self, database: "Database", account_id: str) -> int:
        row = await database.fetchrow(QUERIES["held_by_account"], account_id)
        return 0 if row is None else int(row[0])

    # --- bringing Redis back to what is true

    def _quiesce(self) -> "asyncio.Future[None] | None":
        return self.ladder.quiesce()

    def _left(self, reason: str) -> None:
        self.ladder.redis_lost(reason)

    def _served(self, lane: Lane, anew: bool) -> None:
        self.ladder.redis_back()
        if anew:
            self._refresh.reseed(lane, self._lane_of)

    def _holds_in(self, lane: Lane) -> list[Ask]:
        return [ask for ask in self._open.values() if ask.lane is lane]

    def _on_orphan(self, policy: str) -> str:
        """What becomes of a dead worker's hold under the policy of that name; of one that is gone, what is usual."""
        return next((one.on_orphan for one in self._rules().policies if one.name == policy), CHARGE)


def _told(_: Verdict) -> None:
    pass
