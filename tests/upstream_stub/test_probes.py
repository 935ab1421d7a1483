import hashlib
import io
import os

import pytest
from aiohttp import ClientSession, WSMsgType

MANY_BYTES = 3 * 1024 * 1024 + 1


async def test_a_blob_has_the_length_asked_for_and_is_the_same_each_time(anyone: ClientSession) -> None:
    bodies = []
    for chunked in ("0", "1"):
        async with anyone.get("/v1/blob", params={"bytes": MANY_BYTES, "chunked": chunked}) as answer:
            assert ("Content-Length" in answer.headers) == (chunked == "0")
            bodies.append(await answer.read())
    assert len(bodies[0]) == MANY_BYTES
    assert bodies[0] == bodies[1]


@pytest.mark.parametrize("query", ["", "bytes=x", "bytes=-1", f"bytes={1 << 40}"])
async def test_a_blob_of_no_length_is_a_bad_request(anyone: ClientSession, query: str) -> None:
    async with anyone.get(f"/v1/blob?{query}") as answer:
        assert answer.status == 400


async def test_an_upload_is_answered_with_its_digest(anyone: ClientSession) -> None:
    body = os.urandom(MANY_BYTES)
    async with anyone.post("/v1/blob", data=io.BytesIO(body)) as answer:
        assert await answer.json() == {"bytes": len(body), "sha256": hashlib.sha256(body).hexdigest()}


async def test_the_mirror_gives_back_what_it_gets(anyone: ClientSession) -> None:
    body = os.urandom(MANY_BYTES)
    async with anyone.post("/v1/mirror", data=io.BytesIO(body), headers={"Content-Type": "image/x-noise"}) as answer:
        assert answer.content_type == "image/x-noise"
        assert await answer.read() == body


async def test_the_echo_tells_the_request_as_it_arrived(anyone: ClientSession) -> None:
    async with anyone.put("/v1/echo/a?b", data=b"xyz", headers={"x-CaSe": "1"}) as answer:
        seen = await answer.json()
    assert (seen["method"], seen["target"], seen["body_bytes"]) == ("PUT", "/v1/echo/a?b", 3)
    assert ["x-CaSe", "1"] in seen["fields"]


async def test_health_needs_no_credentials(anyone: ClientSession) -> None:
    async with anyone.get("/health") as answer:
        assert await answer.json() == {"status": "ok"}


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/nowhere", 404), ("GET", "/v1/cast", 405)])
async def test_what_is_not_there_is_refused_as_json(anyone: ClientSession, method: str, path: str, status: int) -> None:
    async with anyone.request(method, path) as answer:
        assert (answer.status, answer.content_type) == (status, "application/json")


async def test_the_websocket_echoes_text_and_bytes(anyone: ClientSession) -> None:
    async with anyone.ws_connect("/v1/live") as socket:
        await socket.send_str("héllo")
        await socket.send_bytes(b"\0\xff")
        assert [(message.type, message.data) for message in (await socket.receive(), await socket.receive())] == [
            (WSMsgType.TEXT, "héllo"),
            (WSMsgType.BINARY, b"\0\xff"),
        ]
