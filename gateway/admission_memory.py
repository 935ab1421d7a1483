"""What a worker decides by itself: rate limits while Redis is away, and everything while Postgres is away too.

Rate limits count for each worker alone here: a fleet of N may let N times the limit pass, and what Redis had counted is
not known. Slots of calls that were under way when Redis was lost are: they are this worker's own.
"""

from collections.abc import Iterable
from dataclasses import replace

from gateway.admission_batch import Ask
from gateway.policy.limiters import Limiter, Limiters
from gateway.policy.verdicts import BudgetExceeded


class RatesInMemory:
    """The rate limits of one worker."""

    def __init__(self) -> None:
        self._limiters = Limiters()

    def begin(self, open_asks: Iterable[Ask]) -> None:
        """Redis is lost: the calls under way, ``open_asks``, are in their slots."""
        self._limiters.forget_slots()
        for ask in open_asks:
            if ask.shape.has_slots and not ask.has_ended:
                ask.in_memory = True
                for limiter, algorithm, _, weight in self._of(ask):
                    if algorithm == "concurrency":
                        limiter.take(weight, 0)

    def take(self, ask: Ask, now_ms: int) -> tuple[int, int] | None:
        """From each of the ask's limits, or from none: then the place of the first that refuses and the wait, in ms."""
        limiters = self._of(ask)
        for place, (limiter, _, number, weight) in enumerate(limiters):
            wait_ms = limiter.wait_ms(number, weight, now_ms)
            if wait_ms > 0:
                return place, wait_ms
        for limiter, _, _, weight in limiters:
            limiter.take(weight, now_ms)
        ask.in_memory = True
        return None

    def give_back(self, ask: Ask) -> None:
        """What was taken; the call does not pass for another reason."""
        for limiter, _, _, weight in self._of(ask):
            limiter.give_back(weight)
        ask.in_memory = False

    def ended(self, ask: Ask) -> None:
        """The call is over: its slots are free."""
        ask.in_memory = False
        for limiter, algorithm, _, weight in self._of(ask):
            if algorithm == "concurrency":
                limiter.give_back(weight)

    def _of(self, ask: Ask) -> list[tuple[Limiter, str, int, int]]:
        """Each limit's limiter, its algorithm, what it allows, and what the ask takes from it."""
        rows = zip(ask.policy.rate_limits, ask.shape.limits, ask.rate_keys, ask.weighs, strict=True)
        return [
            (self._limiters.of(ask.policy.name, limit, number, value), limit.algorithm, number, weight)
            for limit, number, value, weight in rows
        ]


def still_exhausted(ask: Ask, now_ms: int) -> BudgetExceeded | None:
    """The last verdict on the account, where that was that a budget is spent, and it was not yet renewed."""
    known = ask.known
    last = known.exhausted if known is not None and ask.hold_microcents > 0 else None
    if last is None or (last.resets_ms is not None and now_ms >= last.resets_ms):
        return None
    if ask.shape.tier is not None:
        return replace(last, now_ms=now_ms)
    return replace(last, cost_microcents=ask.hold_microcents, now_ms=now_ms)
