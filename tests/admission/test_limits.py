"""Each algorithm: what it promises, whatever calls come when."""

from bisect import bisect_left, bisect_right
from dataclasses import replace
from fractions import Fraction
from itertools import accumulate

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.policy.rules import RateLimit
from tests.admission.reference import ADMITTED, RATE, Call, Reference
from tests.admission.script import PREFIX, Script

EPOCH_MS = 1_795_348_800_000
ALGORITHMS = ("fixed_window", "sliding_window", "token_bucket")

limits = st.builds(
    RateLimit,
    name=st.just("limit"),
    key=st.just("account"),
    limit=st.integers(0, 12),
    window_ms=st.sampled_from([1, 7, 60, 100, 1_000, 60_000, 86_400_000]),
    algorithm=st.sampled_from(ALGORITHMS),
    burst=st.integers(0, 20),
)


def call(limit: RateLimit, weight: int = 1, *, tells: bool = False) -> Call:
    """A call of nobody that costs nothing: only the limit is in its way."""
    return Call(limits=[(limit, "key")], weight=weight, tells=tells)


def limiter(name: str = "limit", **fields: object) -> RateLimit:
    given = {"key": "account", "limit": 5, "window_ms": 60_000, "algorithm": "sliding_window", **fields}
    return RateLimit(name=name, **given)  # type: ignore[arg-type]


