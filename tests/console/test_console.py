"""The console over HTTP: whom it lets in, what it tells, what it changes. Its page: test_page.py."""

import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import asyncpg
import pytest
from aiohttp.test_utils import TestClient

from gateway.console import app as console_app
from gateway.console.live import rung
from gateway.console.sessions import COOKIE, LIFETIME_S, Sessions
from tests.console.world import TOKEN, WRITE, sign_in


async def test_without_the_token_there_is_a_page_to_sign_in_and_nothing_else(
    client: TestClient[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console_app, "REFUSED_PAUSE_S", 0.0)
    page = await client.get("/console")
    assert page.status == 401
    assert 'name="token"' in await page.text()
    routes = [route for route in client.app.router.routes() if route.method != "HEAD"]  # type: ignore[union-attr]
    seen = {}
    for route in routes:
        assert route.resource is not None
        path = re.sub(r"\{\w+\}", "a", route.resource.canonical)
        answer = await client.request(route.method, path, headers=WRITE, allow_redirects=False)
        seen[f"{route.method} {path}"] = answer.status
    assert len(seen) > 12
    assert set(seen.values()) == {401}, seen
    for wrong in ("", TOKEN[:-1], TOKEN + "x", "é"):
        assert await sign_in(client, wrong) == 401
    assert (await client.get("/console/live", cookies={COOKIE: "made-up"})).status == 401


async def test_who_signs_in_has_a_cookie_that_no_script_and_no_other_site_gets(client: TestClient[Any, Any]) -> None:
    answer = await client.post("/console/sign-in", data={"token": TOKEN}, allow_redirects=False)
    assert (answer.status, answer.headers["Location"]) == (303, "/console")
    cookie = answer.headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert TOKEN not in cookie
    page = await client.get("/console")
    policy = page.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'")
    assert "unsafe" not in policy
    assert (await client.get("/readyz")).status == 200  # the rest of the listener, too
    assert (await client.post("/console/sign-out", headers=WRITE)).status == 204
    assert (await client.get("/console/live")).status == 401


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"token=\xff", "application/x-www-form-urlencoded"),
        (b"token=a", "application/x-www-form-urlencoded; charset=nope"),
        (b"x", "multipart/form-data"),
        (b"x", "multipart/form-data; boundary=a"),
        (b"--a\r\nContent-Disposition: form-data\r\n\r\nx\r\n--a--\r\n", "multipart/form-data; boundary=a"),
    ],
)
async def test_what_is_no_form_is_not_the_token(client: TestClient[Any, Any], body: bytes, content_type: str) -> None:
    answer = await client.post("/console/sign-in", data=body, headers={"Content-Type": content_type})
    assert (answer.status, "This is not the token." in await answer.text()) == (401, True)


async def test_a_session_ends_by_itself() -> None:
    now = 0.0
    sessions = Sessions(TOKEN, clock=lambda: now)
    session = sessions.sign_in(TOKEN)

    request: Any = SimpleNamespace(cookies={COOKIE: session})
    assert sessions.knows(request)
    now = LIFETIME_S
    assert not sessions.knows(request)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"X-Castgate-Console": "0"},
        {**WRITE, "Origin": "https://evil.example"},
        {**WRITE, "Origin": "null"},
        {**WRITE, "Origin": "http://["},
        {**WRITE, "Sec-Fetch-Site": "cross-site"},
        {**WRITE, "Sec-Fetch-Site": "same-site"},
    ],
)
async def test_another_sites_page_changes_nothing(
    client: TestClient[Any, Any], account_id: str, headers: dict[str, str]
) -> None:
    assert await sign_in(client) == 303
    body = {"period": "daily", "hard_limit_cents": 1}
    answer = await client.put(f"/console/accounts/{account_id}/budget", json=body, headers=headers)
    assert (answer.status, (await answer.json())["error"]) == (403, "forbidden")
    picture = await (await client.get(f"/console/accounts/{account_id}")).json()
    assert [one["source"] for one in picture["budgets"]] == ["plan"]


async def test_without_a_token_only_names_of_this_machine_are_answered(serve: Callable[..., Any]) -> None:
    client = await serve(None)
    assert (await client.get("/console")).status == 200
    for name in ("evil.example", "evil.example:9090", "10.0.0.5", "[", ""):  # as after DNS rebinding
        assert (await client.get("/console/live", headers={"Host": name})).status == 403
        assert (await client.get("/policies", headers={"Host": name})).status == 403
        assert (await client.post("/explain", json={"path": "/v1/cast"}, headers={"Host": name})).status == 403
    assert (await client.get("/console/live", headers={"Host": "localhost:9090"})).status == 200
    # Another site's page may send this unasked, and leave an entry in the audit.
    elsewhere = {"Sec-Fetch-Site": "cross-site", "Content-Type": "text/plain"}
    question = '{"account": "a", "path": "/v1/cast"}'
    assert (await client.post("/explain", data=question, headers=elsewhere)).status == 403
    assert (await client.post("/explain", data=question)).status == 200


