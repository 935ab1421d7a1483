"""The kinds of free tiers: what they are made of, and what can be read from them again."""

import pytest

from gateway.policy.free_tier import FreeTier, is_tier, tier_parts


@pytest.mark.parametrize(
    ("tier", "expected"),
    [
        (FreeTier(units=1, period="daily", time_zone="America/Argentina/Jujuy"), "daily/America/Argentina/Jujuy/1"),
        (FreeTier(units=1, period="weekly", time_zone="Europe/Berlin", week_start=7), "weekly/Europe/Berlin/7"),
        (FreeTier(units=1, period="total", time_zone="Europe/Berlin", week_start=7), "total/UTC/1"),
    ],
)
def test_a_kind_names_its_policy_and_its_windows(tier: FreeTier, expected: str) -> None:
    kind = tier.kind("cast")
    assert is_tier(kind)
    assert tier_parts(kind) == ("cast", expected)
