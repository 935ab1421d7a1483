"""Budgets, holds and their settling, as the script decides them."""

import struct
from itertools import count

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.client import NEVER_DECODE

from gateway.admission_settle import Seed, Settled
from gateway.policy.rules import RateLimit
from tests.admission.reference import ADMITTED, BUDGET, COLD, OUTSIDE, RATE, STALE, Call, Reference, WindowRow
from tests.admission.script import PREFIX, WORKERS, Script
from tests.redis_accounts import spoil

NOW_MS = 1_795_348_800_000
DAY_MS = 86_400_000
TOTAL, DAILY = "total/UTC/1", "daily/UTC/1"
MAX = 2**53 - 1
PER_MINUTE = RateLimit(name="minute", key="account", limit=3, window_ms=60_000, algorithm="sliding_window")
AT_ONCE = RateLimit(name="at-once", key="account", limit=2, window_ms=0, algorithm="concurrency")

_ids = count(1)


def total(hard_limit: int) -> list[WindowRow]:
    return [(TOTAL, 0, MAX, hard_limit)]


def daily(day: int, hard_limit: int) -> WindowRow:
    return (DAILY, NOW_MS + day * DAY_MS, NOW_MS + (day + 1) * DAY_MS, hard_limit)


def call(windows: list[WindowRow], amount: int = 1, version: int = 1, **fields: object) -> Call:
    hold_id = f"{next(_ids):032x}"
    return Call(account_id="a", version=version, windows=windows, amount=amount, hold_id=hold_id, **fields)  # type: ignore[arg-type]


def seeded(version: int = 1, *, exactly: bool = False, **used: tuple[int, int]) -> Settled:
    settled = Settled()
    usage = {kind: used[name] for name, kind in (("total", TOTAL), ("daily", DAILY)) if name in used}
    settled.seed(Seed(account_id="a", version=version, usage=usage, exactly=exactly))
    return settled


def removed(*hold_ids: str, posted: bool, worker: str = "w1") -> Settled:
    settled = Settled()
    settled.remove(worker, hold_ids, posted=posted)
    return settled


def rate_of(script: Script) -> float:
    """What counts in the sliding window of account "a"."""
    packed = script.redis.execute_command("GET", f"{PREFIX}r:s:cast:minute:60000:a", **{NEVER_DECODE: []})
    counted: float = struct.unpack_from("<d", packed)[0]
    return counted


def test_an_account_that_redis_does_not_know_is_cold_and_nothing_is_written(script: Script) -> None:
    assert script([call(total(5))], now=NOW_MS) == [[COLD]]
    assert script.redis.keys("*a:*") == []


def test_admits_up_to_the_limit_exactly_and_says_what_is_taken(script: Script) -> None:
    outcomes = script([call(total(5), amount=2)] * 3, seeded(total=(0, 1)), now=NOW_MS)
    assert outcomes == [ADMITTED, ADMITTED, [BUDGET, 0, 5]]


def test_every_window_must_have_room_and_the_first_without_is_named(script: Script) -> None:
    windows = [*total(10), daily(0, 4)]
    used = seeded(total=(0, 8), daily=(NOW_MS, 1))
    assert script([call(windows), call(windows), call(windows, 4)], used, now=NOW_MS) == [0, 0, [BUDGET, 0, 10]]
    assert script([call([daily(0, 4)], 2)], now=NOW_MS) == [[BUDGET, 0, 3]]


def test_a_free_call_passes_an_exhausted_budget(script: Script) -> None:
    assert script([call(total(0), amount=0)], seeded(total=(0, 7)), now=NOW_MS) == [ADMITTED]


def test_budget_comes_before_rate_and_rates_in_their_order(script: Script) -> None:
    both = [(PER_MINUTE, "a"), (AT_ONCE, "a")]
    ask = [call(total(10), limits=both) for _ in range(4)]
    # After two calls "at once" is full; after three "minute" would be too; the budget is never the reason here.
    assert script(ask, seeded(total=(0, 0)), now=NOW_MS) == [0, 0, [RATE, 1, 1000], [RATE, 1, 1000]]
    assert script([call(total(2), limits=both)], now=NOW_MS) == [[BUDGET, 0, 2]]