async def test_a_budget_is_set_replaced_and_removed_and_each_is_in_the_log(
    client: TestClient[Any, Any], account_id: str, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await sign_in(client) == 303
    path = f"/console/accounts/{account_id}/budget"
    for amount in (300, 2.5):
        answer = await client.put(path, json={"period": "daily", "hard_limit_cents": amount}, headers=WRITE)
        assert answer.status == 200, await answer.text()
        own = [one for one in (await answer.json())["budgets"] if one["source"] == "account"]
        assert [(one["period"], one["limit_cents"]) for one in own] == [("daily", str(amount))]
    wrong = await client.put(path, json={"period": "hourly", "hard_limit_cents": 1}, headers=WRITE)
    assert (wrong.status, (await wrong.json())["error"]) == (400, "invalid_request")
    assert (await client.delete(f"{path}?period=daily", headers=WRITE)).status == 200
    assert (await client.delete(f"{path}?period=daily", headers=WRITE)).status == 404
    logged = capsys.readouterr()
    told = logged.out + logged.err
    assert told.count("console_budget_set") == 2
    assert told.count("console_budget_removed") == 1
    assert account_id in told


async def test_accounts_are_found_by_the_beginning_of_their_id(client: TestClient[Any, Any], account_id: str) -> None:
    assert await sign_in(client) == 303
    await client.put(
        f"/console/accounts/{account_id}/budget", json={"period": "daily", "hard_limit_cents": 3}, headers=WRITE
    )
    assert await (await client.get(f"/console/accounts?q={account_id[:8]}")).json() == [account_id]
    for nothing in ("%", "_", "\\", "", "zz"):
        assert await (await client.get("/console/accounts", params={"q": nothing})).json() == []
    assert await (await client.get("/console/accounts?q=a%00")).json() == []


async def test_who_is_nearest_a_limit_comes_first_by_own_budget_or_plan(
    client: TestClient[Any, Any], database_url: str, account_id: str
) -> None:
    connection: asyncpg.Connection[Any] = await asyncpg.connect(database_url)
    for account, period, used in (
        ("near", "monthly", 450),
        ("far", "monthly", 5),
        ("own", "daily", 2),
        ("none", "daily", 9),
    ):
        await connection.execute(
            "INSERT INTO usage_counters (account_id, period, time_zone, week_start, window_start, window_end,"
            " used_microcents) VALUES ($1, $2, 'UTC', 1, now() - interval '1 hour', now() + interval '1 hour', $3)",
            account,
            period,
            used * 1_000_000,
        )
    await connection.execute(
        "INSERT INTO budgets (account_id, period, hard_limit_microcents) VALUES ('own', 'daily', 4000000)"
    )
    await connection.close()
    assert await sign_in(client) == 303
    near = await (await client.get("/console/near-limits")).json()
    assert [(one["account"], one["used_cents"], one["limit_cents"], one["plan"]) for one in near] == [
        ("near", "450", "500", "free"),
        ("own", "2", "4", "free"),
        ("far", "5", "500", "free"),
    ]


async def test_a_look_that_takes_too_long_keeps_nobody_from_the_others(
    serve: Callable[..., Any], database_url: str
) -> None:
    client = await serve(TOKEN, database={"url": database_url, "statement_timeout": "200ms"})
    assert await sign_in(client) == 303
    connection = await asyncpg.connect(database_url)
    async with connection.transaction():
        await connection.execute("LOCK TABLE usage_counters")
        assert (await client.get("/console/near-limits")).status == 503
        assert (await client.get("/console/webhooks")).status == 200
    await connection.close()
    assert (await client.get("/console/near-limits")).status == 200


async def test_where_billing_is_off_nothing_is_read_from_stripe(client: TestClient[Any, Any]) -> None:
    assert await sign_in(client) == 303
    answer = await client.post("/console/sync", headers=WRITE)
    assert (answer.status, (await answer.json())["error"]) == (503, "billing_disabled")


async def test_an_account_that_nobody_has_seen_has_an_empty_page(client: TestClient[Any, Any]) -> None:
    assert await sign_in(client) == 303
    picture = await (await client.get("/console/accounts/nobody")).json()
    assert (picture["plan"], picture["status"], picture["casts"], picture["events"]) == ("free", "none", [], [])
    assert len(picture["days"]) == 30


@pytest.mark.parametrize(
    ("stores", "lost"),
    [
        ({}, "nothing"),
        ({"redis": True, "postgres": True}, "nothing"),
        ({"redis": False, "postgres": True}, "redis"),
        ({"redis": True, "postgres": False}, "postgres"),
        ({"redis": False, "postgres": False}, "both"),
    ],
)
def test_the_ladder_says_what_is_lost(stores: dict[str, bool], lost: str) -> None:
    assert rung(stores) == lost
