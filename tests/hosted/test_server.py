"""The application behind socket pairs."""

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
from aiohttp import http_parser

from gateway.hosted.server import HostedServer
from gateway.tasks import Tasks
from tests.hosted.world import KEY, World

BUDGET = b'{"period": "daily", "hard_limit_cents": 5}'


@pytest.fixture
async def server(world: World) -> AsyncIterator[HostedServer]:
    tasks = Tasks()
    server = HostedServer(world.services, tasks, shutdown_timeout_s=1.0)
    await server.start()
    yield server
    await server.close()
    await tasks.drain(1.0)
    assert len(tasks) == 0


class Connection:
    """The relay's end of a connection."""

    def __init__(self, server: HostedServer) -> None:
        self._socket = server.connect()
        assert self._socket.getblocking() is False
        self._buffer = b""

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self._socket, data)

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        """Status, header fields and body of the next answer."""
        while b"\r\n\r\n" not in self._buffer:
            await self._more()
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        status, *lines = head.decode().split("\r\n")
        fields = dict(line.split(": ", 1) for line in lines)
        length = int(fields.get("Content-Length", "0"))
        while len(self._buffer) < length:
            await self._more()
        body, self._buffer = self._buffer[:length], self._buffer[length:]
        return int(status.split()[1]), fields, body

    async def ended(self) -> bool:
        return await asyncio.get_running_loop().sock_recv(self._socket, 1) == b""

    def close(self) -> None:
        self._socket.close()

    async def _more(self) -> None:
        received = await asyncio.get_running_loop().sock_recv(self._socket, 65_536)
        assert received, "the connection ended inside an answer"
        self._buffer += received


@pytest.fixture
async def connection(server: HostedServer) -> AsyncIterator[Connection]:
    connection = Connection(server)
    yield connection
    connection.close()


def request(method: str, path: str, body: bytes = b"", /, **fields: str) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: gateway.example", f"Authorization: Bearer {KEY}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in fields.items()]
    if body:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + body


async def test_requests_that_were_sent_before_the_other_end_is_served_are_answered_in_order(
    connection: Connection,
) -> None:
    await connection.send(request("POST", "/v1/budgets", BUDGET) + request("GET", "/v1/budgets?period=daily"))
    status, fields, body = await connection.answer()
    assert (status, fields["Content-Type"], json.loads(body)["period"]) == (201, "application/json", "daily")
    status, _, body = await connection.answer()
    assert (status, len(json.loads(body)["budgets"])) == (200, 1)


async def test_connections_are_independent(server: HostedServer) -> None:
    connections = [Connection(server) for _ in range(20)]
    for connection in connections:
        await connection.send(request("GET", "/v1/usage"))
    assert [(await connection.answer())[0] for connection in connections] == [200] * 20
    for connection in connections:
        connection.close()


async def test_a_head_that_is_no_http_is_answered_in_json_too(connection: Connection) -> None:
    await connection.send(b"GET /v1/budgets HTTP/1.1\r\nHost: a\r\nbad header\r\n\r\n")
    status, fields, body = await connection.answer()
    assert (status, fields["Content-Type"]) == (400, "application/json")
    assert json.loads(body) == {"error": "invalid_request", "message": "The request is not well-formed HTTP."}
    assert await connection.ended()


async def test_heads_as_large_as_the_relay_lets_pass_are_read(connection: Connection) -> None:
    many = {f"X-{number}": "y" for number in range(300)}
    await connection.send(request("GET", "/v1/openapi.json", b"", X_Large="x" * 200_000, **many))
    assert (await connection.answer())[0] == 200


async def test_who_expects_to_be_told_to_continue_is_told(connection: Connection) -> None:
    await connection.send(request("GET", "/v1/openapi.json", Expect="100-continue"))
    assert (await connection.answer())[0] == 100
    assert (await connection.answer())[0] == 200


async def test_a_broken_body_is_400(connection: Connection) -> None:
    head = request("POST", "/v1/budgets", Transfer_Encoding="chunked", Content_Type="application/json")
    await connection.send(head + b"no length\r\n{\r\n")
    status, _, body = await connection.answer()
    assert (status, json.loads(body)["error"]) == (400, "invalid_request")


async def test_a_caller_that_hangs_up_does_not_keep_a_change_from_admission(server: HostedServer, world: World) -> None:
    arrived, go_on, finished = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def facts_changed(account_id: str, version: int) -> None:
        arrived.set()
        await go_on.wait()
        world.admission.changes.append((account_id, version))
        finished.set()

    world.admission.facts_changed = facts_changed  # type: ignore[method-assign]
    connection = Connection(server)
    await connection.send(request("POST", "/v1/budgets", BUDGET))
    await arrived.wait()
    connection.close()
    for _ in range(10):  # let the server see the end of the connection
        await asyncio.sleep(0)
    go_on.set()
    await finished.wait()
    assert world.admission.changes == [(world.account_id, 1)]


async def test_closing_answers_what_is_under_way_and_ends_the_rest(server: HostedServer, world: World) -> None:
    arrived, go_on = asyncio.Event(), asyncio.Event()

    async def facts_changed(account_id: str, version: int) -> None:
        arrived.set()
        await go_on.wait()

    world.admission.facts_changed = facts_changed  # type: ignore[method-assign]
    idle, busy = Connection(server), Connection(server)
    await idle.send(request("GET", "/v1/openapi.json"))
    await idle.answer()
    await busy.send(request("POST", "/v1/budgets", BUDGET))
    await arrived.wait()
    async with asyncio.TaskGroup() as group:
        group.create_task(server.close())
        assert await idle.ended()
        go_on.set()
        assert (await busy.answer())[0] == 201
    idle.close()
    busy.close()


async def test_a_server_that_does_not_run_takes_no_connection(world: World) -> None:
    server = HostedServer(world.services, Tasks())
    with pytest.raises(RuntimeError, match="the hosted application is not running"):
        server.connect()


async def test_a_connection_asked_for_just_before_the_close_is_ended(world: World) -> None:
    tasks = Tasks()
    server = HostedServer(world.services, tasks)
    await server.start()
    connection = Connection(server)
    await server.close()
    await tasks.drain(1.0)
    assert await connection.ended()
    connection.close()


def test_the_slow_parser_is_not_used_unnoticed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_parser, "HttpRequestParser", http_parser.HttpRequestParserPy)
    with pytest.raises(RuntimeError, match="aiohttp is installed without its C parser"):
        HostedServer(world.services, Tasks())
