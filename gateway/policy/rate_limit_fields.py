"""What an answer's head tells of rate limits, by the policy's choice: see rules.RATE_LIMIT_HEADERS.

``ietf`` is draft-ietf-httpapi-ratelimit-headers-11: lists of structured fields (RFC 9651), an item for each limit.
``x_ratelimit`` is what many clients know, and has no specification: one limit, and seconds from now. Admitted calls
are told all of their limits, or in ``x_ratelimit`` the one with the least left of what it allows; refused ones the
limit that refused. Nothing is told of what is in shadow, which nobody outside may notice.
"""

from collections.abc import Sequence

from gateway.policy.rules import SHADOW, Policy
from gateway.policy.verdicts import LimitLeft, RateLimited

IETF = "ietf"
X_RATELIMIT = "x_ratelimit"
# Lower case: what makes up each form.
NAMES = {
    IETF: frozenset((b"ratelimit-policy", b"ratelimit")),
    X_RATELIMIT: frozenset((b"x-ratelimit-limit", b"x-ratelimit-remaining", b"x-ratelimit-reset")),
}


def told_places(policy: Policy) -> tuple[int, ...]:
    """Which of the policy's limits admitted calls are told of.

    Calls at once have no place in ``x_ratelimit``: how many are under way when the answer is there nobody can say.
    """
    if policy.rate_limit_headers == "none" or policy.mode == SHADOW:
        return ()
    return tuple(
        place
        for place, limit in enumerate(policy.rate_limits)
        if limit.mode != SHADOW and (limit.window_ms or policy.rate_limit_headers == IETF)
    )


def added(limits: Sequence[LimitLeft], form: str) -> tuple[frozenset[bytes], bytes]:
    """The fields' names in lower case, and their lines; ``limits`` are one or more, in the policy's order."""
    return NAMES[form], (_ietf(limits) if form == IETF else _x(limits)).encode()


def of_refusal(verdict: RateLimited, form: str) -> str:
    """The lines of a 429."""
    if form == "none":
        return ""
    nothing = LimitLeft(verdict.limit_name, verdict.limit, verdict.window_ms, 0, verdict.retry_after_ms)
    return _ietf((nothing,)) if form == IETF else _x((nothing,))


def whole_seconds(duration_ms: int) -> int:
    """Rounded up and at least 1: a client that waits this long must not come too early."""
    return max(1, -(-duration_ms // 1000))


def _ietf(limits: Sequence[LimitLeft]) -> str:
    policies, states = [], []
    for name, limit, window_ms, left, resets_ms in limits:
        if window_ms:  # the fields have whole seconds only
            policies.append(f'"{name}";q={limit};w={whole_seconds(window_ms)}')
            states.append(f'"{name}";r={left};t={whole_seconds(resets_ms)}')
        else:
            policies.append(f'"{name}";q={limit};qu="concurrent-requests"')
            states.append(f'"{name}";r={left}')
    return f"RateLimit-Policy: {', '.join(policies)}\r\nRateLimit: {', '.join(states)}\r\n"


def _x(limits: Sequence[LimitLeft]) -> str:
    least = min(limits, key=_share_left) if len(limits) > 1 else limits[0]
    told = f"X-RateLimit-Limit: {least.limit}\r\nX-RateLimit-Remaining: {least.left}\r\n"
    return f"{told}X-RateLimit-Reset: {whole_seconds(least.resets_ms)}\r\n"


def _share_left(limit: LimitLeft) -> float:
    return limit.left / limit.limit
