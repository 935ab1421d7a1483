"""One worker's admission: verdicts, what it learns by itself, and what it tells Redis afterwards."""

import asyncio
import json
from collections import Counter

import pytest
import structlog

from gateway.admission import Ask
from gateway.ledger import UsageEvent
from gateway.policy.budgets import BudgetLimit
from gateway.policy.rules import Plan
from gateway.policy.verdicts import PASS, BudgetExceeded, Hold, RateLimited, StoreUnavailable, Verdict
from tests.admission.conftest import StartWorker
from tests.admission.script import Script
from tests.admission.world import CAST, CENT, Tables, Worker, monthly, per_minute, policy, rules_of

# 2026-11-22T12:00:00Z, a Sunday
NOON_MS = 1_795_348_800_000
DAY_MS = 86_400_000


async def test_admits_exactly_what_the_budget_allows(worker: Worker, tables: Tables) -> None:
    tables.put("a", monthly(5))
    verdicts = await worker.ask_many("a", 12)
    assert Counter(type(verdict) for verdict in verdicts) == {Hold: 5, BudgetExceeded: 7}
    assert len({verdict.hold_id for verdict in verdicts if isinstance(verdict, Hold)}) == 5


async def test_a_refusal_says_which_budget_how_much_and_until_when(start_worker: StartWorker, tables: Tables) -> None:
    worker = await start_worker(test_clock_ms=lambda: NOON_MS)
    tables.put("a", monthly(3))
    await worker.ask_many("a", 3)
    assert await worker.ask("a") == BudgetExceeded(
        period="monthly",
        limit_microcents=3 * CENT,
        used_microcents=3 * CENT,
        cost_microcents=CENT,
        resets_ms=1_796_083_200_000,  # 2026-12-01
        now_ms=NOON_MS,
    )


