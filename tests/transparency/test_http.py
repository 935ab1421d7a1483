import pytest

from tests.transparency.conftest import Sides
from tests.transparency.phase1_requests import CASES, Case, Request
from tests.transparency.play import play
from tests.transparency.sameness import comparable, comparable_echo, versions_agree
from tests.transparency.wire import connect


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_phase_1_is_answered_the_same_with_and_without_the_gateway(sides: Sides, case: Case) -> None:
    direct = await play(case, sides.direct_url, sides.upstream)
    assert [answer.head.status for answer in direct.answers] == [request.status for request in case.requests]
    assert [answer.whole for answer in direct.answers] == [case.whole] * len(case.requests)
    through = await play(case, sides.through_url, sides.upstream)
    for request, expected, answer in zip(case.requests, direct.answers, through.answers, strict=True):
        compared = comparable_echo if case.echo else comparable
        assert compared(answer, through.account) == compared(expected, direct.account)
        assert versions_agree(expected, answer, request.line + b"\r\n")
    assert (direct.ended, through.ended) == (case.closes, case.closes)


async def test_a_body_flows_both_ways_before_it_is_complete(sides: Sides) -> None:
    """Each part is sent only when the one before has come back: whoever waits for more waits for ever."""
    parts = [b"x" * 1000, b"y" * 70_000, b"z"]
    request = Request(line=b"POST /v1/mirror HTTP/1.1", fields=[b"Content-Length: %d" % sum(map(len, parts))])
    async with connect(sides.through_url) as connection:
        await connection.send(request.wire({})[0])
        for number, part in enumerate(parts):
            await connection.send(part)
            if number == 0:
                assert (await connection.read_head()).status == 200
            assert await connection.reader.readexactly(len(part)) == part


async def test_chunks_flow_both_ways_before_the_last_one(sides: Sides) -> None:
    request = Request(line=b"POST /v1/mirror HTTP/1.1", fields=[b"Transfer-Encoding: chunked"])
    async with connect(sides.through_url) as connection:
        await connection.send(request.wire({})[0])
        for number, part in enumerate((b"one", b"three", b"seventeen")):
            await connection.send(b"%x\r\n%s\r\n" % (len(part), part))
            if number == 0:
                assert (await connection.read_head()).status == 200
            assert await connection.reader.readexactly(len(part) + 5) == b"%x\r\n%s\r\n" % (len(part), part)
        await connection.send(b"0\r\n\r\n")
        assert await connection.reader.readexactly(5) == b"0\r\n\r\n"


async def test_the_head_of_a_slow_answer_comes_before_its_body(sides: Sides) -> None:
    slow = Request(line=b"GET /v1/blob?bytes=200000 HTTP/1.1", fields=[b"X-Stub-Fault: trickle=60s"])
    async with connect(sides.through_url) as connection:
        await connection.send(slow.wire({})[0])
        assert (await connection.read_head()).status == 200
        assert await connection.reader.read(1)
