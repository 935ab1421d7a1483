import asyncpg
from aiohttp import ClientSession

from tests.upstream_stub.running import Account, RunningStub


async def log_in(client: ClientSession, account: Account) -> str:
    """The session's token; the client itself keeps no cookies of a host without a name."""
    credentials = {"email": account.email, "password": account.password}
    async with client.post("/v1/auth/login", json=credentials) as answer:
        assert answer.status == 200
        return answer.cookies["session"].value


async def test_login_answers_a_session_cookie_that_scripts_cannot_read(anyone: ClientSession, account: Account) -> None:
    credentials = {"email": account.email, "password": account.password}
    async with anyone.post("/v1/auth/login", json=credentials) as answer:
        assert await answer.json() == {"user_id": account.user_id, "email": account.email}
        name_and_token, *attributes = answer.headers["Set-Cookie"].split("; ")
    assert name_and_token.startswith("session=")
    assert attributes == ["HttpOnly", "Path=/"]


async def test_the_cookie_opens_what_an_api_key_opens(anyone: ClientSession, account: Account) -> None:
    cookie = {"Cookie": f"session={await log_in(anyone, account)}"}
    async with anyone.get("/v1/casts", headers=cookie) as answer:
        assert answer.status == 200


async def test_the_email_is_taken_in_any_case(anyone: ClientSession, account: Account) -> None:
    credentials = {"email": account.email.upper(), "password": account.password}
    async with anyone.post("/v1/auth/login", json=credentials) as answer:
        assert answer.status == 200


async def test_a_wrong_password_and_an_unknown_email_are_answered_alike(
    anyone: ClientSession, account: Account
) -> None:
    answers = []
    for email, password in [(account.email, "wrong"), ("no\0body@example.com", "x"), ("nobody@example.com", "\ud800")]:
        async with anyone.post("/v1/auth/login", json={"email": email, "password": password}) as answer:
            answers.append((answer.status, await answer.json()))
    wrong = {"error": "unauthorized", "message": "The email or the password is wrong."}
    assert answers == [(401, wrong)] * 3


async def test_a_login_without_a_password_is_unprocessable(anyone: ClientSession) -> None:
    async with anyone.post("/v1/auth/login", json={"email": "a@example.com", "password": 1}) as answer:
        assert answer.status == 422


async def test_logout_ends_the_session_even_for_one_who_kept_the_cookie(
    anyone: ClientSession, account: Account
) -> None:
    kept = {"Cookie": f"session={await log_in(anyone, account)}"}
    async with anyone.post("/v1/auth/logout", headers=kept) as answer:
        assert answer.status == 204
        assert answer.cookies["session"]["max-age"] == "0"
    async with anyone.get("/v1/casts", headers=kept) as answer:
        assert answer.status == 401


async def test_a_session_that_is_over_is_refused(anyone: ClientSession, account: Account, stub: RunningStub) -> None:
    cookie = {"Cookie": f"session={await log_in(anyone, account)}"}
    connection = await asyncpg.connect(stub.database_url)
    await connection.execute("UPDATE sessions SET expires_at = now()")
    await connection.close()
    async with anyone.get("/v1/casts", headers=cookie) as answer:
        assert answer.status == 401


async def test_the_database_keeps_neither_the_password_nor_the_token(
    anyone: ClientSession, account: Account, stub: RunningStub
) -> None:
    token = await log_in(anyone, account)
    connection = await asyncpg.connect(stub.database_url)
    stored = str(await connection.fetch("SELECT * FROM users CROSS JOIN sessions CROSS JOIN api_keys"))
    await connection.close()
    assert not [secret for secret in (account.password, token, account.api_key) if secret in stored]
