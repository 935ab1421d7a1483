"""What the relay counts. Every series is resolved once and kept, so that counting costs one addition."""

import time
from typing import TYPE_CHECKING

from gateway.metrics import CountedHistogram
from gateway.policy.rules import Policy
from gateway.policy.verdicts import BudgetExceeded, Denial, RateLimited

if TYPE_CHECKING:
    from gateway.metrics import Counter, Metrics


class Counters:
    """The relay's series, by what they count."""

    def __init__(self, metrics: "Metrics") -> None:
        self._metrics = metrics
        self.connections_open = metrics.gauge("castgate_connections_open")
        self.upstream_connections = metrics.gauge("castgate_upstream_connections")
        self.upstream_addresses = metrics.gauge("castgate_upstream_addresses")
        self.upstream_ejections = metrics.counter("castgate_upstream_ejections_total")
        self.plain_requests = metrics.counter("castgate_requests_total", kind="plain")
        self.policy_requests = metrics.counter("castgate_requests_total", kind="policy")
        self.unidentified_success = metrics.counter("castgate_unidentified_success_total")
        self._requests: dict[str, Counter] = {}
        self._denials: dict[tuple[str, str, str], Counter] = {}
        self._own_answers: dict[int, Counter] = {}
        self._upstream_errors: dict[str, Counter] = {}

    def request(self, kind: str) -> None:
        """A request that is hosted or refused."""
        counter = self._requests.get(kind)
        if counter is None:
            counter = self._requests[kind] = self._metrics.counter("castgate_requests_total", kind=kind)
        counter.add()

    def own_answer(self, status: int) -> None:
        """An answer of the gateway's own, in the upstream's stead."""
        counter = self._own_answers.get(status)
        if counter is None:
            counter = self._own_answers[status] = self._metrics.counter(
                "castgate_own_answers_total", status=str(status)
            )
        counter.add()

    def casts(self, policy: str, status: int) -> CountedHistogram:
        """Calls under a policy that the upstream answered with this status, and how long they took."""
        return CountedHistogram(
            self._metrics.histogram("spell_cast_duration_seconds", policy=policy),
            self._metrics.counter("spell_cast_total", policy=policy, status=str(status)),
        )

    def denial(self, policy: Policy, verdict: Denial) -> None:
        """A call that admission refused."""
        if isinstance(verdict, BudgetExceeded):
            name, label, value = "budget_block_total", "period", verdict.period
        elif isinstance(verdict, RateLimited):
            name, label, value = "rate_limited_total", "limit", verdict.limit_name
        else:
            return  # counted by admission, which knows which store was lost
        counter = self._denials.get((name, policy.name, value))
        if counter is None:
            counter = self._metrics.counter(name, **{"policy": policy.name, label: value})
            self._denials[name, policy.name, value] = counter
        counter.add()

    def measured(self, policy: str, *, is_missing: bool, is_over_hold: bool) -> None:
        """A charged call whose cost was measured: did the answer tell it, and was enough held?"""
        if is_missing:
            self._metrics.counter("castgate_cost_missing_total", policy=policy).add()
        if is_over_hold:
            self._metrics.counter("castgate_cost_over_hold_total", policy=policy).add()

    def upstream_error(self, reason: str) -> None:
        """The upstream was unreachable, failed, or timed out."""
        counter = self._upstream_errors.get(reason)
        if counter is None:
            counter = self._upstream_errors[reason] = self._metrics.counter(
                "castgate_upstream_errors_total", reason=reason
            )
        counter.add()


def wall_clock_ms() -> int:
    """This machine's Unix time, for calls that Redis' clock did not stamp."""
    return time.time_ns() // 1_000_000
