"""What an operator does leaves an entry: who, when, what, before and after, in the transaction of the change itself."""

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Any

import asyncpg
from aiohttp.test_utils import TestClient

from gateway.breaker import Breaker
from gateway.console.audit import BILLING_SYNCED, Audit, Operator
from gateway.database import Database
from gateway.metrics import Metrics
from tests.console.world import TOKEN, WRITE, sign_in

Client = TestClient[Any, Any]


async def set_daily(client: Client, account_id: str, cents: float) -> int:
    body = {"period": "daily", "hard_limit_cents": cents}
    answer = await client.put(f"/console/accounts/{account_id}/budget", json=body, headers=WRITE)
    return answer.status


async def told(client: Client, **query: str) -> list[dict[str, Any]]:
    answer = await client.get("/audit", params=query)
    assert answer.status == 200, await answer.text()
    entries: list[dict[str, Any]] = (await answer.json())["entries"]
    return entries


async def test_each_change_of_a_budget_is_told_with_what_was_before_and_after(client: Client, account_id: str) -> None:
    assert await sign_in(client) == 303
    assert [await set_daily(client, account_id, cents) for cents in (300, 2.5)] == [200, 200]
    assert (await client.delete(f"/console/accounts/{account_id}/budget?period=daily", headers=WRITE)).status == 200
    removed, replaced, made = await told(client, account=account_id)
    assert [one["action"] for one in (made, replaced, removed)] == ["budget_set", "budget_set", "budget_removed"]
    assert made["before"] is None
    facts = {
        "period": "daily",
        "hard_limit_cents": "300",
        "soft_limit_cents": None,
        "time_zone": "UTC",
        "week_start": 1,
    }
    assert facts.items() <= made["after"].items()
    assert replaced["before"] == made["after"]
    assert (replaced["after"]["hard_limit_cents"], removed["before"]) == ("2.5", replaced["after"])
    assert removed["after"] is None
    for one in (made, replaced, removed):
        assert (one["account"], one["token"], one["address"]) == (account_id, "ADMIN_TOKEN", "127.0.0.1")
    # The account's page shows the same.
    picture = await (await client.get(f"/console/accounts/{account_id}")).json()
    assert picture["audit"] == [removed, replaced, made]
    # What was refused is no change.
    assert await set_daily(client, account_id, -1) == 400
    assert len(await told(client)) == 3


async def test_a_change_whose_entry_cannot_be_written_is_not_made(
    client: Client, account_id: str, database_url: str
) -> None:
    assert await sign_in(client) == 303
    connection: asyncpg.Connection[Any] = await asyncpg.connect(database_url)
    await connection.execute("ALTER TABLE audit_entries RENAME TO elsewhere")
    answer = await client.put(
        f"/console/accounts/{account_id}/budget", json={"period": "daily", "hard_limit_cents": 1}, headers=WRITE
    )
    assert (answer.status, (await answer.json())["error"]) == (503, "overloaded")
    assert "castgate migrate" in (await answer.json())["message"]
    assert await connection.fetchval("SELECT count(*) FROM budgets") == 0
    assert await connection.fetchval("SELECT count(*) FROM billing_accounts WHERE facts_version > 0") == 0
    await connection.execute("ALTER TABLE elsewhere RENAME TO audit_entries")
    assert await set_daily(client, account_id, 1) == 200
    await connection.close()


async def test_changes_at_once_are_entries_that_follow_from_one_another(client: Client, account_id: str) -> None:
    assert await sign_in(client) == 303
    statuses = await asyncio.gather(*(set_daily(client, account_id, cents) for cents in range(1, 9)))
    assert set(statuses) <= {200, 409, 503}  # who waits for too long is told so
    entries = list(reversed(await told(client, account=account_id)))
    assert len(entries) == statuses.count(200) > 0
    assert [one["before"] for one in entries] == [None, *(one["after"] for one in entries[:-1])]


async def test_programs_read_it_with_the_token_page_by_page(
    client: Client, serve: Callable[..., Any], account_id: str
) -> None:
    assert (await client.get("/audit")).status == 401
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    assert await sign_in(client) == 303
    for cents in (1, 2, 3):
        assert await set_daily(client, account_id, cents) == 200
    assert (await client.post("/console/sign-out", headers=WRITE)).status == 204
    first = await (await client.get("/audit?limit=2", headers=bearer)).json()
    assert [one["after"]["hard_limit_cents"] for one in first["entries"]] == ["3", "2"]
    rest = await (await client.get(f"/audit?limit=2&before={first['before']}", headers=bearer)).json()
    assert [one["after"]["hard_limit_cents"] for one in rest["entries"]] == ["1"]
    assert rest["before"] is None
    assert (await (await client.get("/audit?account=nobody", headers=bearer)).json())["entries"] == []
    for wrong in ("limit=0", "limit=201", "limit=x", "before=-1", f"before={2**63}", "page=2", "account=%00"):
        answer = await client.get(f"/audit?{wrong}", headers=bearer)
        assert (answer.status, (await answer.json())["error"]) == (400, "invalid_request"), wrong
    # Where nobody is asked, the name must be this machine's, as for the console.
    unasked = await serve(None)
    assert (await unasked.get("/audit")).status == 200
    assert (await unasked.get("/audit", headers={"Host": "evil.example"})).status == 403


async def test_questions_are_entries_and_those_of_long_ago_are_forgotten(
    client: Client, account_id: str, database_url: str
) -> None:
    assert await sign_in(client) == 303
    connection: asyncpg.Connection[Any] = await asyncpg.connect(database_url)
    await connection.execute(
        "INSERT INTO audit_entries (at, account_id, token, address, action) VALUES"
        " (now() - interval '91 days', 'a', 'none', '', 'explained'),"
        " (now() - interval '89 days', 'a', 'none', '', 'explained'),"
        " (now() - interval '91 days', 'a', 'none', '', 'budget_removed')"
    )
    await connection.close()
    asked = {"account": account_id, "path": "/v1/cast?token=hidden"}
    answer = await client.post("/explain", json=asked, headers=WRITE)
    assert answer.status == 200, await answer.text()
    entry, *others = await told(client)
    assert (entry["action"], entry["account"], entry["before"]) == ("explained", account_id, None)
    assert entry["after"]["path"] == "/v1/cast"
    assert entry["after"]["verdict"] == (await answer.json())["verdict"]
    assert sorted(one["action"] for one in others) == ["budget_removed", "explained"]
    # A question that no account's facts are in the answer of leaves none.
    assert (await client.post("/explain", json={"path": "/elsewhere"}, headers=WRITE)).status == 200
    assert len(await told(client)) == 3


async def test_an_act_that_is_broken_off_says_so(account_id: str, database_url: str) -> None:
    database = Database(database_url, breaker=Breaker(clock=time.monotonic), metrics=Metrics())
    audit = Audit(database)
    begun = asyncio.Event()

    async def act() -> None:
        async with audit.act(Operator(token="none", address="127.0.0.1"), BILLING_SYNCED):
            begun.set()
            await asyncio.Event().wait()

    under_way = asyncio.create_task(act())
    await begun.wait()
    under_way.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await under_way
    [entry] = await audit.entries(None)
    assert entry["after"] == {"ended": "broken off: the gateway was stopped"}
    await database.close()
