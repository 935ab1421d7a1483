"""However a call ends, its hold ends too: charged once, or given back."""

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path

import aiohttp
import pytest

from bench.load import Endpoint, Load, run
from tests.acceptance.conftest import CAST_BODY, Fleet
from tests.gateways import ROOT, running_gateway
from tests.upstream_stub.running import Account


def _headers(account: Account, fault: str | None = None) -> dict[str, str]:
    headers = {"Authorization": f"Bearer {account.api_key}", "Content-Type": "application/json"}
    return headers | ({"X-Stub-Fault": fault} if fault else {})


async def _monthly(fleet: Fleet, account: Account) -> dict[str, float]:
    url = f"{fleet.gateways[1].base_url}/v1/budgets"
    async with aiohttp.ClientSession() as session, session.get(url, headers=_headers(account)) as answer:
        budgets = (await answer.json())["budgets"]
    found: dict[str, float] = next(budget for budget in budgets if budget["period"] == "monthly")
    return found


async def _until(fleet: Fleet, account: Account, condition: Callable[[dict[str, float]], bool]) -> dict[str, float]:
    for _ in range(100):
        budget = await _monthly(fleet, account)
        if condition(budget):
            return budget
        await asyncio.sleep(0.1)
    return budget


async def test_a_client_that_hangs_up_pays_for_what_was_cast(fleet: Fleet) -> None:
    account = await fleet.account(monthly_cents=10)
    port = int(fleet.gateways[0].base_url.rpartition(":")[2])

    async def cast() -> int:
        rows = await fleet.sql("SELECT count(*) FROM casts WHERE user_id = $1::uuid", account.user_id)
        return int(rows[0][0])

    attempts = 0
    while await cast() < 3:
        attempts += 1
        assert attempts <= 9
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        head = "".join(f"{name}: {value}\r\n" for name, value in _headers(account, "delay=300ms").items())
        writer.write(f"POST /v1/cast HTTP/1.1\r\nHost: h\r\n{head}Content-Length: {len(CAST_BODY)}\r\n\r\n".encode())
        writer.write(CAST_BODY)
        await writer.drain()
        # It is held for from here on, and perhaps not sent yet: then nothing is cast, and nothing may be charged.
        await _until(fleet, account, lambda budget: budget["held_cents"] > 0)
        writer.close()
        await writer.wait_closed()
        await _until(fleet, account, lambda budget: budget["held_cents"] == 0)
    budget = await _monthly(fleet, account)
    assert (budget["used_cents"], budget["held_cents"]) == (3, 0)
    rows = await fleet.sql("SELECT count(*) FROM casts WHERE user_id = $1::uuid AND cost_cents = 1", account.user_id)
    assert rows[0][0] == 3


async def test_a_client_that_hangs_up_within_its_own_body_pays_nothing(fleet: Fleet) -> None:
    account = await fleet.account(monthly_cents=10)
    port = int(fleet.gateways[0].base_url.rpartition(":")[2])
    for _ in range(3):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        head = "".join(f"{name}: {value}\r\n" for name, value in _headers(account).items())
        writer.write(f"POST /v1/cast HTTP/1.1\r\nHost: h\r\n{head}Content-Length: 100\r\n\r\nhalf".encode())
        await writer.drain()
        held = await _until(fleet, account, lambda budget: budget["held_cents"] == 1)
        assert held["held_cents"] == 1
        writer.close()
        await writer.wait_closed()
        await _until(fleet, account, lambda budget: budget["held_cents"] == 0)
    budget = await _monthly(fleet, account)
    assert (budget["used_cents"], budget["held_cents"]) == (0, 0)
    assert await fleet.sql("SELECT 1 FROM casts WHERE user_id = $1::uuid", account.user_id) == []


async def test_an_upstream_that_breaks_off_before_answering_costs_nothing(fleet: Fleet) -> None:
    account = await fleet.account(monthly_cents=10)
    url = f"{fleet.gateways[0].base_url}/v1/cast"
    async with aiohttp.ClientSession() as session:
        for _ in range(15):
            async with session.post(url, data=CAST_BODY, headers=_headers(account, "cut=before")) as answer:
                assert answer.status == 502
                assert (await answer.json())["error"] == "upstream_unreachable"
    budget = await _until(fleet, account, lambda budget: budget["held_cents"] == 0)
    assert (budget["used_cents"], budget["held_cents"], budget["remaining_cents"]) == (0, 0, 10)


