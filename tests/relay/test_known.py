"""Heads that were met before are not parsed again: nobody may be able to tell."""

import asyncio
import itertools
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.policy.rules import Policy
from gateway.relay.known import KnownAnswers
from gateway.relay.observed import ObservedExchange
from tests.relay.conftest import NO_RULES, Client, Running, answering

OK = b"HTTP/1.1 200 OK\r\nX-A: 1\r\nContent-Length: 2\r\n\r\n"
POST = b"POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\n"


async def echo(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers with the method and the body that came."""
    length = next((int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0)
    text = head.partition(b" ")[0] + b" " + await reader.readexactly(length)
    body = b"" if head.startswith(b"HEAD") else text
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(text), body))


async def answer_of(client: Client) -> tuple[bytes, bytes]:
    head = await client.read_head()
    return head, await client.read(int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]))


def known_answers(running: Running) -> int:
    return len(running.relay.upstream_pool.known_answers)


async def test_the_same_head_with_other_bodies(running: Running) -> None:
    running.upstream.answer = echo
    client = await running.connect()
    for body in (b"one", b"two", b"six", b"ten"):
        await client.send(POST + body)
        assert (await answer_of(client))[1] == b"POST " + body
    assert known_answers(running) == 1
    assert len({head.partition(b"X-Request-Id: ")[0] for head in running.upstream.heads}) == 1
    assert len(set(running.upstream.heads)) == 4  # each has an id of its own


async def test_the_same_head_whose_body_comes_in_pieces_or_with_the_next_request(running: Running) -> None:
    running.upstream.answer = echo
    client = await running.connect()
    for pieces in ([POST + b"abc"], [POST + b"d", b"ef"], [POST, b"ghi"], [POST + b"jkl" + POST + b"mno"]):
        sent = b"".join(pieces)
        for piece in pieces:
            await client.send(piece)
            await asyncio.sleep(0.01)
        for begin in range(len(POST), len(sent), len(POST) + 3):
            assert (await answer_of(client))[1] == b"POST " + sent[begin : begin + 3]


async def test_another_head_of_the_same_length_is_another_request(running: Running) -> None:
    running.upstream.answer = echo
    client = await running.connect()
    for method in (b"POST", b"POST", b"PUUT", b"POST"):
        await client.send(POST.replace(b"POST", method.replace(b"PUUT", b"LOCK")) + b"abc")
        assert (await answer_of(client))[1].startswith(method.replace(b"PUUT", b"LOCK"))


async def test_an_answer_to_head_has_no_body_however_well_its_head_is_known(running: Running) -> None:
    running.upstream.answer = echo
    client = await running.connect()
    get = b"GET /x HTTP/1.1\r\nHost: h\r\n\r\n"
    for _ in range(3):
        await client.send(get.replace(b"GET", b"PUT"))
        assert (await answer_of(client))[1] == b"PUT "
    await client.send(get.replace(b"GET", b"HEAD") + get)
    assert b"Content-Length: 5\r\n" in await client.read_head()
    assert (await answer_of(client))[1] == b"GET "


async def test_a_known_answer_with_bytes_after_it_ends_the_upstream_connection(running: Running) -> None:
    running.upstream.answer = answering(OK + b"hi")
    client = await running.connect()
    for _ in range(3):
        await client.send(POST + b"abc")
        await answer_of(client)
    running.upstream.answer = answering(OK + b"hiHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
    await client.send(POST + b"abc")
    assert (await answer_of(client))[1] == b"hi"
    running.upstream.answer = answering(OK + b"ok")
    await client.send(POST + b"abc")
    assert (await answer_of(client))[1] == b"ok"
    assert running.upstream.connections == 2


async def test_framing_of_the_client_s_own_is_added_to_a_known_head(running: Running) -> None:
    running.upstream.answer = answering(OK + b"hi")
    client = await running.connect()
    for _ in range(2):
        await client.send(POST + b"abc")
        await answer_of(client)
    old = await running.connect()
    await old.send(b"GET /x HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    assert await answer_of(old) == (OK[:-2] + b"Connection: keep-alive\r\n\r\n", b"hi")
    last = await running.connect()
    await last.send(b"GET /x HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
    assert await last.read_all() == OK[:-2] + b"Connection: close\r\n\r\nhi"


@pytest.mark.parametrize("line", [b"X-B: 1", b"X-B:1", b"X-B: 1\r\nConnection: keep-alive", b"Keep-Alive: timeout=5"])
async def test_a_known_answer_is_passed_on_as_it_was_when_it_was_parsed(running: Running, line: bytes) -> None:
    running.upstream.answer = answering(OK[:-2] + line + b"\r\n\r\nhi")
    client = await running.connect()
    answers = []
    for _ in range(4):
        await client.send(POST + b"abc")
        answers.append(await answer_of(client))
    assert known_answers(running) == 1
    assert answers == [(OK[:-2] + (b"X-B: 1\r\n" if b"X-B" in line else b"") + b"\r\n", b"hi")] * 4


async def test_a_known_answer_has_the_stages_of_any_other(running: Running) -> None:
    seen: Any = []
    observer: Any = SimpleNamespace(saw=seen.append)
    running.relay.new_exchange = lambda *call: ObservedExchange(*call, observer, draw=1.0, trace=None)
    running.upstream.answer = answering(OK + b"hi")
    client = await running.connect()
    for _ in range(4):
        await client.send(POST + b"abc")
        await answer_of(client)
    assert [(one.status, list(one.stages)) for one in seen] == [(200, ["connect", "first_byte", "answer"])] * 4


async def test_new_rules_hold_for_the_next_request_with_the_same_head(running: Running) -> None:
    running.upstream.answer = echo
    client = await running.connect()
    for _ in range(2):
        await client.send(POST + b"abc")
        assert (await client.read_head()).startswith(b"HTTP/1.1 200 ")
        await client.read(8)
    policy = Policy(name="x", methods=frozenset(), path="/X")  # "/x" is then a doubtful spelling
    running.relay.use(replace(NO_RULES, policies=(policy,)))
    await client.send(POST + b"abc")
    assert (await client.read_head()).startswith(b"HTTP/1.1 400 ")


async def test_new_limits_hold_for_the_next_request_with_another_head(running: Running) -> None:
    running.upstream.answer = echo
    client = await running.connect()
    await client.send(POST + b"abc")
    await answer_of(client)
    running.limit(target_bytes_max=1)
    await client.send(POST.replace(b"/x", b"/y") + b"abc")
    assert (await client.read_head()).startswith(b"HTTP/1.1 414 ")


HEADS = (
    OK,
    b"HTTP/1.1 200 OK\r\nX-A: 2\r\nContent-Length: 2\r\n\r\n",
    b"HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 404 No\r\nContent-Length: 3\r\n\r\n",
)


@given(st.lists(st.sampled_from(HEADS), max_size=12), st.binary(max_size=4))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_what_is_found_is_what_was_learnt(heads: list[bytes], rest: bytes) -> None:
    answers = KnownAnswers()
    for head in heads:
        length = int(head.partition(b"Content-Length: ")[2].partition(b"\r\n")[0])
        answers.learn(head + b"b" * length, int(head[9:12]), head, length)
    for head in HEADS:
        known = answers.find(head + rest)
        length = int(head.partition(b"Content-Length: ")[2].partition(b"\r\n")[0])
        twice = any(pair == (head, head) for pair in itertools.pairwise(heads))
        assert (known is not None) == (twice and len(rest) == length)
        assert known is None or (known.head + b"\r\n", known.status) == (head, int(head[9:12]))


def test_what_differs_each_time_is_not_kept() -> None:
    answers = KnownAnswers()
    for number in range(1000):
        answers.learn(b"HTTP/1.1 200 OK\r\nX-Id: %d\r\nContent-Length: 0\r\n\r\n" % number, 200, b"\r\n", 0)
    assert len(answers) == 0


def test_what_is_kept_has_a_bound() -> None:
    answers = KnownAnswers()
    for number in range(10_000):
        for _ in range(2):
            answers.learn(b"HTTP/1.1 200 OK\r\nX-Id: %d\r\nContent-Length: 0\r\n\r\n" % number, 200, b"\r\n", 0)
    assert 0 < len(answers) <= 256


async def test_empty_lines_behind_an_answer_do_not_become_part_of_it(running: Running) -> None:
    """The parser skips them, and an answer's length says where it ends."""
    running.upstream.answer = answering(OK + b"hi\r\n\n")
    client = await running.connect()
    for _ in range(4):
        await client.send(POST + b"abc")
        assert await answer_of(client) == (OK, b"hi")
    assert known_answers(running) == 0


async def test_empty_lines_behind_a_request_do_not_become_its_body(running: Running) -> None:
    running.upstream.answer = echo
    client = await running.connect()
    for body, rest in ((b"\r\n", b"\r\n"), (b"\r\n", b"\r\n"), (b"\r\n", b"XY")):
        await client.send(POST.replace(b": 3", b": 2") + body + rest)
        assert (await answer_of(client))[1] == b"POST " + body


async def test_a_head_behind_an_interim_one_is_not_taken_for_its_body(running: Running) -> None:
    """Two heads in one piece: the first must not come to stand for whatever follows it."""
    hints = b"HTTP/1.1 103 Early Hints\r\n\r\n"
    good = b"HTTP/1.1 200 OK\r\nX: 1\r\nContent-Length: 2\r\n\r\nhi"
    bad = b"HTTP/1.1 200 OK\nX : 1\r\nContent-Length: 2\r\n\r\nhi"
    client = await running.connect()
    running.upstream.answer = answering(hints + good)
    for _ in range(3):
        await client.send(POST + b"abc")
        assert await client.read_head() == hints
        assert (await answer_of(client))[1] == b"hi"
    assert known_answers(running) == 0
    assert len(good) == len(bad)
    running.upstream.answer = answering(hints + bad)
    await client.send(POST + b"abc")
    assert await client.read_head() == hints
    assert b" 502 " in await client.read_head()


async def test_a_body_behind_an_interim_answer_is_a_body_though_it_reads_like_a_known_answer(running: Running) -> None:
    client = await running.connect()
    running.upstream.answer = answering(OK + b"hi")
    for _ in range(3):
        await client.send(POST + b"abc")
        assert (await answer_of(client))[1] == b"hi"
    assert known_answers(running) == 1
    received = asyncio.Event()
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (len(OK) + 5)

    async def answer(_head: bytes, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 103 Early Hints\r\n\r\n" + head)
        await received.wait()
        received.clear()
        writer.write(OK + b"hi")
        await received.wait()
        writer.write(b"end")

    running.upstream.answer = answer
    await client.send(b"GET /x HTTP/1.1\r\nHost: h\r\n\r\n")
    await client.read_head()
    assert await client.read_head() == head
    received.set()
    assert await client.read(len(OK) + 2) == OK + b"hi"
    received.set()
    assert await client.read(3) == b"end"