def test_a_denied_call_takes_neither_budget_nor_rate_nor_slot(script: Script) -> None:
    script([], seeded(total=(0, 0)), now=NOW_MS)
    script([call(total(9), limits=[(AT_ONCE, "a"), (PER_MINUTE, "a")]) for _ in range(2)], now=NOW_MS)
    before = script.account("a")
    slots = script.redis.smembers(f"{PREFIX}r:c:cast:at-once:0:a")
    rate = rate_of(script)
    holds = script.holds()
    assert script([call(total(9), limits=[(PER_MINUTE, "a"), (AT_ONCE, "a")])], now=NOW_MS) == [[RATE, 1, 1000]]
    assert script([call(total(2), limits=[(PER_MINUTE, "a")])], now=NOW_MS) == [[BUDGET, 0, 2]]
    assert script.account("a") == before
    assert script.redis.smembers(f"{PREFIX}r:c:cast:at-once:0:a") == slots
    assert rate_of(script) == rate == 2
    assert script.holds() == holds


def test_voiding_gives_everything_back_once(script: Script) -> None:
    one, two = call(total(10), 3, limits=[(AT_ONCE, "a")]), call(total(10), 4, limits=[(AT_ONCE, "a")])
    script([one, two], seeded(total=(0, 0)), now=NOW_MS)
    for _ in range(2):
        script([], removed(one.hold_id, posted=False), now=NOW_MS)
        assert script.account("a")["h"] == "4"
        assert script.holds() == {two.hold_id}
        assert script.redis.smembers(f"{PREFIX}r:c:cast:at-once:0:a") == {two.hold_id}


def test_a_call_that_ends_frees_its_slot_and_holds_what_it_costs(script: Script) -> None:
    one = call(total(10), 5, limits=[(AT_ONCE, "a")])
    script([one], seeded(total=(0, 0)), now=NOW_MS)
    settled = Settled()
    settled.adjust(one.hold_id, 2)
    for _ in range(2):
        script([], settled, now=NOW_MS)
        assert script.account("a")["h"] == "2"
        assert script.redis.scard(f"{PREFIX}r:c:cast:at-once:0:a") == 0
    script([], removed(one.hold_id, posted=True), now=NOW_MS)
    assert script.account("a")["h"] == "0"


def test_posting_moves_held_to_used_in_one_step(script: Script) -> None:
    one = call(total(10), 5)
    script([one], seeded(total=(0, 3)), now=NOW_MS)
    settled = removed(one.hold_id, posted=True)
    settled.use("a", TOTAL, 0, 8)
    assert script([call(total(10), 3)], settled, now=NOW_MS) == [[BUDGET, 0, 8]]
    assert script.account("a") == {"v": "1", "h": "0", f"s:{TOTAL}": "0", f"u:{TOTAL}": "8"}


def test_usage_never_falls_and_an_older_window_never_comes_back(script: Script) -> None:
    script([], seeded(daily=(NOW_MS, 5)), now=NOW_MS)
    for start, used in ((NOW_MS, 3), (NOW_MS - DAY_MS, 9)):
        settled = Settled()
        settled.use("a", DAILY, start, used)
        script([], settled, now=NOW_MS)
        script([], seeded(daily=(start, used)), now=NOW_MS)
        assert script.account("a")[f"u:{DAILY}"] == "5"
    settled = Settled()
    settled.use("a", DAILY, NOW_MS + DAY_MS, 1)
    script([], settled, now=NOW_MS)
    assert script.account("a")[f"u:{DAILY}"] == "1"


def test_a_ledger_that_went_back_in_time_can_be_told_exactly(script: Script) -> None:
    script([], seeded(9, total=(0, 500)), now=NOW_MS)
    script([], seeded(2, exactly=True, total=(0, 5)), now=NOW_MS)
    assert script([call(total(6), version=2)], now=NOW_MS) == [ADMITTED]


