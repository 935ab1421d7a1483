"""Budgets that change while casts race them, on two replicas."""

import asyncio

import aiohttp

from tests.acceptance.conftest import CAST_BODY, Fleet


async def test_a_lowered_budget_counts_also_for_an_account_that_nobody_knew(fleet: Fleet) -> None:
    one, two = (gateway.base_url for gateway in fleet.gateways)
    async with aiohttp.ClientSession() as session:

        async def cast(headers: dict[str, str]) -> int:
            async with session.post(f"{two}/v1/cast", data=CAST_BODY, headers=headers) as answer:
                return answer.status

        async def lower(headers: dict[str, str]) -> int:
            budget = {"period": "monthly", "hard_limit_cents": 0}
            async with session.put(f"{one}/v1/budgets", json=budget, headers=headers) as answer:
                return answer.status

        async def race() -> None:
            account = await fleet.account(monthly_cents=100)
            headers = {"Authorization": f"Bearer {account.api_key}", "Content-Type": "application/json"}
            # The first cast makes the account known while its budget is being lowered.
            _, lowered = await asyncio.gather(cast(headers), lower(headers))
            assert lowered == 200
            assert [await cast(headers) for _ in range(3)] == [402, 402, 402]

        for _ in range(10):
            await asyncio.gather(*(race() for _ in range(8)))


async def test_hammering_a_budget_while_casting_admits_no_cast_more(fleet: Fleet) -> None:
    account = await fleet.account(monthly_cents=300)
    await fleet.put_on_plan(account, "unlimited")
    headers = {"Authorization": f"Bearer {account.api_key}", "Content-Type": "application/json"}
    over = asyncio.Event()

    async def hammer(base_url: str, session: aiohttp.ClientSession) -> None:
        budget = {"period": "monthly", "hard_limit_cents": 300}
        while not over.is_set():
            async with session.put(f"{base_url}/v1/budgets", json=budget, headers=headers) as answer:
                assert answer.status == 200, await answer.text()

    async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as group:
        for gateway in fleet.gateways:
            group.create_task(hammer(gateway.base_url, session))
        result = await fleet.cast_many(account, total=2000, connections=60)
        over.set()
    assert result.errors == {}
    assert result.statuses == {200: 300, 402: 1700}
