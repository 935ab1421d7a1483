"""The load client asks exactly what it was told to, and says what became of each request."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from bench.fast_upstream import CAST_ANSWER, FastUpstream
from bench.load import Endpoint, Load, LoadResult, run
from tests.load import cast_load, cast_many

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def serving(answer: Answer) -> AsyncIterator[str]:
    """A server that calls ``answer`` for each connection and closes it when that returns; its URL."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await answer(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


@asynccontextmanager
async def fast_upstream() -> AsyncIterator[str]:
    server = await asyncio.get_running_loop().create_server(FastUpstream, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def ask(url: str, **load: float) -> LoadResult:
    settings = {"connections": 4, "total": 20, **load}
    return await run([Endpoint.of(url)], Load(**settings))  # type: ignore[arg-type]


async def head_of(reader: asyncio.StreamReader) -> bytes:
    return await reader.readuntil(b"\r\n\r\n")


async def test_exactly_the_total_is_asked_and_counted() -> None:
    asked = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        while True:
            await head_of(reader)
            asked += 1
            writer.write(OK)

    async with serving(answer) as url:
        result = await ask(url, total=1001, connections=7)
    assert asked == 1001
    assert result.statuses == {200: 1001}
    assert not result.errors
    assert len(result.latencies_s) == 1001
    assert 0 < result.latency_ms(0.5) <= result.latency_ms(0.99) <= result.latency_ms(1)


async def test_a_load_by_time_waits_for_the_answers_under_way() -> None:
    asked = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        while True:
            await head_of(reader)
            asked += 1
            await asyncio.sleep(0.01)
            writer.write(OK)

    async with serving(answer) as url:
        result = await run([Endpoint.of(url)], Load(connections=5, seconds=0.1))
    assert result.answered == asked > 0
    assert not result.errors


async def test_statuses_are_counted_apart_and_closed_connections_opened_again() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        writer.write(OK)
        await head_of(reader)
        writer.write(b"HTTP/1.1 402 Payment Required\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

    async with serving(answer) as url:
        result = await ask(url, total=40, connections=1)
    assert result.statuses == {200: 20, 402: 20}
    assert not result.errors


async def test_a_lost_request_is_an_error_and_is_not_sent_again() -> None:
    asked = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        await head_of(reader)
        asked += 1

    async with serving(answer) as url:
        result = await ask(url, total=9)
    assert asked == 9
    assert result.errors == {"closed": 9}
    assert result.answered == 0


@pytest.mark.parametrize(
    ("sent", "kind"),
    [(OK[:-1], "cut"), (OK[:10], "cut"), (b"nonsense\r\n\r\n", "malformed"), (OK + OK, "malformed")],
)
async def test_a_broken_answer_is_an_error_of_its_kind(sent: bytes, kind: str) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        writer.write(sent)

    async with serving(answer) as url:
        result = await ask(url, total=3)
    assert result.errors == {kind: 3}


async def test_an_answer_that_ends_with_the_connection_is_whole() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nto the end")

    async with serving(answer) as url:
        result = await ask(url, total=3)
    assert (result.statuses, result.errors) == ({200: 3}, {})


async def test_a_silent_server_is_a_time_out() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with serving(answer) as url:
        result = await ask(url, total=2, reply_timeout_s=0.1)
    assert result.errors == {"timeout": 2}


async def test_an_unreachable_server_is_an_error_for_each_request() -> None:
    async with serving(lambda _reader, _writer: asyncio.sleep(0)) as url:
        pass
    result = await ask(url, total=3)
    assert result.errors == {"connect": 3}


async def test_bodies_are_checked_where_asked() -> None:
    async with fast_upstream() as url:
        endpoint = Endpoint.of(url)
        right = await run([endpoint], Load(connections=2, total=10), check=lambda _status, body: body == CAST_ANSWER)
        wrong = await run([endpoint], Load(connections=2, total=10), check=lambda _status, body: body == b"other")
    assert (right.statuses, right.errors) == ({200: 10}, {})
    assert (wrong.statuses, wrong.errors) == ({200: 10}, {"body": 10})


async def test_casts_are_spread_over_gateways_and_keys() -> None:
    seen: set[tuple[str, bytes]] = set()

    def recording(name: str) -> Answer:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while True:
                head = await head_of(reader)
                assert head.startswith(b"POST /v1/cast HTTP/1.1\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
                await reader.readexactly(length)
                seen.add((name, head.partition(b"Bearer ")[2].partition(b"\r\n")[0]))
                writer.write(OK)

        return answer

    async with serving(recording("one")) as one, serving(recording("two")) as two:
        statuses = await cast_many([one, two], ["ck_a", "ck_b"], total=200, connections=16, seed=1)
    assert statuses == {200: 200}
    assert seen == {(name, key) for name in ("one", "two") for key in (b"ck_a", b"ck_b")}


async def test_a_cast_without_an_answer_fails_the_test_that_cast_it() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)

    async with serving(answer) as url:
        assert (await cast_load([url], "ck_a", total=2, connections=1)).errors == {"closed": 2}
        with pytest.raises(AssertionError, match="without an answer"):
            await cast_many([url], "ck_a", total=2, connections=1)


@pytest.mark.parametrize("settings", [{}, {"total": 1, "seconds": 1.0}, {"total": 1, "connections": 0}])
def test_a_load_that_makes_no_sense_is_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="a load needs"):
        Load(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(("url", "method"), [("https://host/", "GET"), ("host", "GET"), ("http://host/", "HEAD")])
def test_an_endpoint_that_cannot_be_asked_is_refused(url: str, method: str) -> None:
    with pytest.raises(ValueError, match=r"http|HEAD"):
        Endpoint.of(url, method=method)
