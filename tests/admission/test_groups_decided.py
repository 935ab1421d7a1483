"""A group is decided as its calls would be one by one: the same outcomes, and the same left behind."""

import random
from collections.abc import Sequence

import pytest
from redis.client import NEVER_DECODE

from gateway.policy.money import MICROCENTS_MAX
from gateway.policy.rules import RateLimit
from tests.admission.reference import Outcome
from tests.admission.script import PREFIX, Script, asks_of
from tests.admission.test_script import NOW_MS, call, seeded, total
from tests.redis_accounts import holds_in

NUMBERS = [1, 2, 5, 29, 30, 31, 60, 61]  # of like calls, one after the other in a batch
AMOUNTS = [3, 10**6, MICROCENTS_MAX // 62, MICROCENTS_MAX // 31 + 1, MICROCENTS_MAX // 30, 2**52, MICROCENTS_MAX]


def limit_near(choose: random.Random, name: str, number: int, weight: int) -> RateLimit:
    """One that so many calls of that weight pass, or nearly, or by far."""
    algorithm = choose.choice(["fixed_window", "sliding_window", "token_bucket"])
    room = max(1, choose.choice([number * weight + choose.choice([-weight, -1, 0, 1]), 10 * number * weight]))
    is_burst = algorithm == "token_bucket" and choose.random() < 0.5
    limit = choose.choice([1, 7, room]) if is_burst else room
    window_ms = choose.choice([1000, 60_000])
    burst = room if is_burst else None
    return RateLimit(name=name, key="account", limit=limit, window_ms=window_ms, algorithm=algorithm, burst=burst)


def left_behind(script: Script) -> dict[str, object]:
    """All but the books."""
    keys: list[str] = script.redis.keys(f"{PREFIX}[ar]:*")  # type: ignore[assignment]
    return {key: script.redis.execute_command("GET", key, **{NEVER_DECODE: []}) for key in keys}


def decided(
    script: Script,
    *,
    hard_limit: int,
    amount: int,
    limits: Sequence[RateLimit],
    weights: Sequence[int],
    batches: Sequence[tuple[int, Sequence[int]]],
    is_grouped: bool,
) -> tuple[list[Outcome], dict[str, object]]:
    script.redis.flushdb()
    script([], seeded(total=(0, 0)), now=NOW_MS)
    outcomes: list[Outcome] = []
    admitted = set()
    for at_ms, numbers in batches:
        calls = []
        for place, number in enumerate(numbers):
            one = amount - place % 2  # calls that stand next to each other differ
            rates = [(limit, "a") for limit in limits]
            calls += [call(total(hard_limit), one, limits=rates, weights=weights or None) for _ in range(number)]
        asks = asks_of(calls)
        for ask in asks:
            ask.shape.has_groups = is_grouped
        before = len(outcomes)
        for outcome in script.reply_to(asks, now=NOW_MS + at_ms)[1:]:
            outcomes += [0] * outcome if isinstance(outcome, int) and outcome else [outcome]
        admitted |= {ask.hold_id for ask, outcome in zip(asks, outcomes[before:], strict=True) if outcome == 0}
        assert holds_in(script.redis, script.book) == admitted
    return outcomes, left_behind(script)


@pytest.mark.parametrize("seed", range(4))
def test_a_group_is_decided_as_its_calls_one_by_one(script: Script, seed: int) -> None:
    choose = random.Random(seed)
    for _ in range(30):
        batches = [
            (at_ms, choose.sample(NUMBERS, choose.choice([1, 2]))) for at_ms in (0, choose.choice([0, 500, 2000]))
        ]
        number, amount = sum(batches[0][1]), choose.choice(AMOUNTS)
        weights = [choose.choice([1, 2, 31, 10**6]) for _ in range(choose.choice([0, 0, 1, 2]))]
        limits = [limit_near(choose, f"r{place}", number, weight) for place, weight in enumerate(weights)]
        room = number * amount + choose.choice([-amount, -1, 0, 1, 10 * amount])
        case = {"amount": amount, "limits": limits, "weights": weights, "batches": batches}
        case["hard_limit"] = min(room, MICROCENTS_MAX)
        by_groups, alone = (decided(script, **case, is_grouped=is_grouped) for is_grouped in (True, False))  # type: ignore[arg-type]
        assert by_groups == alone, case
