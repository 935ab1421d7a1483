"""What an account's owner does with budgets."""

import asyncio
import json
from decimal import Decimal
from typing import Any

import asyncpg

from gateway.policy.budgets import BudgetLimit
from gateway.policy.free_tier import free_tier
from gateway.policy.rules import Cost, Plan, Policy, Rules
from gateway.policy.verdicts import BudgetExceeded, Hold
from tests.hosted.world import CENT, Call, World, add_account, charge

BODY = {
    "period": "monthly",
    "hard_limit_cents": 1000,
    "soft_limit_cents": 800,
    "timezone": "Asia/Tokyo",
}


async def budgets(call: Call, **more: Any) -> list[dict[str, Any]]:
    answer = await call("GET", "/v1/budgets", **more)
    assert answer.status == 200
    listed: list[dict[str, Any]] = (await answer.json())["budgets"]
    return listed


async def test_an_account_without_budgets_sees_what_its_plan_allows(call: Call, world: World) -> None:
    answer = await call("GET", "/v1/budgets")
    assert await answer.json() == {
        "account_id": world.account_id,
        "plan": "free",
        "budgets": [
            {
                "period": "monthly",
                "hard_limit_cents": 500,
                "soft_limit_cents": None,
                "timezone": "UTC",
                "week_start": "monday",
                "source": "plan",
                "effective_limit_cents": 500,
                "used_cents": 0,
                "held_cents": 0,
                "remaining_cents": 500,
                "window_start": "2026-11-01T00:00:00Z",
                "resets_at": "2026-12-01T00:00:00Z",
            }
        ],
    }
    assert answer.headers["Cache-Control"] == "no-store"


async def test_a_created_budget_is_answered_whole_and_found_where_location_says(call: Call) -> None:
    answer = await call("POST", "/v1/budgets", json=BODY)
    assert answer.status == 201
    assert answer.headers["Location"] == "/v1/budgets?period=monthly"
    created = await answer.json()
    assert created == {
        "period": "monthly",
        "hard_limit_cents": 1000,
        "soft_limit_cents": 800,
        "timezone": "Asia/Tokyo",
        "week_start": "monday",
        "source": "account",
        "effective_limit_cents": 500,
        "used_cents": 0,
        "held_cents": 0,
        "remaining_cents": 500,
        "window_start": "2026-10-31T15:00:00Z",
        "resets_at": "2026-11-30T15:00:00Z",
    }
    found = await call("GET", answer.headers["Location"])
    assert (await found.json())["budgets"][0] == created


async def test_a_period_has_one_budget(call: Call) -> None:
    await call("POST", "/v1/budgets", json=BODY)
    answer = await call("POST", "/v1/budgets", json={**BODY, "hard_limit_cents": 900})
    assert answer.status == 409
    assert await answer.json() == {
        "error": "conflict",
        "message": "The monthly budget exists already; PUT replaces it.",
        "details": [{"field": "period", "found": '"monthly"', "expected": "a period that has no budget yet"}],
    }
    assert (await budgets(call))[0]["hard_limit_cents"] == 1000


async def test_of_two_that_create_at_once_one_is_told_of_the_conflict(call: Call, world: World) -> None:
    answers = await asyncio.gather(*(call("POST", "/v1/budgets", json=BODY) for _ in range(8)))
    assert sorted(answer.status for answer in answers) == [201] + [409] * 7
    assert world.admission.changes == [(world.account_id, 1)]


async def test_put_replaces_the_whole_budget(call: Call) -> None:
    await call("POST", "/v1/budgets", json=BODY)
    answer = await call("PUT", "/v1/budgets", json={"period": "monthly", "hard_limit_cents": 0.25})
    assert answer.status == 200
    replaced = await answer.json()
    assert (replaced["hard_limit_cents"], replaced["soft_limit_cents"], replaced["timezone"]) == (0.25, None, "UTC")


async def test_what_get_shows_can_be_put_back(call: Call) -> None:
    await call("POST", "/v1/budgets", json={**BODY, "period": "weekly", "week_start": "sunday"})
    shown = (await budgets(call))[0]
    body = {key: shown[key] for key in ("period", "hard_limit_cents", "soft_limit_cents", "timezone", "week_start")}
    answer = await call("PUT", "/v1/budgets", json=body)
    assert await answer.json() == shown


