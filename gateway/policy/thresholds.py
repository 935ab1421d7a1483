"""Soft limits: the shares of a budget, and its own soft limit, whose use is announced."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from gateway.policy.budgets import BudgetLimit

# Of a plan that says nothing else.
PERCENTS = (50, 80, 100)
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
