"""Shadow mode: what would have been refused is counted and logged, and passes.

A policy in shadow lets every call pass. A limit in shadow is left out for the call that it would refuse, and the rest
of the policy decides that call anew: all that is enforced holds as if the limit were not there, and the limit itself
counts as it will once it is enforced, when refused calls take nothing from it. Only such a call costs a second trip.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

import structlog

from gateway.policy.rules import SHADOW, Policy
from gateway.policy.verdicts import BudgetExceeded, Denial, RateLimited

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.metrics import Counter, Metrics

# A line for each call would be a flood just when there are many; the lines say how many calls they stand for.
LOG_INTERVAL_S = 1.0

_log = structlog.get_logger()


class Shadow:
    """What shadow mode let pass, for one worker."""

    def __init__(self, metrics: "Metrics", now: "Callable[[], float]") -> None:
        self._metrics = metrics
        self._now = now
        self._series: dict[tuple[str, str, str], _Series] = {}
        self._without: dict[tuple[str, str], tuple[Policy, Policy]] = {}

    def passed(self, policy: Policy, denial: Denial, account_id: str) -> None:
        """A call of ``policy`` would have been refused."""
        if isinstance(denial, BudgetExceeded):
            reason, limit = "budget_block", denial.period
        elif isinstance(denial, RateLimited):
            reason, limit = "rate_limited", denial.limit_name
        else:
            return  # no store could decide: counted by admission, which knows which was lost
        key = (policy.name, reason, limit)
        series = self._series.get(key)
        if series is None:
            counter = self._metrics.counter(
                "castgate_would_block_total", policy=policy.name, reason=reason, limit=limit
            )
            series = self._series[key] = _Series(counter)
        series.counter.add()
        series.calls += 1
        now_s = self._now()
        if now_s >= series.quiet_until_s:
            _log.info(
                "would_block", policy=policy.name, reason=reason, limit=limit, calls=series.calls, account_id=account_id
            )
            series.calls = 0
            series.quiet_until_s = now_s + LOG_INTERVAL_S

    def rest_of(self, policy: Policy, denial: Denial) -> Policy | None:
        """What else of the policy is to decide, where the limit that refuses is in shadow; None where it is not."""
        if not isinstance(denial, RateLimited):
            return None
        others = tuple(limit for limit in policy.rate_limits if limit.name != denial.limit_name)
        if not any(limit.name == denial.limit_name and limit.mode == SHADOW for limit in policy.rate_limits):
            return None
        # One object for each rest: admission knows a policy's text by its identity.
        key = (policy.name, "\n".join(limit.name for limit in others))
        whole, rest = self._without.get(key, (None, None))
        if rest is None or whole is not policy:
            rest = replace(policy, rate_limits=others)
            self._without[key] = (policy, rest)
        return rest

    def forget(self) -> None:
        """The rules have changed."""
        self._without.clear()


class _Series:
    __slots__ = ("calls", "counter", "quiet_until_s")

    def __init__(self, counter: "Counter") -> None:
        self.counter = counter
        self.calls = 0  # since the last line
        self.quiet_until_s = 0.0
