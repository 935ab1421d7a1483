"""What an account has left of the policies' free tiers, for ``GET /v1/budgets``."""

from gateway.accounts import Account
from gateway.database import QUERIES
from gateway.hosted.services import Services
from gateway.policy.answers import instant_text
from gateway.policy.periods import FOREVER_MS

# Of one answer, and of the statement behind it; nobody has so many policies with a tier that one account uses.
TIERS_MAX = 100


async def free_tiers_of(services: Services, account: Account) -> list[dict[str, object]]:
    """By what is written, without calls under way; whole units, what is left rounded down. Raises StoreError."""
    now_ms = services.now_ms()
    tiers = [
        (policy.name, policy.cost.free, policy.cost.free.window_at(now_ms))
        for policy in services.rules().policies
        if policy.cost.free is not None
    ][:TIERS_MAX]
    if not tiers:
        return []
    rows = await services.database.fetch(
        QUERIES["free_units_used"],
        [account.account_id] * len(tiers),
        [name for name, _, _ in tiers],
        [tier.kind(name) for name, tier, _ in tiers],
        [window.start_ms for _, _, window in tiers],
        [window.end_ms for _, _, window in tiers],
    )
    return [
        {
            "policy": name,
            "period": tier.period,
            "timezone": tier.time_zone,
            "unit": "call" if tier.is_by_call else "unit",
            "free_units": tier.units // tier.scale,
            "used_units": -(-row["used_units"] // tier.scale),
            "remaining_units": max(0, tier.units - row["used_units"]) // tier.scale,
            "resets_at": None if window.end_ms >= FOREVER_MS else instant_text(window.end_ms),
        }
        for (name, tier, window), row in zip(tiers, rows, strict=True)
    ]
