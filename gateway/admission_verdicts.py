"""Denials of admission, out of what the script or a lower rung has said."""

from gateway.admission_batch import Ask, Known
from gateway.policy.periods import FOREVER_MS
from gateway.policy.verdicts import BudgetExceeded, RateLimited


def rate_limited(ask: Ask, place: int, wait_ms: int) -> RateLimited:
    limit = ask.policy.rate_limits[place]
    return RateLimited(
        policy=ask.policy.name,
        limit_name=limit.name,
        limit=ask.shape.limits[place],
        window_ms=limit.window_ms,
        retry_after_ms=wait_ms,
        weight=ask.weighs[place],
        burst=limit.burst,
    )


def budget_exceeded(known: Known, place: int, taken: int, need: int, now_ms: int) -> BudgetExceeded:
    limit, window = known.limits[place], known.windows[place]
    return BudgetExceeded(
        period=limit.period,
        limit_microcents=limit.hard_limit_microcents,
        used_microcents=taken,
        cost_microcents=need,
        resets_ms=None if window.end_ms >= FOREVER_MS else window.end_ms,
        now_ms=now_ms,
    )