async def test_put_does_not_create(call: Call, world: World) -> None:
    answer = await call("PUT", "/v1/budgets", json=BODY)
    assert answer.status == 404
    assert await answer.json() == {
        "error": "not_found",
        "message": "The account has no monthly budget of its own; POST creates it.",
        "details": [{"field": "period", "found": '"monthly"', "expected": "a period that has a budget"}],
    }
    assert world.admission.changes == []


async def test_a_removed_budget_leaves_the_plan_in_force(call: Call) -> None:
    await call("POST", "/v1/budgets", json=BODY)
    answer = await call("DELETE", "/v1/budgets?period=monthly")
    assert answer.status == 204
    assert await answer.read() == b""
    assert [(budget["period"], budget["source"]) for budget in await budgets(call)] == [("monthly", "plan")]
    again = await call("DELETE", "/v1/budgets?period=monthly")
    assert again.status == 404


async def test_admission_hears_of_every_change_with_a_version_that_rises(call: Call, world: World) -> None:
    await call("POST", "/v1/budgets", json=BODY)
    await call("PUT", "/v1/budgets", json=BODY)
    await call("DELETE", "/v1/budgets?period=monthly")
    assert world.admission.changes == [(world.account_id, 1), (world.account_id, 2), (world.account_id, 3)]


async def test_admission_is_told_after_the_commit_and_before_the_answer(call: Call, world: World) -> None:
    seen: list[int] = []

    async def facts_changed(account_id: str, version: int) -> None:
        row = await world.database.fetchrow(
            "SELECT facts_version FROM billing_accounts WHERE account_id = $1", account_id
        )
        assert row is not None
        seen.append(row["facts_version"])
        telling.set()
        await told.wait()

    async def create() -> None:
        assert (await call("POST", "/v1/budgets", json=BODY)).status == 201

    telling, told = asyncio.Event(), asyncio.Event()
    world.admission.facts_changed = facts_changed  # type: ignore[method-assign]
    async with asyncio.TaskGroup() as group:
        creating = group.create_task(create())
        await telling.wait()
        assert not creating.done()
        told.set()
    assert seen == [1]


async def test_changes_at_once_each_have_a_version_of_their_own(call: Call, world: World) -> None:
    bodies = [{"period": period, "hard_limit_cents": 1} for period in ("daily", "weekly", "monthly", "total")]
    answers = await asyncio.gather(*(call("POST", "/v1/budgets", json=body) for body in bodies))
    assert [answer.status for answer in answers] == [201] * 4
    assert sorted(version for _, version in world.admission.changes) == [1, 2, 3, 4]


async def test_own_budgets_come_before_the_plans_and_each_in_order_of_length(call: Call) -> None:
    for period in ("total", "weekly", "daily"):
        await call("POST", "/v1/budgets", json={"period": period, "hard_limit_cents": 7})
    listed = [(budget["period"], budget["source"]) for budget in await budgets(call)]
    assert listed == [("daily", "account"), ("weekly", "account"), ("total", "account"), ("monthly", "plan")]


async def test_a_total_has_no_beginning_and_no_end_whatever_its_zone(call: Call) -> None:
    body = {"period": "total", "hard_limit_cents": 5, "timezone": "Asia/Tokyo"}
    created = await (await call("POST", "/v1/budgets", json=body)).json()
    assert (created["timezone"], created["window_start"], created["resets_at"]) == ("UTC", None, None)


async def test_a_week_begins_on_the_day_asked_for(call: Call) -> None:
    body = {"period": "weekly", "hard_limit_cents": 5, "week_start": "sunday"}
    created = await (await call("POST", "/v1/budgets", json=body)).json()
    # The clock stands at a Sunday's noon: the week has just begun.
    assert (created["window_start"], created["resets_at"]) == ("2026-11-22T00:00:00Z", "2026-11-29T00:00:00Z")