def test_older_facts_are_stale_and_newer_facts_are_known_from_then_on(script: Script) -> None:
    script([], seeded(3, total=(0, 0)), now=NOW_MS)
    assert script([call(total(9), version=2)], now=NOW_MS) == [[STALE, 3]]
    assert script([call(total(9), version=4)], now=NOW_MS) == [ADMITTED]
    assert script([call(total(9), version=3)], now=NOW_MS) == [[STALE, 4]]


def test_a_window_that_is_over_or_not_yet_begun_must_be_worked_out_again(script: Script) -> None:
    script([], seeded(daily=(NOW_MS, 0)), now=NOW_MS)
    assert script([call([daily(0, 5)])], now=NOW_MS - 1) == [[OUTSIDE]]
    assert script([call([daily(0, 5)])], now=NOW_MS) == [ADMITTED]
    assert script([call([daily(0, 5)])], now=NOW_MS + DAY_MS) == [[OUTSIDE]]


def test_a_new_window_is_cold_until_it_is_seeded(script: Script) -> None:
    script([], seeded(daily=(NOW_MS, 5)), now=NOW_MS)
    tomorrow = NOW_MS + DAY_MS
    assert script([call([daily(1, 5)])], now=tomorrow) == [[COLD]]
    assert script([call([daily(1, 5)])], seeded(daily=(tomorrow, 0)), now=tomorrow) == [ADMITTED]


def test_without_postgres_a_new_window_begins_at_nothing_and_counts_what_is_posted(script: Script) -> None:
    script([call([daily(0, 5)], 2)], seeded(daily=(NOW_MS, 3)), now=NOW_MS)  # its hold outlives the day
    tomorrow = NOW_MS + DAY_MS
    one, two = call([daily(1, 5)], rolling=True), call([daily(1, 5)], rolling=True)
    assert script([one, two], now=tomorrow) == [ADMITTED, ADMITTED]
    # Postgres is back and has the events; its counter of the new day is not there before somebody seeds it.
    script([], removed(one.hold_id, posted=True), now=tomorrow)
    assert script([call([daily(1, 5)], 2, rolling=True)], now=tomorrow) == [[BUDGET, 0, 4]]
    assert script([call([daily(1, 5)])], now=tomorrow) == [[COLD]]
    assert script([call([daily(1, 5)], 2)], seeded(daily=(tomorrow, 1)), now=tomorrow) == [[BUDGET, 0, 4]]
    script([], removed(two.hold_id, posted=True), now=tomorrow)  # with the counter there, its usage came along
    assert script.account("a")[f"u:{DAILY}"] == "1"


def test_without_postgres_an_unknown_account_stays_cold(script: Script) -> None:
    assert script([call(total(5), rolling=True)], now=NOW_MS) == [[COLD]]
    script([], seeded(), now=NOW_MS)
    assert script([call(total(5), rolling=True)], now=NOW_MS) == [[COLD]]


def test_amounts_up_to_the_largest_are_exact(script: Script) -> None:
    windows = total(MAX)
    script([], seeded(total=(0, MAX - 7)), now=NOW_MS)
    one = call(windows, 3)
    assert script([one, call(windows, 4), call(windows, 1)], now=NOW_MS) == [0, 0, [BUDGET, 0, MAX]]
    script([], removed(one.hold_id, posted=False), now=NOW_MS)
    assert script([call(windows, 4)], now=NOW_MS) == [[BUDGET, 0, MAX - 3]]
    assert script([call(windows, 3)], now=NOW_MS) == [ADMITTED]
    script.redis.flushdb()
    huge = call(windows, MAX - 1)
    assert script([huge, call(windows, 2), call(windows, 1)], seeded(total=(0, 0)), now=NOW_MS) == [
        0, [BUDGET, 0, MAX - 1], 0,
    ]  # fmt: skip
    assert script.account("a")["h"] == str(MAX)
    script([], removed(huge.hold_id, posted=False), now=NOW_MS)
    assert script.account("a")["h"] == "1"


