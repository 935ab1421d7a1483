"""A few thousand of the fuzzer's inputs, and hypothesis' own; ``./dev fuzz`` runs a million."""

from collections.abc import Callable, Coroutine, Iterator
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz import grammar
from tests.fuzz.reading import Message, answers_in, requests_in
from tests.fuzz.running import open_files
from tests.fuzz.world import World, run, running_world

INPUTS = 6000
# The fewest that are understood as requests: a fuzzer whose inputs are all refused at once tests little.
READ_MIN_SHARE = 0.2
Run = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(name="world", scope="module")
def _world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, Run]]:
    with running_world(tmp_path_factory.mktemp("fuzz")) as (world, loop):
        yield world, loop.run_until_complete


def test_mutated_messages_leave_no_doubt_and_nothing_behind(world: tuple[World, Run]) -> None:
    relay, run_until_complete = world
    run_until_complete(run(relay, 0, 500))
    open_before = open_files()
    run_until_complete(run(relay, 500, INPUTS - 500))
    assert open_files() - open_before <= 2 * relay.pooled_max


def test_many_of_the_inputs_are_understood() -> None:
    read = sum(bool(requests_in(grammar.requests(Random(number)))) for number in range(1000))
    assert read > READ_MIN_SHARE * 1000


_LINES = st.sampled_from(
    [
        b"GET /x HTTP/1.1",
        b"POST /x HTTP/1.1",
        b"Host: h",
        b"Content-Length: 3",
        b"Content-Length: 0",
        b"Transfer-Encoding: chunked",
        b"Connection: close",
        b"X: 1",
        b" X: 1",
        b"",
        b"3",
        b"abc",
        b"0",
        b"HTTP/1.1 200 OK",
        b"HTTP/1.1 204 x",
    ]
)
_ENDS = st.sampled_from([b"\r\n", b"\r\n", b"\r\n", b"\n", b"\r", b""])
_MESSAGES = st.lists(st.one_of(st.tuples(_LINES, _ENDS), st.tuples(st.binary(max_size=4), _ENDS)), max_size=14).map(
    lambda lines: b"".join(line + end for line, end in lines)
)


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None)
@given(data=_MESSAGES, cut=st.integers(0, 60))
def test_requests_that_hypothesis_puts_together(world: tuple[World, Run], data: bytes, cut: int) -> None:
    world[1](world[0].requests([piece for piece in (data[:cut], data[cut:]) if piece]))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None)
@given(data=_MESSAGES, head=st.booleans(), then_close=st.booleans())
def test_answers_that_hypothesis_puts_together(
    world: tuple[World, Run], data: bytes, head: bool, then_close: bool
) -> None:
    answer = b"HTTP/1.1 200 OK\r\n" + data
    world[1](world[0].answer([answer], method=b"HEAD" if head else b"GET", then_close=then_close))


def test_the_second_reader_reads() -> None:
    two = (
        b"POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabcGET /y HTTP/1.1\r\nHost: h\r\n\r\nGET bad\r\n\r\n"
    )
    assert requests_in(two) == [Message(b"POST", b"/x", b"abc"), Message(b"GET", b"/y", b"")]
    answers = b"HTTP/1.1 103 E\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhiHTTP/1.1 204 N\r\n\r\nX"
    found = answers_in(answers, [b"GET", b"GET"], closed=True)
    assert found.whole == [Message(b"", b"200", b"hi"), Message(b"", b"204", b"")]
    assert found.rest == "more than was asked for: b'X'"


@pytest.mark.parametrize("data", [b"", b"GET / HTT", b"\x00" * 50])
def test_the_second_reader_finds_nothing_in_nothing(data: bytes) -> None:
    assert requests_in(data) == []
