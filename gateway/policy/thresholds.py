"""Soft limits: the shares of a budget, and its own soft limit, whose use is announced."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from gateway.policy.budgets import BudgetLimit

# Of a plan that says nothing else.
PERCENTS = (50, 80, 100)
# Of an answer, where a policy has budget_headers; in lower case.
FIELD_NAMES = frozenset((b"x-budget-used-percent", b"x-budget-threshold", b"x-budget-period"))
# The name of the threshold that a budget sets for itself.
SOFT = "soft"


@dataclass(frozen=True, slots=True, kw_only=True)
class Threshold:
    """Reached once ``amount_microcents`` are used; ``name`` is the percent, or SOFT."""

    name: str
    amount_microcents: int


def thresholds_of(
    limits: Iterable[BudgetLimit], soft_limits: Mapping[str, int], percents: Sequence[int]
) -> dict[str, tuple[Threshold, ...]]:
    """The thresholds of an account's effective limits, lowest first, by kind; kinds without any are left out.

    ``soft_limits`` are the account's own, in microcents by kind. A limit of 0 has no shares, and none is reached before
    anything is used. As in soft_limits_announce (queries.sql), which has the last word.
    """
    found: dict[str, tuple[Threshold, ...]] = {}
    for limit in limits:
        amount = limit.hard_limit_microcents
        thresholds = [
            Threshold(name=str(percent), amount_microcents=(amount * percent + 99) // 100)
            for percent in (percents if amount else ())
        ]
        soft = soft_limits.get(limit.kind)
        if soft is not None:
            thresholds.append(Threshold(name=SOFT, amount_microcents=max(soft, 1)))
        if thresholds:
            found[limit.kind] = tuple(sorted(thresholds, key=lambda one: one.amount_microcents))
    return found


class BudgetUse(NamedTuple):
    """How far a budget is used that is past a threshold: the highest one that it has reached."""

    percent: int  # whole ones; of a limit that was lowered, more than 100
    threshold: str
    period: str

    @property
    def lines(self) -> bytes:
        """The field lines of an answer."""
        fields = (
            f"X-Budget-Used-Percent: {self.percent}\r\n"
            f"X-Budget-Threshold: {self.threshold}\r\n"
            f"X-Budget-Period: {self.period}\r\n"
        )
        return fields.encode()


def use_of(limit: BudgetLimit, thresholds: Sequence[Threshold], used_microcents: int) -> BudgetUse | None:
    """None below the first of ``thresholds``, the lowest first."""
    reached = [one.name for one in thresholds if one.amount_microcents <= used_microcents]
    if not reached:
        return None
    amount = limit.hard_limit_microcents
    return BudgetUse(used_microcents * 100 // amount if amount else 100, reached[-1], limit.period)
