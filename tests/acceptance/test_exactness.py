"""A budget of N casts admits N casts: not one more, not one less, however many race for it."""

import aiohttp
import pytest

from tests.acceptance.conftest import CAST_BODY, Fleet


@pytest.mark.parametrize("seed", range(10))
async def test_of_5000_racing_casts_exactly_500_pass(fleet: Fleet, seed: int) -> None:
    account = await fleet.account(monthly_cents=500)
    await fleet.put_on_plan(account, "unlimited")

    result = await fleet.cast_many(account, total=5000, connections=200, seed=seed)

    assert result.errors == {}
    assert result.statuses == {200: 500, 402: 4500}
    await fleet.settled(account, 500)
    casts = await fleet.sql(
        "SELECT count(*) AS casts, count(*) FILTER (WHERE cost_cents = 1) AS charged FROM casts "
        "WHERE user_id = $1::uuid",
        account.user_id,
    )
    assert (casts[0]["casts"], casts[0]["charged"]) == (500, 500)
    events = await fleet.sql(
        "SELECT count(*) AS events, sum(cost_microcents) AS cost, count(DISTINCT cast_id) AS cast_ids "
        "FROM usage_events WHERE account_id = $1",
        account.user_id,
    )
    assert (events[0]["events"], events[0]["cost"], events[0]["cast_ids"]) == (500, 500_000_000, 500)
    counters = await fleet.sql(
        "SELECT period, used_microcents, calls FROM usage_counters WHERE account_id = $1 ORDER BY period",
        account.user_id,
    )
    assert {row["period"]: (row["used_microcents"], row["calls"]) for row in counters} == {
        "monthly": (500_000_000, 500),
        "total": (500_000_000, 500),
    }


async def test_calls_that_fail_give_their_budget_back(fleet: Fleet) -> None:
    account = await fleet.account(monthly_cents=20)
    headers = {"Authorization": f"Bearer {account.api_key}"}
    statuses = []
    async with aiohttp.ClientSession() as session:
        for call in range(60):
            failing = call % 3 != 0
            async with session.post(
                f"{fleet.gateways[call % 2].base_url}/v1/cast",
                json={"input": "x"},
                headers=headers | ({"X-Stub-Fault": "status=503"} if failing else {}),
            ) as answer:
                statuses.append(answer.status)
            if failing:
                await fleet.nothing_held(account)
    assert statuses.count(200) == 20
    await fleet.settled(account, 20)
    rows = await fleet.sql("SELECT count(*) FROM usage_events WHERE account_id = $1", account.user_id)
    assert rows[0][0] == 20


async def test_a_refusal_for_rate_consumes_no_budget_and_one_for_budget_no_rate(fleet: Fleet) -> None:
    account = await fleet.account(monthly_cents=5)
    result = await fleet.cast_many(account, total=50, connections=10)
    assert result.statuses == {200: 5, 402: 45}
    await fleet.settled(account, 5)
    async with aiohttp.ClientSession() as session:
        headers = {"Authorization": f"Bearer {account.api_key}", "Content-Type": "application/json"}
        async with session.get(f"{fleet.gateways[0].base_url}/v1/budgets", headers=headers) as answer:
            budgets = {budget["period"]: budget for budget in (await answer.json())["budgets"]}
    assert budgets["monthly"]["used_cents"] == 5
    assert budgets["monthly"]["held_cents"] == 0
    assert budgets["monthly"]["remaining_cents"] == 0


async def test_a_402_says_which_budget_and_when_it_resets(fleet: Fleet) -> None:
    account = await fleet.account(monthly_cents=1)
    await fleet.cast_many(account, total=1, connections=1)
    # A gateway that meets the account meanwhile reads it as used and finds it held: for a moment it counts twice.
    await fleet.nothing_held(account)
    async with aiohttp.ClientSession() as session:
        headers = {"Authorization": f"Bearer {account.api_key}", "Content-Type": "application/json"}
        url = f"{fleet.gateways[1].base_url}/v1/cast"
        async with session.post(url, data=CAST_BODY, headers=headers) as answer:
            body = await answer.json()
    assert answer.status == 402
    assert int(answer.headers["Retry-After"]) > 0
    assert body["error"] == "budget_exceeded"
    assert {name: body[name] for name in ("period", "limit_cents", "used_cents", "cost_cents")} == {
        "period": "monthly",
        "limit_cents": 1,
        "used_cents": 1,
        "cost_cents": 1,
    }
    assert body["resets_at"].endswith("-01T00:00:00Z")


async def test_a_budget_changed_through_one_replica_counts_for_the_next_cast_on_the_other(fleet: Fleet) -> None:
    account = await fleet.account()
    headers = {"Authorization": f"Bearer {account.api_key}", "Content-Type": "application/json"}
    one, two = (gateway.base_url for gateway in fleet.gateways)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as session:

        async def cast(base_url: str) -> int:
            async with session.post(f"{base_url}/v1/cast", data=CAST_BODY, headers=headers) as answer:
                return answer.status

        async def change(method: str, hard_limit_cents: int) -> int:
            budget = {"period": "daily", "hard_limit_cents": hard_limit_cents}
            async with session.request(method, f"{one}/v1/budgets", json=budget, headers=headers) as answer:
                return answer.status

        assert [await cast(two) for _ in range(4)] == [200] * 4
        assert await change("POST", 4) == 201
        spent = 4
        for _ in range(25):
            assert await cast(two) == 402
            assert await change("PUT", spent + 1) == 200
            assert await cast(two) == 200
            spent += 1
            assert await change("PUT", spent) == 200
        async with session.delete(f"{one}/v1/budgets?period=daily", headers=headers) as answer:
            assert answer.status == 204
        assert await cast(two) == 200