def test_a_batch_of_thousands_of_holds_is_written_and_removed_whole(script: Script) -> None:
    calls = [call(total(MAX)) for _ in range(4000)]
    assert script(calls, seeded(total=(0, 0)), now=NOW_MS) == [ADMITTED] * 4000
    assert len(script.holds()) == 4000
    script([], removed(*(one.hold_id for one in calls), posted=True), now=NOW_MS)
    assert script.holds() == set()
    assert script.account("a")["h"] == "0"


def test_many_calls_of_one_account_cost_redis_a_handful_of_commands(script: Script) -> None:
    script([], seeded(total=(0, 0)), now=NOW_MS)
    script.redis.config_resetstat()
    script([call(total(MAX)) for _ in range(400)], now=NOW_MS)
    assert sum(one["calls"] for one in script.redis.info("commandstats").values()) <= 8


def test_what_an_older_connection_of_the_worker_sent_is_refused(script: Script) -> None:
    script.redis.hset(script.book, "epoch", 2)
    with pytest.raises(redis.ResponseError, match="FENCED"):
        script([call(total(5))], seeded(total=(0, 0)), now=NOW_MS, epoch=1)
    assert script.account("a") == {}
    assert script([call(total(5))], seeded(total=(0, 0)), now=NOW_MS, epoch=2) == [ADMITTED]


def test_a_script_that_may_not_write_changes_nothing(script: Script) -> None:
    one = call(total(10), 3)
    script([one], seeded(total=(0, 0)), now=NOW_MS)
    before = script.account("a"), script.holds()
    script.redis.config_set("maxmemory", "1")
    try:
        with pytest.raises(redis.ResponseError, match="maxmemory"):
            script([call(total(10))], removed(one.hold_id, posted=False), now=NOW_MS)
    finally:
        script.redis.config_set("maxmemory", "0")
    assert (script.account("a"), script.holds()) == before


def test_an_account_is_forgotten_after_a_week_without_calls(script: Script) -> None:
    script([], seeded(total=(0, 0)), now=None)
    week_s = 7 * 86_400
    assert week_s - 10 < script.redis.ttl(f"{PREFIX}a:a") <= week_s
    spoil(script.redis, f"{PREFIX}a:a", "x", 1)  # as if most of it were over
    script.redis.expire(f"{PREFIX}a:a", 100)
    script([call(total(5))], now=None)
    assert script.redis.ttl(f"{PREFIX}a:a") > week_s - 10


def test_orphans_are_found_by_page_and_stay_held_while_their_slots_are_freed(script: Script) -> None:
    calls = [call(total(10), limits=[(AT_ONCE, "a")]) for _ in range(2)]
    script(calls, seeded(total=(0, 0)), now=NOW_MS, beat=True)
    assert script.orphans(60_000, now=NOW_MS + 59_999) == []
    late = NOW_MS + 60_000
    assert script.orphans(60_000, now=late) == ["w1"]
    cursor, *rows = script.orphans(60_000, "w1", now=late)
    assert cursor == "0"
    assert {tuple(rows[at : at + 6]) for at in (0, 6)} == {(one.hold_id, "a", 1, NOW_MS, "cast", "") for one in calls}
    assert script.redis.scard(f"{PREFIX}r:c:cast:at-once:0:a") == 0
    assert script.account("a")["h"] == "2"
    script([], removed(*(one.hold_id for one in calls), posted=True), now=late)
    assert script.account("a")["h"] == "0"
    assert script.orphans(60_000, "w1", now=late) == ["0"]
    assert script.redis.exists(script.book, WORKERS) == 0