async def test_an_answer_cut_in_the_middle_was_cast_and_is_charged(fleet: Fleet) -> None:
    account = await fleet.account(monthly_cents=10)
    url = f"{fleet.gateways[0].base_url}/v1/cast"
    async with (
        aiohttp.ClientSession() as session,
        session.post(url, data=CAST_BODY, headers=_headers(account, "cut=body")) as answer,
    ):
        assert answer.status == 200
        with pytest.raises(aiohttp.ClientPayloadError):
            await answer.read()
    budget = await _until(fleet, account, lambda budget: budget["used_cents"] == 1)
    assert (budget["used_cents"], budget["held_cents"]) == (1, 0)


async def test_a_streamed_cast_is_metered_with_its_id(fleet: Fleet) -> None:
    account = await fleet.account(monthly_cents=10)
    url = f"{fleet.gateways[0].base_url}/v1/cast"
    headers = _headers(account) | {"Accept": "text/event-stream"}
    async with aiohttp.ClientSession() as session, session.post(url, data=CAST_BODY, headers=headers) as answer:
        assert answer.content_type == "text/event-stream"
        await answer.read()
    await fleet.settled(account, 1)
    rows = await fleet.sql("SELECT count(*) FROM casts WHERE user_id = $1::uuid AND cost_cents = 1", account.user_id)
    assert rows[0][0] == 1


async def test_the_holds_of_a_worker_that_is_killed_are_settled_by_another(fleet: Fleet, tmp_path: Path) -> None:
    text = (ROOT / "config.yaml").read_text()
    assert "hold_ttl: 60s" in text
    text = text.replace("hold_ttl: 60s", "hold_ttl: 1s").replace("policies: policies", f"policies: {ROOT}/policies")
    config = tmp_path / "config.yaml"
    config.write_text(text)
    account = await fleet.account(monthly_cents=10)
    stores = {"database_url": fleet.database_url, "redis_url": fleet.redis_url, "upstream_url": fleet.stub_url}
    with running_gateway(**stores, config=config) as one, running_gateway(**stores, config=config):
        async with aiohttp.ClientSession() as session:
            url = f"{one.base_url}/v1/cast"
            call = asyncio.ensure_future(
                session.post(
                    url, data=CAST_BODY, headers=_headers(account, "delay=20s")
                )  # longer than its worker lives
            )
            held = await _until(fleet, account, lambda budget: budget["held_cents"] == 1)
            assert held["held_cents"] == 1
            children = Path(f"/proc/{one.process.pid}/task/{one.process.pid}/children").read_text()
            os.kill(int(children.split()[0]), signal.SIGKILL)
            settled = await _until(fleet, account, lambda budget: budget["held_cents"] == 0)
            assert (settled["used_cents"], settled["held_cents"]) == (1, 0)
            await asyncio.gather(call, return_exceptions=True)
    rows = await fleet.sql("SELECT outcome FROM usage_events WHERE account_id = $1", account.user_id)
    assert [row["outcome"] for row in rows] == ["expired"]


async def test_a_stop_under_load_loses_no_call_that_was_begun(fleet: Fleet) -> None:
    account = await fleet.account(monthly_cents=100_000)
    await fleet.put_on_plan(account, "unlimited")
    stores = {"database_url": fleet.database_url, "redis_url": fleet.redis_url, "upstream_url": fleet.stub_url}
    with running_gateway(**stores, workers=2) as gateway:
        endpoint = Endpoint.of(f"{gateway.base_url}/v1/cast", method="POST", headers=_headers(account), body=CAST_BODY)
        loading = asyncio.ensure_future(run([endpoint], Load(connections=64, seconds=1.5)))
        await asyncio.sleep(0.7)
        code = await asyncio.get_running_loop().run_in_executor(None, gateway.stop)
        result = await loading
    assert code == 0
    assert set(result.statuses) == {200}
    # Connections are refused once the gateway has gone; none that was made is reset, and no answer is cut.
    assert set(result.errors) <= {"connect"}, result.errors
    casts = result.statuses[200]
    await fleet.settled(account, casts)
    rows = await fleet.sql(
        "SELECT (SELECT count(*) FROM usage_events WHERE account_id = $1), "
        "(SELECT count(*) FROM casts WHERE user_id = $1::uuid)",
        account.user_id,
    )
    assert tuple(rows[0]) == (casts, casts)
