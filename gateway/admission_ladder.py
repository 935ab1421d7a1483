"""Who decides where Redis cannot: Postgres, and where that cannot either, this worker by what it remembers.

    rung      decides                                               while
    redis     lua/admit.lua                                         Redis serves
    postgres  castgate_admit; rate limits in memory                 Redis is away, or is being brought back to the truth
    memory    the last verdict of each account; ``on_store_failure``  both are away

A rung is left as soon as the one above it works; nothing needs a restart. What is admitted on a lower rung is held like
any other call, and is put in place in Redis before Redis admits again (admission_restore.py).
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import asyncpg
import structlog

from gateway.admission_batch import Ask
from gateway.admission_lane import HANDOVER, UP, Lane
from gateway.admission_memory import RatesInMemory, still_exhausted
from gateway.admission_postgres import LOST, OFF, ON, PostgresRung
from gateway.policy.verdicts import PASS, StoreUnavailable, Verdict

if TYPE_CHECKING:
    import asyncio

    from gateway.database import Database
    from gateway.metrics import Metrics
    from gateway.tasks import Tasks

REDIS, POSTGRES, MEMORY = "redis", "postgres", "memory"
# castgate_admit
_BUDGET, _STALE = 1, 3
# What a caller is told where no store could decide: a store that is back is found within breaker.PAUSE_MAX_S.
RETRY_AFTER_MS = 1000

_log = structlog.get_logger()


class Ladder:
    """The lower rungs of one worker, and which of all it stands on."""

    def __init__(
        self,
        *,
        worker_id: str,
        database: "Database | None",
        timeout_s: float,
        lanes: Sequence[Lane],
        holds: Callable[[], Sequence[Ask]],
        admit: Callable[[Ask, int], Verdict],
        budget_exceeded: Callable[[Ask, int, int, int, int], None],
        rate_limited: Callable[[Ask, int, int], Verdict],
        stale: Callable[[Ask, int], None],
        tell: Callable[[Ask, Verdict], None],
        again: Callable[[Ask], None],
        tasks: "Tasks",
        metrics: "Metrics",
    ) -> None:
        """``admit`` gives the verdict on a call that passes here; ``stale`` takes an ask whose facts are too old,
        ``budget_exceeded`` one that a budget refuses."""
        self.rung = REDIS
        self._lanes = lanes
        self._holds = holds
        self._admit = admit
        self._budget_exceeded = budget_exceeded
        self._rate_limited = rate_limited
        self._stale = stale
        self._tell = tell
        self._again = again
        self._rates = RatesInMemory()
        self._has_postgres = database is not None
        self._postgres = PostgresRung(
            database,
            worker_id,
            timeout_s=timeout_s,
            holds=holds,
            is_denied=self._is_denied,
            decided=self._decided,
            unanswered=self._unanswered,
            again=again,
            changed=self._postgres_changed,
            tasks=tasks,
            partitions=len(lanes),
        )
        # Lanes that do not decide, as Postgres was last told: what they held is there.
        self._away = set(lanes)
        self._on = {rung: metrics.gauge("castgate_admission_rung", rung=rung) for rung in (REDIS, POSTGRES, MEMORY)}
        self._changes = {
            rung: metrics.counter("castgate_admission_rung_changes_total", rung=rung)
            for rung in (REDIS, POSTGRES, MEMORY)
        }
        self._outcomes = {
            name: metrics.counter("castgate_admission_outcomes_total", outcome=name)
            for name in ("admitted", "budget", "rate", "stale", "store_allow", "store_deny")
        }
        self._on[REDIS].set(1)
        self._why = ""  # Redis was lost

    # --- from admission

    def decide(self, ask: Ask) -> None:
        """An ask whose lane cannot. Its ``known`` is None where nothing is known of the account."""
        known, account = ask.known, ask.account
        if self._postgres.state == OFF:  # before anybody noticed: asked in the very moment that the lane went
            self.redis_lost()
        if self._postgres.state == LOST:
            self.decide_in_memory(ask)
        elif account is None or ask.hold_microcents == 0:
            self._pass_or_rate(ask, ask.lane.now_ms)  # nothing that Postgres would have to know
        elif known is None:
            self.decide_in_memory(ask)
        elif known.is_outdated or not known.covers(ask.lane.now_ms):
            account.admission = None
            self._again(ask)
        else:
            self._postgres.ask(ask)

    def decide_in_memory(self, ask: Ask) -> None:
        """No store can."""
        now_ms = ask.lane.now_ms
        spent = still_exhausted(ask, now_ms)
        if spent is not None:
            self._outcomes["budget"].add()
            self._tell(ask, spent)
        elif ask.policy.on_store_failure == "allow":
            self._pass_or_rate(ask, now_ms, outcome="store_allow")
        else:
            self._outcomes["store_deny"].add()
            self._tell(ask, StoreUnavailable(retry_after_ms=RETRY_AFTER_MS))

    def ended(self, ask: Ask) -> None:
        """A call that is under way has ended, or is over."""
        if ask.in_memory and ask.shape.has_slots:
            self._rates.ended(ask)

    def released(self, hold_id: str) -> None:
        """A hold is over and was not posted."""
        self._postgres.release(hold_id)

    def posted(self, hold_id: str) -> None:
        """The ledger has written the hold's event."""
        self._postgres.posted(hold_id)

    @property
    def can_read(self) -> bool:
        """Whether there is hope that Postgres answers what is needed of an account."""
        return self._postgres.state != LOST

    @property
    def has_rows(self) -> bool:
        """Whether Postgres may have holds of ours: whoever posts events must take theirs away."""
        return self._postgres.has_rows

    def quiesce(self) -> "asyncio.Future[None] | None":
        """See PostgresRung."""
        return self._postgres.quiesce()

    async def close(self) -> None:
        """See PostgresRung."""
        await self._postgres.close()

    # --- from the lanes

    def redis_lost(self, reason: str = "") -> None:
        """A lane cannot decide any more."""
        away = {lane for lane in self._lanes if lane.state != UP}
        if self._has_postgres:
            # Others may find our holds in Postgres from now on, take it that we admit there, and do so themselves: who
            # goes back to Redis must not be served before it has heard of that, also where we admit nothing meanwhile.
            for lane in away - self._away:
                lane.was_elsewhere = True
        if self._postgres.state == OFF:
            self._why = reason
            self._rates.begin(self._holds())
            self._postgres.enter()
        elif away - self._away:
            self._postgres.enter()
        self._away = away
        self._note(reason)

    def redis_back(self) -> None:
        """A lane decides again."""
        self._away = {lane for lane in self._away if lane.state != UP}
        if all(lane.state >= HANDOVER for lane in self._lanes):
            self._postgres.leave()
        self._note("")

    def _postgres_changed(self, reason: str) -> None:
        self._note(reason)

    def _note(self, reason: str) -> None:
        state = self._postgres.state
        if state == OFF:
            rung = REDIS
        elif state == LOST:
            rung = MEMORY
        elif state == ON:
            rung = POSTGRES
        else:
            return  # on the way
        if rung != self.rung:
            why = reason or (self._why if rung == POSTGRES else "the store above is back")
            _log.warning("admission_rung", rung=rung, before=self.rung, reason=why)
            self._on[self.rung].set(0)
            self._on[rung].set(1)
            self._changes[rung].add()
            self.rung = rung

    # --- verdicts

    def _pass_or_rate(self, ask: Ask, now_ms: int, outcome: str = "admitted") -> None:
        denial = self._rates.take(ask, now_ms)
        if denial is None:
            self._outcomes[outcome].add()
            ask.lane.was_elsewhere = True
            # Where Redis serves, it is only the account that nobody knows, and nothing can be held.
            self._tell(ask, self._admit(ask, now_ms) if ask.hold_id and ask.lane.state <= HANDOVER else PASS)
        else:
            self._outcomes["rate"].add()
            self._tell(ask, self._rate_limited(ask, *denial))

    def _is_denied(self, ask: Ask) -> bool:
        ask.rate_denial = self._rates.take(ask, ask.lane.now_ms)
        return ask.rate_denial is not None

    def _decided(self, asks: Sequence[Ask], row: asyncpg.Record) -> None:
        now_ms: int = row["now_ms"]
        answers = zip(row["outcomes"], row["places"], row["details"], row["needs"], strict=True)
        for ask, (code, place, detail, need) in zip(asks, answers, strict=True):
            denial = ask.rate_denial
            if code == 0 and denial is None:
                self._outcomes["admitted"].add()
                ask.lane.was_elsewhere = True
                self._tell(ask, self._admit(ask, now_ms))
                continue
            if denial is None:
                self._rates.give_back(ask)
            if code == _STALE:
                self._outcomes["stale"].add()
                self._stale(ask, detail)
            elif code == _BUDGET:
                self._outcomes["budget"].add()
                self._budget_exceeded(ask, place, detail, need, now_ms)
            else:
                assert denial is not None
                self._outcomes["rate"].add()
                self._tell(ask, self._rate_limited(ask, *denial))

    def _unanswered(self, asks: Sequence[Ask]) -> None:
        for ask in asks:
            if ask.in_memory:
                self._rates.give_back(ask)
            self.decide_in_memory(ask)
