"""What is the same for every call of a policy that ends with the same status: found once, and then looked up."""

from typing import TYPE_CHECKING

from gateway.policy.rules import NEVER_ANSWERED, Policy

if TYPE_CHECKING:
    from gateway.relay.counters import Counters


class Ending:
    """One policy's calls of one status: the upstream's, or one of rules.NEVER_…"""

    __slots__ = ("charge_microcents", "counted", "noted_from_s", "policy", "upstream_status")

    def __init__(self, policy: Policy, status: int, counters: "Counters") -> None:
        self.policy = policy
        self.upstream_status = status if status > 0 else NEVER_ANSWERED  # as the ledger has it
        self.charge_microcents = policy.cost.charge_microcents(status)  # None: not charged
        self.counted = counters.casts(policy.name, status) if status > 0 else None
        # A call that took as long has a line in the log: any call, where the status alone is worth one.
        self.noted_from_s = float("-inf") if status >= policy.log.status_min else policy.log.slow_s


class Endings(dict[tuple[str, int], Ending]):
    """By policy's name and status; whoever looks here sees whether it is that policy still, or one of other rules."""

    def __init__(self, counters: "Counters") -> None:
        super().__init__()
        self._counters = counters

    def found(self, policy: Policy, status: int) -> Ending:
        """The ending for a policy whose own is not here."""
        ending = self[policy.name, status] = Ending(policy, status, self._counters)
        return ending