async def test_used_is_the_ledgers_sum_in_the_window(call: Call, world: World) -> None:
    await world.spend(3)
    await world.spend(4, at=world.now.replace(day=1, hour=0))
    await world.spend(90, at=world.now.replace(month=10, day=31))
    await call("POST", "/v1/budgets", json={"period": "daily", "hard_limit_cents": 10})
    daily, monthly = await budgets(call)
    assert (daily["used_cents"], daily["remaining_cents"]) == (3, 7)
    assert (monthly["used_cents"], monthly["remaining_cents"]) == (7, 493)


async def test_what_is_held_counts_against_what_remains_and_is_used_once_it_is_posted(call: Call, world: World) -> None:
    await world.spend(3)
    hold = await world.here.ask(world.account_id)
    assert isinstance(hold, Hold)
    (monthly,) = await budgets(call)
    assert (monthly["used_cents"], monthly["held_cents"], monthly["remaining_cents"]) == (3, 2, 495)
    world.ledger.append(charge(hold))
    await world.ledger.close()
    while monthly["held_cents"]:
        (monthly,) = await budgets(call)
        assert monthly["remaining_cents"] == 495
    assert (monthly["used_cents"], monthly["remaining_cents"]) == (5, 495)


async def test_a_change_is_honoured_by_the_next_call_on_every_worker(call: Call, world: World) -> None:
    for replica in (world.here, world.elsewhere):
        assert isinstance(await replica.ask(world.account_id), Hold)
    await call("POST", "/v1/budgets", json={"period": "daily", "hard_limit_cents": 5.999999})
    for replica in (world.elsewhere, world.here):
        verdict = await replica.ask(world.account_id)
        assert isinstance(verdict, BudgetExceeded)
        assert (verdict.period, verdict.limit_microcents, verdict.used_microcents) == ("daily", 5_999_999, 4 * CENT)
    await call("PUT", "/v1/budgets", json={"period": "daily", "hard_limit_cents": 6})
    assert isinstance(await world.elsewhere.ask(world.account_id), Hold)
    assert isinstance(await world.here.ask(world.account_id), BudgetExceeded)
    await call("DELETE", "/v1/budgets?period=daily")
    for replica in (world.here, world.elsewhere):
        assert isinstance(await replica.ask(world.account_id), Hold)


async def test_remaining_is_never_below_zero(call: Call, world: World) -> None:
    await world.spend(600)
    (monthly,) = await budgets(call)
    assert (monthly["used_cents"], monthly["remaining_cents"]) == (600, 0)


async def test_the_lower_of_own_and_plan_is_in_effect(call: Call, world: World) -> None:
    await call("POST", "/v1/budgets", json={"period": "monthly", "hard_limit_cents": 100})
    (monthly,) = await budgets(call)
    assert (monthly["hard_limit_cents"], monthly["effective_limit_cents"], monthly["source"]) == (100, 100, "account")
    await call("PUT", "/v1/budgets", json={"period": "monthly", "hard_limit_cents": 600})
    (monthly,) = await budgets(call)
    assert (monthly["hard_limit_cents"], monthly["effective_limit_cents"]) == (600, 500)
    assert monthly["remaining_cents"] == 500


async def test_own_and_plan_in_different_zones_are_two_windows_and_the_tighter_one_tells_what_remains(
    call: Call, world: World
) -> None:
    world.now = world.now.replace(day=30, hour=20)  # in Tokyo December has begun
    await world.spend(450, at=world.now.replace(hour=1))
    await call("POST", "/v1/budgets", json=BODY)
    tokyo, utc = await budgets(call)
    assert (tokyo["timezone"], tokyo["used_cents"], tokyo["remaining_cents"]) == ("Asia/Tokyo", 0, 50)
    assert (utc["timezone"], utc["used_cents"], utc["remaining_cents"]) == ("UTC", 450, 50)


async def test_amounts_go_in_and_out_exactly(call: Call) -> None:
    body = b'{"period": "total", "hard_limit_cents": 9007199254.740991, "soft_limit_cents": 1e-6}'
    await call("POST", "/v1/budgets", data=body, headers={"Content-Type": "application/json"})
    text = await (await call("GET", "/v1/budgets")).text()
    own = json.loads(text, parse_float=Decimal)["budgets"][0]
    assert (own["hard_limit_cents"], own["soft_limit_cents"]) == (Decimal("9007199254.740991"), Decimal("0.000001"))
    assert '"remaining_cents": 9007199254.740991' in text


