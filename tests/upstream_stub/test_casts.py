import asyncio
import io
import json
import uuid

import asyncpg
import pytest
from aiohttp import ClientSession

from tests.upstream_stub.running import Account, RunningStub, stub_here


async def test_a_cast_is_answered_and_leaves_a_row(client: ClientSession, account: Account, stub: RunningStub) -> None:
    async with client.post("/v1/cast", json={"input": "light"}) as answer:
        assert answer.status == 200
        cast = await answer.json()
    assert list(cast) == ["id", "status", "result", "elapsed_ms"]
    assert (cast["status"], cast["result"]) == ("completed", "cast: light")
    connection = await asyncpg.connect(stub.database_url)
    row = await connection.fetchrow("SELECT * FROM casts")
    await connection.close()
    assert row is not None
    assert (str(row["id"]), str(row["user_id"]), row["input"]) == (cast["id"], account.user_id, "light")


async def test_casts_are_listed_newest_first_and_up_to_a_limit(client: ClientSession) -> None:
    for word in ("first", "second", "third"):
        async with client.post("/v1/cast", json={"input": word}) as answer:
            assert answer.status == 200
    async with client.get("/v1/casts", params={"limit": 2}) as answer:
        assert [cast["input"] for cast in (await answer.json())["casts"]] == ["third", "second"]


@pytest.mark.parametrize("limit", ["0", "-1", "x", "1.5", "9" * 10, "１"])
async def test_a_limit_that_is_no_number_is_a_bad_request(client: ClientSession, limit: str) -> None:
    async with client.get("/v1/casts", params={"limit": limit}) as answer:
        assert answer.status == 400


async def test_a_cast_without_an_input_is_cast_as_it_is(client: ClientSession) -> None:
    for body, result in [(b"", "cast: {}"), (b'{"spell": 1}', 'cast: {"spell": 1}')]:
        async with client.post("/v1/cast", data=body) as answer:
            assert (await answer.json())["result"] == result


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"[]", 400),
        (b"\xff\xfe\xfa", 400),
        (b"[" * 100_000, 400),
        (b'{"input": "\\u0000"}', 422),
        (b'{"input": "\\ud800"}', 422),
        (b" " * 1_200_000, 413),
    ],
)
async def test_a_body_that_cannot_be_cast_is_refused_as_json(client: ClientSession, body: bytes, status: int) -> None:
    async with client.post("/v1/cast", data=io.BytesIO(body)) as answer:
        assert (answer.status, list(await answer.json())) == (status, ["error", "message"])


async def test_a_streamed_cast_ends_with_the_casts_id_and_status(client: ClientSession, stub: RunningStub) -> None:
    async with client.post("/v1/cast", json={"input": "x"}, headers={"Accept": "text/event-stream"}) as answer:
        assert answer.content_type == "text/event-stream"
        events = (await answer.text()).removesuffix("\n\n").split("\n\n")
    assert [event.splitlines()[0] for event in events] == ["event: progress"] * 3 + ["event: done"]
    done = json.loads(events[-1].splitlines()[1].removeprefix("data: "))
    connection = await asyncpg.connect(stub.database_url)
    assert await connection.fetchval("SELECT status FROM casts WHERE id = $1", uuid.UUID(done["id"])) == done["status"]
    await connection.close()


async def test_many_casts_at_once_leave_as_many_rows(
    account: Account, stub: RunningStub, database_url: str, redis_url: str
) -> None:
    async with (
        stub_here(database_url, redis_url, rate_limit_per_minute=0) as unlimited,
        ClientSession(unlimited.base_url, headers={"X-API-Key": account.api_key}) as client,
    ):

        async def cast(number: int) -> str:
            async with client.post("/v1/cast", json={"input": str(number)}) as answer:
                return str((await answer.json())["id"])

        ids = await asyncio.gather(*map(cast, range(300)))
    connection = await asyncpg.connect(stub.database_url)
    rows = await connection.fetch("SELECT id::text, input FROM casts")
    await connection.close()
    assert {(row["id"], int(row["input"])) for row in rows} == set(zip(ids, range(300), strict=True))


async def test_a_database_that_is_away_is_an_internal_error_as_json(
    client: ClientSession, stub: RunningStub, caplog: pytest.LogCaptureFixture
) -> None:
    connection = await asyncpg.connect(stub.database_url)
    await connection.execute("ALTER TABLE casts RENAME TO hidden")
    await connection.close()
    async with client.post("/v1/cast") as answer:
        assert (answer.status, (await answer.json())["error"]) == (500, "internal_error")
    assert "POST /v1/cast failed" in caplog.text
