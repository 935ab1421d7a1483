"""Budgets of an account: its own and its plan's, as the limits that admission checks."""

from collections.abc import Iterable
from dataclasses import dataclass

# Which exhausted budget a refusal names: the one that stays exhausted longest, so that Retry-After tells the truth.
PERIOD_PRECEDENCE = ("total", "monthly", "weekly", "daily")


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetLimit:
    """At most ``hard_limit_microcents`` in each window of ``period``, counted in ``time_zone``.

    ``week_start`` is an ISO weekday, 1 (Monday) to 7 (Sunday), and matters to ``weekly`` alone.
    """

    period: str
    hard_limit_microcents: int
    time_zone: str = "UTC"
    week_start: int = 1

    @property
    def kind(self) -> str:
        """What makes two budgets share one window, e.g. ``monthly/Asia/Tokyo/1``. A counter's name in every store.

        What does not move the window is left out of its name: a total has no zone, only weeks have a first day.
        """
        if self.period == "total":
            return "total/UTC/1"
        return f"{self.period}/{self.time_zone}/{self.week_start if self.period == 'weekly' else 1}"


def effective_limits(own: Iterable[BudgetLimit], plan: Iterable[BudgetLimit]) -> tuple[BudgetLimit, ...]:
    """What admission checks: one limit for each distinct window, the lower where own and plan share it.

    Own and plan budgets of one period in different zones are different windows, and both hold: otherwise an account
    could step over its plan's month by moving its own budget to a zone where the next month has begun.
    Sorted by PERIOD_PRECEDENCE, then by kind.
    """
    lowest: dict[str, BudgetLimit] = {}
    for limit in (*own, *plan):
        present = lowest.get(limit.kind)
        if present is None or limit.hard_limit_microcents < present.hard_limit_microcents:
            lowest[limit.kind] = limit
    return tuple(sorted(lowest.values(), key=lambda limit: (PERIOD_PRECEDENCE.index(limit.period), limit.kind)))