async def test_a_plan_without_a_ceiling_lists_nothing(call: Call, world: World) -> None:
    world.use_rules(Rules(version="2", policies=(), plans={"free": Plan(name="free")}, default_plan="free"))
    assert await budgets(call) == []


async def test_the_stored_plan_counts_and_its_ceilings_have_their_own_zone(call: Call, world: World) -> None:
    ceiling = BudgetLimit(period="weekly", hard_limit_microcents=9 * CENT, time_zone="Europe/Berlin", week_start=7)
    plans = {**world.rules.plans, "pro": Plan(name="pro", budgets=(ceiling,))}
    world.use_rules(Rules(version="2", policies=(), plans=plans, default_plan="free"))
    await world.database.execute("INSERT INTO billing_accounts (account_id, plan) VALUES ($1, 'pro')", world.account_id)
    (weekly,) = await budgets(call)
    assert (weekly["timezone"], weekly["week_start"], weekly["window_start"]) == (
        "Europe/Berlin",
        "sunday",
        "2026-11-21T23:00:00Z",
    )


async def test_accounts_do_not_see_or_touch_each_others_budgets(call: Call, world: World, database_url: str) -> None:
    connection = await asyncpg.connect(database_url)
    await add_account(connection, "another")
    await connection.close()
    await call("POST", "/v1/budgets", json=BODY)
    assert [budget["source"] for budget in await budgets(call, key="another")] == ["plan"]
    assert (await call("DELETE", "/v1/budgets?period=monthly", key="another")).status == 404
    assert (await call("POST", "/v1/budgets", json=BODY, key="another")).status == 201


async def test_the_list_can_be_narrowed_to_a_period(call: Call) -> None:
    await call("POST", "/v1/budgets", json={"period": "daily", "hard_limit_cents": 1})
    answer = await call("GET", "/v1/budgets?period=daily")
    assert [budget["period"] for budget in (await answer.json())["budgets"]] == ["daily"]
    answer = await call("GET", "/v1/budgets?period=hourly")
    assert answer.status == 400
    assert (await answer.json())["message"] == 'period: expected one of daily, weekly, monthly, total, found "hourly".'


async def test_delete_needs_to_know_which(call: Call) -> None:
    answer = await call("DELETE", "/v1/budgets")
    assert answer.status == 400
    assert (await answer.json())["details"] == [
        {"field": "period", "found": "nothing", "expected": "one of daily, weekly, monthly, total"}
    ]


async def test_what_is_left_of_a_free_tier_is_told_beside_the_budgets(call: Call, world: World) -> None:
    tier = free_tier(10, "monthly", time_zone="UTC", week_start=1, hold_microcents=CENT, maximum_microcents=CENT)
    tiered = Policy(name="tiered", methods=frozenset(), path="/t", cost=Cost(fixed_microcents=CENT, free=tier))
    world.use_rules(Rules(version="2", policies=(tiered,), plans={"free": Plan(name="free")}, default_plan="free"))
    month = tier.window_at(round(world.now.timestamp() * 1000))
    async with world.database.connection() as connection:
        await connection.execute(
            "INSERT INTO usage_units (account_id, kind, window_start, window_end, policy, used_units)"
            " VALUES ($1, $2, to_timestamp($3 / 1000.0), to_timestamp($4 / 1000.0), 'tiered', 7)",
            world.account_id,
            tier.kind("tiered"),
            month.start_ms,
            month.end_ms,
        )
    answer = await call("GET", "/v1/budgets")
    assert (await answer.json())["free_tiers"] == [
        {
            "policy": "tiered",
            "period": "monthly",
            "timezone": "UTC",
            "unit": "call",
            "free_units": 10,
            "used_units": 7,
            "remaining_units": 3,
            "resets_at": "2026-12-01T00:00:00Z",
        }
    ]