async def test_a_call_dearer_than_its_hold_is_told_to_redis_at_once(
    start_worker: StartWorker, tables: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And does not wait for company: only a call that follows may bring it otherwise."""
    tables.put("a", monthly(5))
    one, other = await start_worker(), await start_worker()
    cheap, dear = await one.ask("a"), await one.ask("a")
    assert isinstance(cheap, Hold)
    assert isinstance(dear, Hold)
    assert isinstance(await other.ask("a"), Hold)
    await one.settled()
    for pause in ("SETTLE_DELAY_S", "HEARTBEAT_S", "KEEP_S"):
        monkeypatch.setattr(f"gateway.admission_lane.{pause}", 3600.0)
    await asyncio.sleep(0.6)  # timers that ran before
    [lane] = one.admission._lanes
    one.admission.finished(cheap, CENT // 2)
    assert lane.settled.count == 1
    one.admission.finished(dear, 4 * CENT)
    assert lane.settled.count == 0  # on its way, with all that waited
    await one.settled()
    refused = await other.ask("a")
    assert isinstance(refused, BudgetExceeded)
    assert refused.used_microcents == 11 * CENT // 2


async def test_a_total_never_resets(worker: Worker, tables: Tables) -> None:
    tables.put("a", BudgetLimit(period="total", hard_limit_microcents=0))
    verdict = await worker.ask("a")
    assert isinstance(verdict, BudgetExceeded)
    assert verdict.resets_ms is None


async def test_a_hold_bears_the_time_of_redis(start_worker: StartWorker) -> None:
    worker = await start_worker(test_clock_ms=lambda: NOON_MS)
    verdict = await worker.ask("a")
    assert isinstance(verdict, Hold)
    assert (verdict.account_id, verdict.amount_microcents, verdict.admitted_ms) == ("a", CENT, NOON_MS)
    assert len(verdict.hold_id) == 32


async def test_a_free_call_is_let_pass_with_nothing_to_settle(worker: Worker, script: Script) -> None:
    assert await worker.ask("a", policy(cents=0)) is PASS
    assert script.holds() == set()


async def test_a_free_call_with_a_slot_holds_the_slot(worker: Worker) -> None:
    limited = policy(per_minute(1, "concurrency", window_ms=0), cents=0)
    hold = await worker.ask("a", limited)
    assert isinstance(hold, Hold)
    assert isinstance(await worker.ask("a", limited), RateLimited)
    worker.admission.void(hold)
    assert isinstance(await worker.ask("a", limited), Hold)


async def test_a_rate_refusal_names_the_limit_and_the_wait(start_worker: StartWorker) -> None:
    worker = await start_worker(test_clock_ms=lambda: NOON_MS)
    limited = policy(per_minute(2, "fixed_window"))
    await worker.ask_many("a", 2, limited)
    assert await worker.ask("a", limited) == RateLimited(
        policy="cast", limit_name="fixed_window", limit=2, window_ms=60_000, retry_after_ms=60_000
    )


async def test_spent_budget_and_exceeded_rate_at_once_is_the_budget(worker: Worker, tables: Tables) -> None:
    tables.put("a", monthly(2))
    limited = policy(per_minute(2))
    verdicts = await worker.ask_many("a", 9, limited)
    assert Counter(type(verdict) for verdict in verdicts) == {Hold: 2, BudgetExceeded: 7}


async def test_a_plan_changes_the_limits_that_it_names(start_worker: StartWorker, tables: Tables) -> None:
    worker = await start_worker(rules=rules_of(pro=Plan(name="pro", rate_limits={"sliding_window": 4})))
    tables.put("b", plan="pro")
    limited = policy(per_minute(2))
    for account_id, expected in (("a", 2), ("b", 4)):
        verdicts = await worker.ask_many(account_id, 6, limited)
        assert sum(isinstance(verdict, Hold) for verdict in verdicts) == expected
        assert {verdict.limit for verdict in verdicts if isinstance(verdict, RateLimited)} == {expected}


async def test_reloaded_plans_count_from_the_next_call_on(worker: Worker) -> None:
    limited = policy(per_minute(2))
    await worker.ask_many("a", 2, limited)
    worker.use_rules(rules_of(free=Plan(name="free", rate_limits={"sliding_window": 3})))
    assert isinstance(await worker.ask("a", limited), Hold)


async def test_calls_under_two_policies_in_turn_have_the_limits_of_each(worker: Worker) -> None:
    one, other = (policy(per_minute(limit), name=f"of-{limit}") for limit in (2, 4))
    verdicts = [(await worker.ask("a", asked), asked) for _ in range(6) for asked in (one, other)]
    admitted = Counter(asked.name for verdict, asked in verdicts if isinstance(verdict, Hold))
    assert admitted == {"of-2": 2, "of-4": 4}


async def test_a_call_of_nobody_is_limited_by_its_keys_alone(worker: Worker) -> None:
    limited = policy(per_minute(1, key="ip"), cents=0)
    assert await worker.ask(None, limited, keys=("10.0.0.1",)) is PASS
    assert isinstance(await worker.ask(None, limited, keys=("10.0.0.1",)), RateLimited)
    assert await worker.ask(None, limited, keys=("10.0.0.2",)) is PASS


@pytest.mark.parametrize("value", ['quote"d', "back\\slash", "ünïcode", "\udcff\ud800", "x" * 8192, "", "\0"])
async def test_no_key_spoils_the_batch_that_it_travels_in(worker: Worker, value: str) -> None:
    limited = policy(per_minute(1, key="header:x"))
    strange, again, plain = await asyncio.gather(
        worker.asked("a", limited, keys=(value,)),
        worker.asked("a", limited, keys=(value,)),
        worker.asked("a", limited, keys=("plain",)),
    )
    assert [type(one) for one in (strange, again, plain)] == [Hold, RateLimited, Hold]


async def test_strange_account_ids_are_accounts_like_any_other(worker: Worker, tables: Tables) -> None:
    for account_id in ('a"b', "ä€😀", "with space", "{x}"):
        tables.put(account_id, monthly(1))
        hold = await worker.ask(account_id)
        assert isinstance(hold, Hold)
        assert isinstance(await worker.ask(account_id), BudgetExceeded)
        worker.post(hold)
        await worker.settled()
        state = await worker.admission.budget_state(worker.account(account_id))
        assert (state.held_microcents, list(state.used_microcents.values())) == (0, [CENT])


async def test_partitions_keep_accounts_apart_and_each_exact(start_worker: StartWorker, tables: Tables) -> None:
    worker = await start_worker(partitions=5)
    ids = [f"account-{number}" for number in range(20)]
    for account_id in ids:
        tables.put(account_id, monthly(2))
    verdicts = await asyncio.gather(*(worker.asked(account_id) for account_id in ids for _ in range(4)))
    holds = [verdict for verdict in verdicts if isinstance(verdict, Hold)]
    assert Counter(hold.account_id for hold in holds) == dict.fromkeys(ids, 2)
    worker.post(*holds)
    await worker.settled()
    for account_id in ids:
        assert (await worker.admission.budget_state(worker.account(account_id))).held_microcents == 0


async def test_one_callers_fault_does_not_reach_its_neighbours(worker: Worker, tables: Tables) -> None:
    verdicts: list[Verdict] = []

    def fail(_: Verdict) -> None:
        raise ValueError("not mine")

    account = worker.account("a")
    await tables.load([account])
    with structlog.testing.capture_logs() as logs:
        for done in (verdicts.append, fail, verdicts.append):
            worker.admission.ask(Ask(account, CENT, CAST, (), done))
        await worker.ask("a")
    assert [type(verdict) for verdict in verdicts] == [Hold, Hold]
    assert [log["event"] for log in logs if log["log_level"] == "error"] == ["verdict_not_taken"]


async def test_asks_that_come_while_a_call_is_under_way_go_together(worker: Worker) -> None:
    await worker.ask("a")
    calls = worker.metrics.counter("castgate_admission_calls_total", outcome="ok")
    before = calls.value
    await worker.ask_many("a", 200)
    assert calls.value - before <= 4


async def test_a_batch_has_a_bound(start_worker: StartWorker) -> None:
    worker = await start_worker(batch_max=10)
    await worker.ask("a")
    calls = worker.metrics.counter("castgate_admission_calls_total", outcome="ok")
    before = calls.value
    assert all(isinstance(verdict, Hold) for verdict in await worker.ask_many("a", 101))
    assert calls.value - before >= 11


async def test_a_full_queue_refuses_instead_of_growing(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    await worker.ask("a")
    monkeypatch.setattr(worker.admission._lanes[0], "_queue_max", 5)
    verdicts = await worker.ask_many("a", 10)
    assert Counter(type(verdict) for verdict in verdicts) == {Hold: 5, StoreUnavailable: 5}


# --- learning


async def test_many_new_accounts_are_loaded_and_seeded_together(worker: Worker, tables: Tables) -> None:
    ids = [f"account-{number}" for number in range(50)]
    for account_id in ids:
        tables.put(account_id, monthly(1))
    verdicts = await asyncio.gather(*(worker.asked(account_id) for account_id in ids for _ in range(2)))
    assert Counter(type(verdict) for verdict in verdicts) == {Hold: 50, BudgetExceeded: 50}
    # The first ask starts the first statement alone; all others share the next.
    assert len(tables.statements) <= 6


async def test_what_is_known_is_not_asked_again(worker: Worker, tables: Tables) -> None:
    await worker.ask("a")
    tables.statements.clear()
    await worker.ask_many("a", 20)
    assert tables.statements == []


async def test_a_changed_budget_is_honoured_by_the_next_ask_on_every_worker(
    start_worker: StartWorker, tables: Tables
) -> None:
    one, two = await start_worker(), await start_worker()
    tables.put("a", monthly(100))
    for worker in (one, two):
        assert isinstance(await worker.ask("a"), Hold)
    tables.put("a", monthly(2), version=2)
    await one.admission.facts_changed("a", 2)
    for worker in (two, one):
        assert isinstance(await worker.ask("a"), BudgetExceeded)
    tables.put("a", monthly(4), version=3)
    await two.admission.facts_changed("a", 3)
    assert isinstance(await one.ask("a"), Hold)
    assert isinstance(await two.ask("a"), Hold)
    assert isinstance(await one.ask("a"), BudgetExceeded)


async def test_a_budget_added_in_another_time_zone_is_seeded_before_it_counts(worker: Worker, tables: Tables) -> None:
    tables.put("a", monthly(100))
    holds = await worker.ask_many("a", 3)
    worker.post(*holds)
    tables.put(
        "a",
        monthly(100),
        BudgetLimit(period="daily", hard_limit_microcents=3 * CENT, time_zone="Asia/Tokyo"),
        version=2,
    )
    await worker.admission.facts_changed("a", 2)
    verdict = await worker.ask("a")
    assert isinstance(verdict, BudgetExceeded)
    assert (verdict.period, verdict.used_microcents) == ("daily", 3 * CENT)


async def test_facts_that_were_replaced_by_older_ones_are_the_truth_again(worker: Worker, tables: Tables) -> None:
    tables.put("a", monthly(0), version=9)
    assert isinstance(await worker.ask("a"), BudgetExceeded)
    tables.put("a", monthly(5), version=2)  # the ledger was restored from a backup
    worker.account("a").version, worker.account("a").admission = -1, None
    assert isinstance(await worker.ask("a"), Hold)


async def test_a_new_day_begins_with_a_new_budget(start_worker: StartWorker, tables: Tables) -> None:
    now_ms = NOON_MS
    worker = await start_worker(test_clock_ms=lambda: now_ms)
    tables.put("a", BudgetLimit(period="daily", hard_limit_microcents=2 * CENT))
    holds = await worker.ask_many("a", 2)
    assert isinstance(await worker.ask("a"), BudgetExceeded)
    worker.post(*holds)
    now_ms += DAY_MS
    assert [type(verdict) for verdict in await worker.ask_many("a", 3)] == [Hold, Hold, BudgetExceeded]


async def test_a_hold_over_midnight_counts_in_both_days_until_it_is_posted_to_its_own(
    start_worker: StartWorker, tables: Tables
) -> None:
    now_ms = NOON_MS
    worker = await start_worker(test_clock_ms=lambda: now_ms)
    tables.put("a", BudgetLimit(period="daily", hard_limit_microcents=2 * CENT))
    late = await worker.ask("a")
    now_ms += DAY_MS
    assert [type(verdict) for verdict in await worker.ask_many("a", 2)] == [Hold, BudgetExceeded]
    worker.post(late)
    assert isinstance(await worker.ask("a"), Hold)
    assert isinstance(await worker.ask("a"), BudgetExceeded)


async def test_without_postgres_known_accounts_go_on_over_midnight_and_none_is_counted_twice(
    start_worker: StartWorker, tables: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.admission_refresh.ROLLING_S", 0.05)
    now_ms = NOON_MS
    worker = await start_worker(test_clock_ms=lambda: now_ms)
    tables.put("a", BudgetLimit(period="daily", hard_limit_microcents=3 * CENT))
    worker.post(await worker.ask("a"))
    tables.is_away = True
    now_ms += DAY_MS
    holds = await worker.ask_many("a", 2)
    assert [type(verdict) for verdict in holds] == [Hold, Hold]
    tables.is_away = False
    worker.post(*holds)
    await asyncio.sleep(0.06)
    assert [type(verdict) for verdict in await worker.ask_many("a", 2)] == [Hold, BudgetExceeded]
    assert ("seed", 1) in tables.statements


@pytest.mark.parametrize(
    ("on_store_failure", "expected"), [("allow", PASS), ("deny", StoreUnavailable(retry_after_ms=1000))]
)
async def test_without_postgres_an_unknown_account_is_decided_by_the_policy(
    worker: Worker, tables: Tables, on_store_failure: str, expected: Verdict
) -> None:
    tables.is_away = True
    assert await worker.ask("a", policy(on_store_failure=on_store_failure)) == expected


async def test_without_postgres_known_accounts_stay_exact(worker: Worker, tables: Tables) -> None:
    tables.put("a", monthly(3))
    await worker.ask("a")
    tables.is_away = True
    assert [type(verdict) for verdict in await worker.ask_many("a", 3)] == [Hold, Hold, BudgetExceeded]


async def test_without_postgres_accounts_that_changed_stay_exact_by_what_was_known(
    worker: Worker, tables: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.admission_refresh.ROLLING_S", 0.2)
    tables.put("a", monthly(3))
    await worker.ask("a")
    tables.put("a", monthly(4), version=2)
    await worker.admission.facts_changed("a", 2)
    tables.is_away = True
    assert await worker.ask("a", policy(on_store_failure="deny")) == StoreUnavailable(retry_after_ms=1000)
    assert [type(verdict) for verdict in await worker.ask_many("a", 3)] == [Hold, Hold, BudgetExceeded]
    # Another change is looked for at once.
    tables.is_away = False
    tables.put("a", monthly(5), version=3)
    await worker.admission.facts_changed("a", 3)
    assert [type(verdict) for verdict in await worker.ask_many("a", 3)] == [Hold, Hold, BudgetExceeded]


async def test_without_postgres_what_was_known_of_a_changed_account_counts_for_a_moment(
    worker: Worker, tables: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.admission_refresh.ROLLING_S", 0.05)
    tables.put("a", monthly(1))
    await worker.ask("a")
    tables.put("a", monthly(2), version=2)
    await worker.admission.facts_changed("a", 2)
    tables.is_away = True
    assert isinstance(await worker.ask("a"), BudgetExceeded)
    tables.is_away = False
    await asyncio.sleep(0.06)
    assert [type(verdict) for verdict in await worker.ask_many("a", 2)] == [Hold, BudgetExceeded]


async def test_an_ask_that_never_finds_rest_is_given_up(worker: Worker, tables: Tables, script: Script) -> None:
    async def forget(*_: object) -> dict[str, dict[str, int]]:
        return {"a": {}}

    tables.put("a", monthly(3))
    tables.seed = forget  # type: ignore[method-assign,assignment]
    assert isinstance(await worker.ask("a"), StoreUnavailable)


# --- settling


async def test_a_voided_call_gives_its_budget_back(worker: Worker, tables: Tables) -> None:
    tables.put("a", monthly(1))
    for _ in range(3):
        hold = await worker.ask("a")
        assert isinstance(hold, Hold)
        assert isinstance(await worker.ask("a"), BudgetExceeded)
        worker.admission.void(hold)
        worker.admission.void(hold)


async def test_a_posted_call_stays_spent(worker: Worker, tables: Tables) -> None:
    tables.put("a", monthly(2))
    worker.post(await worker.ask("a"))
    assert isinstance(await worker.ask("a"), Hold)
    assert isinstance(await worker.ask("a"), BudgetExceeded)
    await worker.settled()
    state = await worker.admission.budget_state(worker.account("a"))
    assert (dict(state.used_microcents), state.held_microcents) == ({"monthly/UTC/1": CENT}, CENT)


async def test_a_call_that_cost_less_frees_the_rest_before_the_ledger_has_it(worker: Worker, tables: Tables) -> None:
    tables.put("a", monthly(3))
    dear = policy(cents=3)
    hold = await worker.ask("a", dear)
    assert isinstance(hold, Hold)
    worker.admission.finished(hold, CENT)
    assert [type(verdict) for verdict in await worker.ask_many("a", 3)] == [Hold, Hold, BudgetExceeded]


async def test_a_slot_is_free_when_the_call_ends_not_when_it_is_posted(worker: Worker) -> None:
    limited = policy(per_minute(1, "concurrency", window_ms=0))
    hold = await worker.ask("a", limited)
    assert isinstance(hold, Hold)
    assert isinstance(await worker.ask("a", limited), RateLimited)
    worker.admission.finished(hold, CENT)
    assert isinstance(await worker.ask("a", limited), Hold)


async def test_events_that_the_ledger_gave_up_hold_nothing(worker: Worker, tables: Tables) -> None:
    tables.put("a", monthly(1))
    hold = await worker.ask("a")
    assert isinstance(hold, Hold)
    worker.admission.dropped([UsageEvent(hold.hold_id, "a", "cast", hold.admitted_ms, CENT, 200, "posted")])
    assert isinstance(await worker.ask("a"), Hold)


async def test_the_state_of_budgets_is_told_also_before_the_first_call(worker: Worker, tables: Tables) -> None:
    tables.put("a", monthly(2))
    state = await worker.admission.budget_state(worker.account("a"))
    assert (dict(state.used_microcents), state.held_microcents) == ({"monthly/UTC/1": 0}, 0)


async def test_closing_tells_redis_what_was_settled_last(start_worker: StartWorker, script: Script) -> None:
    worker = await start_worker("w1")
    hold = await worker.ask("a")
    assert script.holds() != set()
    worker.post(hold)
    await worker.admission.close()
    assert script.holds() == set()
    assert script.account("a")["h"] == "0"


async def test_scripts_that_redis_forgot_are_loaded_again(worker: Worker, script: Script) -> None:
    await worker.ask("a")
    script.redis.script_flush()
    assert isinstance(await worker.ask("a"), Hold)


async def test_a_flushed_redis_is_seeded_again_from_the_ledger(worker: Worker, tables: Tables, script: Script) -> None:
    tables.put("a", monthly(3))
    worker.post(*await worker.ask_many("a", 2))
    await worker.settled()
    script.redis.flushdb()
    await worker.serving()
    assert [type(verdict) for verdict in await worker.ask_many("a", 2)] == [Hold, BudgetExceeded]


async def test_metrics_say_what_became_of_asks_and_holds(worker: Worker, tables: Tables) -> None:
    tables.put("a", monthly(2))
    holds = await worker.ask_many("a", 3)
    worker.post(holds[0])
    assert isinstance(holds[1], Hold)
    worker.admission.void(holds[1])
    await worker.settled()
    lane = worker.admission._lanes[0]
    await lane.call("DEL", lane.account_key("a"))
    assert isinstance(await worker.ask("a"), Hold)
    outcomes = {
        name: worker.metrics.counter("castgate_admission_outcomes_total", outcome=name).value
        for name in ("admitted", "budget", "cold")
    }
    settled = {
        how: worker.metrics.counter("castgate_holds_settled_total", how=how).value for how in ("posted", "voided")
    }
    assert json.dumps((outcomes, settled)) == json.dumps(
        ({"admitted": 3, "budget": 1, "cold": 1}, {"posted": 1, "voided": 1})
    )


async def test_calls_that_count_twice_for_a_moment_refuse_nobody(
    start_worker: StartWorker, tables: Tables, script: Script
) -> None:
    tables.put("a", monthly(10))
    one, two = await start_worker("one"), await start_worker("two")
    holds = await one.ask_many("a", 8)
    await two.ask("a")
    events = [
        UsageEvent(hold.hold_id, "a", "cast", hold.admitted_ms, hold.amount_microcents, 200, "posted")
        for hold in holds
        if isinstance(hold, Hold)
    ]
    usages = tables.record(events)
    # Another worker's write tells Redis of the sum, before the one whose calls they were takes their holds away.
    two.admission.posted([], usages)
    await two.settled()
    assert script.account("a")["u:monthly/UTC/1"] == str(8 * CENT)
    assert script.account("a")["h"] == str(9 * CENT)
    asked = two.asked("a")
    await asyncio.sleep(0.02)
    one.admission.posted(events, usages)
    assert isinstance(await asked, Hold)
    assert isinstance(await two.ask("a"), BudgetExceeded)


async def test_who_is_over_the_limit_to_stay_is_refused_at_once_from_the_second_time_on(
    worker: Worker, tables: Tables
) -> None:
    tables.put("a", monthly(10))
    worker.post(*await worker.ask_many("a", 8))
    await worker.settled()
    tables.put("a", monthly(5), version=2)
    await worker.admission.facts_changed("a", 2)
    assert isinstance(await worker.ask("a"), BudgetExceeded)
    verdicts: list[Verdict] = []
    ask = Ask(worker.account("a"), CENT, policy(), (), verdicts.append)
    worker.admission.ask(ask)
    while not verdicts:
        await asyncio.sleep(0)
    assert isinstance(verdicts[0], BudgetExceeded)
    assert ask.doubts == 0


async def test_calls_that_arrive_in_one_turn_of_the_loop_go_together(worker: Worker) -> None:
    await worker.ask("a")
    lane = worker.admission._lanes[0]
    await worker.settled()
    served = lane.served
    verdicts = await worker.ask_many("a", 9)
    assert {type(verdict) for verdict in verdicts} == {Hold}
    assert worker.metrics.histogram("castgate_admission_batch_size").count == 2
    assert lane.served - served <= 2  # and perhaps one that says that the worker lives
