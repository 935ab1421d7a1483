"""What admission answers. A denial is a value that carries its reason; faults are exceptions.

Precedence, tested: budgets before rate limits; among budgets PERIOD_PRECEDENCE; among rate limits the policy's order.
"""

from dataclasses import dataclass
from typing import NamedTuple


class LimitLeft(NamedTuple):
    """What a rate limit has left, this call counted; ``resets_ms`` from now there is more, as lua/limits_*.lua say."""

    limit_name: str
    limit: int
    window_ms: int  # 0: of calls at once, and ``resets_ms`` means nothing
    left: int
    resets_ms: int


class Hold(NamedTuple):
    """Budget taken for one call until the ledger has it; ``hold_id`` is a UUIDv7 in hex, made before the act.

    A tuple, because one is made for every call.
    """

    hold_id: str
    account_id: str
    amount_microcents: int
    admitted_ms: int
    limits_left: tuple[LimitLeft, ...] = ()  # of those that the policy tells


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetExceeded:
    """402. ``used_microcents`` includes what other calls hold; ``resets_ms`` is None where the budget never resets."""

    period: str
    limit_microcents: int
    used_microcents: int
    cost_microcents: int
    resets_ms: int | None
    now_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimited:
    """429. ``window_ms`` is 0 for a concurrency limit; ``weight`` is the call's in this limit.

    ``burst`` is what a token bucket holds at most, where that is not ``limit``.
    """

    policy: str
    limit_name: str
    limit: int
    window_ms: int
    retry_after_ms: int
    weight: int = 1
    burst: int = 0

    @property
    def never_passes(self) -> bool:
        """Whether a call of this weight is refused however long it waits."""
        return self.weight > (self.burst or self.limit)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreUnavailable:
    """503: no store could decide, and the policy says ``on_store_failure: deny``."""

    retry_after_ms: int


# Admitted with nothing held: no policy cost, no identified account, or a store failure that lets calls pass.
@dataclass(frozen=True, slots=True)
class Pass:
    """Admitted without a hold."""

    limits_left: tuple[LimitLeft, ...] = ()


PASS = Pass()
Denial = BudgetExceeded | RateLimited | StoreUnavailable
Verdict = Hold | Pass | Denial