@given(
    limit=limits,
    steps=st.lists(
        st.tuples(st.floats(0, 2.5), st.lists(st.integers(1, 3), min_size=1, max_size=8)), min_size=1, max_size=25
    ),
    tells=st.booleans(),
)
@settings(max_examples=160, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_admits_refuses_and_tells_what_is_left_exactly_as_the_reference(
    script: Script, limit: RateLimit, steps: list[tuple[float, list[int]]], tells: bool
) -> None:
    script.redis.flushdb()
    reference, now = Reference(), EPOCH_MS
    for windows_passed, weights in steps:
        now += round(windows_passed * limit.window_ms / 3)
        calls = [call(limit, weight, tells=tells) for weight in weights]
        assert script(calls, now=now) == [reference.decide(one, now) for one in calls]


@given(
    limit=st.integers(1, 8),
    window_ms=st.sampled_from([1, 59, 60, 61, 1_000, 3_600_000]),
    gaps=st.lists(st.floats(0, 0.6), min_size=10, max_size=80),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_window_anywhere_holds_more_than_a_sliding_limit(
    script: Script, limit: int, window_ms: int, gaps: list[float]
) -> None:
    script.redis.flushdb()
    sliding = limiter(limit=limit, window_ms=window_ms)
    times = list(accumulate((round(gap * window_ms) for gap in gaps), initial=EPOCH_MS))
    passed = [at for at in times if script([call(sliding)], now=at) == [ADMITTED]]
    for last, at in enumerate(passed):
        assert last + 1 - bisect_right(passed, at - window_ms) <= limit
    # … and what is refused came at most a slice after the last that an exact log would refuse.
    slack_ms = 2 * -(-window_ms // 60) - 1  # the window is made up of whole slices, and the oldest counts as a whole
    for at in set(times) - set(passed):
        assert bisect_right(passed, at) - bisect_left(passed, at - window_ms - slack_ms) >= limit


histories = st.lists(st.tuples(st.floats(0, 0.6), st.integers(1, 3)), min_size=10, max_size=60)


def passed_of(script: Script, limit: RateLimit, history: list[tuple[float, int]]) -> list[tuple[int, int]]:
    """When calls passed and what they weighed; ``history`` has each one's distance from the one before, in windows."""
    script.redis.flushdb()
    now, passed = EPOCH_MS, []
    for gap, weight in history:
        now += round(gap * limit.window_ms)
        if script([call(limit, weight)], now=now) == [ADMITTED]:
            passed.append((now, weight))
    return passed


@given(limit=st.integers(3, 8), window_ms=st.sampled_from([1, 61, 1_000]), history=histories)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_window_anywhere_holds_more_weight_than_a_sliding_limit(
    script: Script, limit: int, window_ms: int, history: list[tuple[float, int]]
) -> None:
    passed = passed_of(script, limiter(limit=limit, window_ms=window_ms), history)
    for begin, _ in passed:
        assert sum(weight for at, weight in passed if begin <= at < begin + window_ms) <= limit


@given(limit=st.integers(3, 8), window_ms=st.sampled_from([1, 61, 1_000]), history=histories)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_fixed_window_holds_its_limit_and_any_other_span_of_its_length_twice_that(
    script: Script, limit: int, window_ms: int, history: list[tuple[float, int]]
) -> None:
    passed = passed_of(script, limiter(limit=limit, window_ms=window_ms, algorithm="fixed_window"), history)
    for begin, _ in passed:
        first = begin // window_ms * window_ms
        assert sum(weight for at, weight in passed if first <= at < first + window_ms) <= limit
        assert sum(weight for at, weight in passed if begin <= at < begin + window_ms) <= 2 * limit


@given(limit=st.integers(1, 8), burst=st.integers(3, 9), window_ms=st.sampled_from([1, 61, 1_000]), history=histories)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_span_holds_more_than_a_bucket_and_what_flows_into_it(
    script: Script, limit: int, burst: int, window_ms: int, history: list[tuple[float, int]]
) -> None:
    bucket = limiter(limit=limit, window_ms=window_ms, algorithm="token_bucket", burst=burst)
    passed = passed_of(script, bucket, history)
    for place, (begin, _) in enumerate(passed):
        total = 0
        for at, weight in passed[place:]:
            total += weight
            assert total <= burst + Fraction((at - begin) * limit, window_ms)


@given(limit=limits.filter(lambda limit: limit.limit > 0), taken=st.integers(0, 20), offset=st.floats(0, 1))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_who_waits_as_told_passes_and_not_a_millisecond_before(
    script: Script, limit: RateLimit, taken: int, offset: float
) -> None:
    script.redis.flushdb()
    script([call(limit)] * taken, now=EPOCH_MS)
    now = EPOCH_MS + round(offset * limit.window_ms)
    [outcome] = script([call(limit)], now=now)
    if outcome == ADMITTED:
        return
    assert isinstance(outcome, list)
    [early] = script([call(limit)], now=now + outcome[2] - 1)
    assert early == [RATE, 0, 1]
    assert script([call(limit)], now=now + outcome[2]) == [ADMITTED]


several = st.lists(
    st.tuples(limits, st.integers(1, 4)), min_size=1, max_size=3, unique_by=lambda one: one[0].algorithm
).map(lambda rows: [(replace(limit, name=limit.algorithm), weight) for limit, weight in rows])


@given(rows=several, steps=st.lists(st.tuples(st.integers(0, 40_000), st.integers(1, 4)), min_size=1, max_size=12))
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_call_weighs_in_each_limit_what_it_weighs_there(
    script: Script, rows: list[tuple[RateLimit, int]], steps: list[tuple[int, int]]
) -> None:
    script.redis.flushdb()
    reference, now = Reference(), EPOCH_MS
    usual = [(limit, "key") for limit, _ in rows]
    by_policy = [(replace(limit, weight=weight), "key") for limit, weight in rows]
    own = [weight for _, weight in rows]
    for step_ms, count in steps:
        now += step_ms
        # The same calls, once weighed by the policy and once by the call; and others that weigh 1 in between.
        calls = [
            Call(limits=by_policy if n % 2 else usual, weights=None if n % 2 else own, tells=n % 3 == 0)
            for n in range(count)
        ]
        calls.append(Call(limits=usual))
        expected = [
            reference.decide(replace(one, limits=usual, weights=own if one is not calls[-1] else None), now)
            for one in calls
        ]
        assert script(calls, now=now) == expected


def test_like_calls_of_one_batch_are_told_one_less_each(script: Script) -> None:
    limits = [(limiter("many", limit=9), "key"), (limiter("cap", algorithm="concurrency", window_ms=0), "key")]
    calls = [Call(hold_id=f"{n:032x}", limits=limits, tells=True) for n in range(6)]
    outcomes = script(calls, now=EPOCH_MS)
    assert outcomes[:5] == [[ADMITTED, [8 - n, 61_000, 4 - n, -1]] for n in range(5)]
    assert outcomes[5] == [RATE, 1, 1000]


def test_who_exposes_nothing_is_answered_a_number(script: Script) -> None:
    told, other = call(limiter("told"), tells=True), call(limiter("other"))
    assert script([other, told, other], now=EPOCH_MS) == [ADMITTED, [ADMITTED, [4, 61_000]], ADMITTED]


def test_a_weight_above_the_limit_never_passes_and_is_told_a_whole_window(script: Script) -> None:
    for algorithm in ("sliding_window", "token_bucket"):
        assert script([call(limiter(algorithm, algorithm=algorithm), weight=6)], now=EPOCH_MS) == [[RATE, 0, 60_000]]


def test_a_clock_that_goes_back_admits_nobody_twice(script: Script) -> None:
    for algorithm in ("sliding_window", "token_bucket"):
        limit = limiter(algorithm, algorithm=algorithm)
        assert script([call(limit)] * 6, now=EPOCH_MS + 30_000)[5] != ADMITTED
        [outcome] = script([call(limit)], now=EPOCH_MS + 20_000)
        assert outcome != ADMITTED


def test_a_lowered_limit_holds_at_once_and_a_raised_one_too(script: Script) -> None:
    for algorithm in ALGORITHMS:
        script([call(limiter(algorithm, algorithm=algorithm))] * 5, now=EPOCH_MS)
        [lowered] = script([call(limiter(algorithm, algorithm=algorithm, limit=3))], now=EPOCH_MS + 10)
        assert lowered != ADMITTED
    for algorithm in ("fixed_window", "sliding_window"):
        assert script([call(limiter(algorithm, algorithm=algorithm, limit=6))], now=EPOCH_MS + 20) == [ADMITTED]


def test_a_changed_window_or_algorithm_starts_afresh_instead_of_failing(script: Script) -> None:
    script([call(limiter(algorithm=algorithm)) for algorithm in (*ALGORITHMS, "concurrency")] * 5, now=EPOCH_MS)
    assert script([call(limiter(algorithm="fixed_window", window_ms=1000))], now=EPOCH_MS) == [ADMITTED]


def test_concurrency_counts_calls_under_way_and_only_those(script: Script) -> None:
    limit = limiter(algorithm="concurrency", limit=2, window_ms=0)
    calls = [Call(hold_id=f"{n:032x}", limits=[(limit, "key")]) for n in range(3)]
    reference = Reference()
    assert script(calls, now=EPOCH_MS) == [reference.decide(one, EPOCH_MS) for one in calls] == [0, 0, [RATE, 0, 1000]]


@pytest.mark.parametrize("algorithm", [*ALGORITHMS, "concurrency"])
def test_every_key_of_a_limit_expires(script: Script, algorithm: str) -> None:
    limit = limiter(algorithm=algorithm)
    one = Call(hold_id="f" * 32, limits=[(limit, "key")])
    script([one], now=None)
    script([one], now=None)
    [key] = script.redis.keys(f"{PREFIX}r:*")
    longest_ms = 86_400_000 if algorithm == "concurrency" else 130_000
    assert 0 < script.redis.pttl(key) <= longest_ms


def test_a_thousand_calls_of_one_limiter_cost_redis_a_handful_of_commands(script: Script) -> None:
    limit = limiter(limit=10_000)
    script([call(limit)], now=EPOCH_MS)
    script.redis.config_resetstat()
    script([call(limit)] * 1000, now=EPOCH_MS)
    commands = sum(one["calls"] for one in script.redis.info("commandstats").values())
    assert commands <= 8
