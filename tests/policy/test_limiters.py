"""Rate limits in memory decide as the script in Redis does: both are held to the same reference."""

from hypothesis import given
from hypothesis import strategies as st

from gateway.policy.limiters import SLOT_WAIT_MS, Limiters
from gateway.policy.rules import RateLimit
from tests.admission.reference import Reference

NOW_MS = 1_795_348_800_000
LIMITS = [
    RateLimit(name="fixed", key="account", limit=4, window_ms=30_000, algorithm="fixed_window"),
    RateLimit(name="sliding", key="account", limit=3, window_ms=60_000, algorithm="sliding_window"),
    RateLimit(name="short", key="account", limit=5, window_ms=100, algorithm="sliding_window"),
    RateLimit(name="bucket", key="account", limit=6, window_ms=60_000, algorithm="token_bucket", burst=3),
]
steps = st.lists(
    st.tuples(
        st.integers(0, 3),
        st.sampled_from("ab"),
        st.one_of(st.integers(0, 50), st.integers(0, 40_000)),
        st.integers(1, 4),
    ),
    max_size=60,
)


@given(steps=steps)
def test_any_history_waits_as_the_reference_says(steps: list[tuple[int, str, int, int]]) -> None:
    limiters, reference, now = Limiters(), Reference(), NOW_MS
    for place, key, step_ms, weight in steps:
        now += step_ms
        limit = LIMITS[place]
        limiter = limiters.of("cast", limit, limit.limit, key)
        wait_ms = limiter.wait_ms(limit.limit, weight, now)
        assert wait_ms == reference.wait(limit, key, weight, now)
        if wait_ms == 0:
            limiter.take(weight, now)
            reference.passed.setdefault((limit.name, key), []).append((now, weight))


def test_slots_are_taken_and_given_back() -> None:
    limit = RateLimit(name="at-once", key="account", limit=2, window_ms=0, algorithm="concurrency")
    limiters = Limiters()
    limiter = limiters.of("cast", limit, 2, "a")
    limiter.take(1, 0)
    limiter.take(1, 0)
    assert limiter.wait_ms(2, 1, 0) == SLOT_WAIT_MS
    limiter.give_back(1)
    assert limiter.wait_ms(2, 1, 0) == 0
    limiters.forget_slots()
    assert limiters.of("cast", limit, 1, "a").wait_ms(1, 1, 0) == 0


@given(place=st.integers(0, 3), weight=st.integers(1, 3))
def test_what_is_given_back_was_never_taken(place: int, weight: int) -> None:
    limit = LIMITS[place]
    limiter = Limiters().of("cast", limit, limit.limit, "a")
    limiter.take(weight, NOW_MS)
    limiter.give_back(weight)
    assert limiter.wait_ms(limit.limit, min(limit.limit, limit.burst or limit.limit), NOW_MS) == 0


def test_the_number_of_limiters_is_bounded() -> None:
    from gateway.policy import limiters as module

    limiters = Limiters()
    limit = LIMITS[0]
    first = limiters.of("cast", limit, 4, "first")
    for number in range(module.LIMITERS_MAX):
        limiters.of("cast", limit, 4, str(number))
    assert limiters.of("cast", limit, 4, "first") is not first
