import asyncio
from itertools import pairwise

import asyncpg
import pytest
from aiohttp import ClientError, ClientPayloadError, ClientSession, ServerDisconnectedError

from tests.upstream_stub.running import RunningStub
from upstream_stub.faults import Fault, parse_fault
from upstream_stub.refusals import RefusalError


async def casts_in(stub: RunningStub) -> int:
    connection = await asyncpg.connect(stub.database_url)
    count = await connection.fetchval("SELECT count(*) FROM casts")
    await connection.close()
    return int(count)


def test_faults_are_combined_by_commas() -> None:
    assert parse_fault("delay=250ms, status=503 ,cut=body,trickle=1s") == Fault(
        delay_s=0.25, status=503, cut="body", trickle_s=1.0
    )


@pytest.mark.parametrize("text", ["delay", "delay=1", "delay=-1s", "status=99", "status=600", "cut=off", "slow=1s"])
def test_a_fault_that_is_not_known_is_named(text: str) -> None:
    with pytest.raises(RefusalError, match="X-Stub-Fault does not know"):
        parse_fault(text)


async def test_a_bad_fault_is_a_bad_request(client: ClientSession) -> None:
    async with client.post("/v1/cast", headers={"X-Stub-Fault": "cut=off"}) as answer:
        assert answer.status == 400


async def test_a_status_is_answered_without_a_cast(client: ClientSession, stub: RunningStub) -> None:
    async with client.post("/v1/cast", headers={"X-Stub-Fault": "status=503"}) as answer:
        assert (answer.status, (await answer.json())["error"]) == (503, "stub_fault")
    assert await casts_in(stub) == 0


async def test_a_delay_puts_the_answer_off(client: ClientSession) -> None:
    loop = asyncio.get_running_loop()
    started_s = loop.time()
    async with client.get("/health", headers={"X-Stub-Fault": "delay=200ms"}) as answer:
        assert answer.status == 200
    assert loop.time() - started_s >= 0.2


async def test_cut_before_casts_and_says_nothing(client: ClientSession, stub: RunningStub) -> None:
    with pytest.raises(ServerDisconnectedError):
        await client.post("/v1/cast", headers={"X-Stub-Fault": "cut=before"})
    assert await casts_in(stub) == 1


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
@pytest.mark.parametrize("cut", ["head", "body"])
async def test_cut_head_and_cut_body_leave_the_answer_incomplete(client: ClientSession, cut: str, accept: str) -> None:
    async with client.post("/v1/cast", headers={"X-Stub-Fault": f"cut={cut}", "Accept": accept}) as answer:
        assert answer.status == 200
        with pytest.raises(ClientPayloadError):
            await answer.read()


async def test_errors_are_cut_too(client: ClientSession) -> None:
    with pytest.raises(ClientError):
        async with client.get("/nowhere", headers={"X-Stub-Fault": "cut=body"}) as answer:
            await answer.read()


async def test_a_trickle_spreads_the_body_out(client: ClientSession) -> None:
    loop = asyncio.get_running_loop()
    body, arrivals_s = b"", []
    async with client.post("/v1/cast", headers={"X-Stub-Fault": "trickle=30ms"}) as answer:
        async for part in answer.content.iter_any():
            body += part
            arrivals_s.append(loop.time())
    assert len(body) == answer.content_length
    assert len([1 for earlier, later in pairwise(arrivals_s) if later - earlier > 0.01]) >= 5