def test_a_worker_that_speaks_again_is_left_alone(script: Script) -> None:
    script([call(total(10))], seeded(total=(0, 0)), now=NOW_MS, beat=True)
    script([], now=NOW_MS + 60_000, beat=True)
    assert script.orphans(60_000, "w1", now=NOW_MS + 60_001) == ["0"]
    assert len(script.holds()) == 1


# --- everything at once, against the reference

RATES = [
    PER_MINUTE,
    AT_ONCE,
    RateLimit(name="fixed", key="account", limit=4, window_ms=30_000, algorithm="fixed_window"),
    RateLimit(name="bucket", key="account", limit=6, window_ms=60_000, algorithm="token_bucket", burst=3),
]
asks = st.tuples(
    st.just("ask"),
    st.sampled_from("ab"),  # account
    st.integers(1, 3),  # version
    st.integers(0, 4),  # amount
    st.lists(st.sampled_from(range(4)), max_size=2, unique=True),  # rates
    st.booleans(),  # rolling
)
settles = st.one_of(
    st.tuples(st.just("seed"), st.sampled_from("ab"), st.integers(1, 3), st.integers(0, 12), st.booleans()),
    st.tuples(st.just("use"), st.sampled_from("ab"), st.integers(0, 12)),
    st.tuples(st.just("adjust"), st.integers(0, 30), st.integers(0, 4)),
    st.tuples(st.just("void"), st.integers(0, 30)),
    st.tuples(st.just("post"), st.integers(0, 30)),
)
batches = st.lists(
    st.tuples(
        st.one_of(st.integers(0, 20_000), st.just(DAY_MS)),
        st.lists(settles, max_size=1),
        st.lists(asks, max_size=6),
    ),
    max_size=14,
)


@given(batches=batches)
@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_history_is_decided_as_by_the_reference(script: Script, batches: list[tuple[int, list, list]]) -> None:  # type: ignore[type-arg]
    script.redis.flushdb()
    reference, now, issued = Reference(), NOW_MS, [f"{0:032x}"]
    for account_id in "ab":
        settled = Settled()
        settled.seed(Seed(account_id=account_id, version=1, usage={TOTAL: (0, 0), DAILY: (NOW_MS, 0)}))
        reference.seed(account_id, 1, {TOTAL: (0, 0), DAILY: (NOW_MS, 0)}, exactly=False)
        script([], settled, now=now)
    for step_ms, told, asked in batches:
        now += step_ms
        day = (now - NOW_MS) // DAY_MS
        windows = [*total(12), daily(day, 7)]
        settled = Settled()
        for what, *values in told:
            _tell(what, values, settled, reference, issued, NOW_MS + day * DAY_MS)
        calls = []
        for _, account_id, version, amount, rates, rolling in asked:
            one = call(windows, amount, version, limits=[(RATES[rate], account_id) for rate in rates], rolling=rolling)
            one.account_id = account_id
            issued.append(one.hold_id)
            calls.append(one)
        assert script(calls, settled, now=now) == [reference.decide(one, now) for one in calls]
        assert script.holds() == set(reference.holds)
        for account_id in "ab":
            assert int(script.account(account_id).get("h", 0)) == reference.held(account_id)


def _tell(what: str, values: list, settled: Settled, reference: Reference, issued: list[str], start: int) -> None:  # type: ignore[type-arg]
    if what == "seed":
        account_id, version, used, exactly = values
        usage = {TOTAL: (0, used), DAILY: (start, used // 2)}
        settled.seed(Seed(account_id=account_id, version=version, usage=usage, exactly=exactly))
        reference.seed(account_id, version, usage, exactly=exactly)
    elif what == "use":
        account_id, used = values
        settled.use(account_id, DAILY, start, used)
        reference.use(account_id, {DAILY: (start, used)})
    elif what == "adjust":
        hold_id = issued[values[0] % len(issued)]
        settled.adjust(hold_id, values[1])
        reference.adjust(hold_id, values[1])
    else:
        hold_id = issued[values[0] % len(issued)]
        settled.remove("w1", (hold_id,), posted=what == "post")
        reference.remove(hold_id, posted=what == "post")
