"""What is read of an answer whose cost is measured, however it is cut into pieces."""

import gzip
import itertools
import json
import zlib
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.policy.costs import BytesCost, DurationCost, HeaderCost, JsonCost, Part
from gateway.relay.meter import Meter
from gateway.relay.server_events import ServerEvents

PRICE = Fraction(1)
TOKENS = JsonCost(pointer="/usage/tokens", microcents_per_unit=PRICE)
ALL_TOKENS = JsonCost(pointer="/usage/tokens", microcents_per_unit=PRICE, events="sum")
JSON = b"Content-Type: application/json\r\n"
EVENTS = b"Content-Type: text/event-stream; charset=utf-8\r\n"
STREAM = (
    b'data: {"usage": null}\n\n'
    b': a comment\nevent: delta\ndata: {"usage": {"tokens": 3}}\n\n'
    b'data: {"text": "no usage here"}\r\n\r\n'
    b'data: {"usage":\ndata: {"tokens": 4}}\n\n'
    b"data: [DONE]\n\n"
)


def units(part: Part, *pieces: bytes, head: tuple[bytes, ...] = (JSON,), bytes_max: int = 1000) -> object:
    meter = Meter([part], bytes_max)
    meter.head(head)
    for piece in pieces:
        meter.body(piece)
    return meter.units(0.0)[0]


def test_a_value_of_a_json_answer() -> None:
    assert units(TOKENS, b'{"usage": {"tok', b'ens": 12}}') == 12
    assert units(TOKENS, b'{"usage": {"tokens": 1.5e-3}}') == Fraction(15, 10_000)
    assert units(TOKENS, b'{"usage": {"tokens": "7"}}') == 7
    assert units(JsonCost(pointer="/a/1", microcents_per_unit=PRICE), b'{"a": [1, 2]}') == 2


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b'{"usage": 1}', b'{"usage": {"tokens": -1}}', b'{"usage": {"tokens": true}}', b"\xff",
     b'{"usage": {"tokens": NaN}}', b'{"usage": {"tokens": ' + b"9" * 500 + b"}}", b"[" * 900],
)  # fmt: skip
def test_an_answer_that_does_not_tell(body: bytes) -> None:
    assert units(TOKENS, body) is None


def test_an_answer_beyond_the_bound_does_not_tell_and_is_not_kept() -> None:
    assert units(TOKENS, b'{"usage": {"tokens": 1}, "text": "', b"x" * 1000, b'"}') is None
    assert units(TOKENS, b'{"usage": {"tokens": 1}}' + b" " * (1000 - 24)) == 1


def test_of_events_the_last_or_all() -> None:
    assert units(TOKENS, STREAM, head=(EVENTS,)) == 4
    assert units(ALL_TOKENS, STREAM, head=(EVENTS,)) == 7


@given(cuts=st.lists(st.integers(0, len(STREAM)), max_size=12), ending=st.sampled_from([b"\n", b"\r\n", b"\r"]))
def test_events_are_the_same_however_the_stream_is_cut_and_its_lines_end(cuts: list[int], ending: bytes) -> None:
    stream = STREAM.replace(b"\r\n", b"\n").replace(b"\n", ending)
    places = sorted({0, *(min(cut, len(stream)) for cut in cuts), len(stream)})
    pieces = [stream[start:end] for start, end in itertools.pairwise(places)]
    assert units(ALL_TOKENS, *pieces, head=(EVENTS,)) == 7


@pytest.mark.parametrize("ending", [b"\n", b"\r\n", b"\r"])
def test_a_stream_may_be_cut_at_every_place_and_at_all_of_them(ending: bytes) -> None:
    stream = STREAM.replace(b"\r\n", b"\n").replace(b"\n", ending)
    for place in range(1, len(stream)):
        assert units(ALL_TOKENS, stream[:place], stream[place:], head=(EVENTS,)) == 7
    assert units(ALL_TOKENS, *(bytes((byte,)) for byte in stream), head=(EVENTS,)) == 7


def test_a_stream_may_mix_its_line_ends() -> None:
    seen: list[bytes] = []
    events = ServerEvents(seen.append, 100)
    for byte in b"data: 1\r\n\ndata: 2\r\rdata: 3\n\r\n":
        events.feed(bytes((byte,)))
    assert seen == [b"1", b"2", b"3"]


def test_an_event_without_the_blank_line_at_the_end_of_the_stream_counts() -> None:
    assert units(TOKENS, b'data: {"usage": {"tokens": 5}}', head=(EVENTS,)) == 5


def test_a_name_written_with_escapes_is_found() -> None:
    assert units(TOKENS, b'data: {"\\u0075sage": {"tokens": 5}}\n\n', head=(EVENTS,)) == 5


@pytest.mark.parametrize(
    ("pointer", "event"),
    [
        ("/année", '{"année": 3}'),
        ("/année", r'{"ann\u00e9e": 3}'),
        ("/0/tokens", '[{"tokens": 3}]'),
        ("/a~1b", '{"a/b": 3}'),
        ("/a~1b", r'{"a\/b": 3}'),
        ('/a"b', r'{"a\"b": 3}'),
    ],
)
def test_a_value_of_an_event_is_found_where_one_of_a_plain_answer_is(pointer: str, event: str) -> None:
    part = JsonCost(pointer=pointer, microcents_per_unit=PRICE)
    assert units(part, event.encode()) == 3
    assert units(part, b"data: %b\n\n" % event.encode(), head=(EVENTS,)) == 3


def test_a_stream_may_be_longer_than_the_bound_but_no_event_of_it() -> None:
    text = b"data: " + json.dumps({"text": "x" * 400}).encode() + b"\n\n"
    assert units(TOKENS, *[text] * 20, STREAM, head=(EVENTS,)) == 4
    long = b'data: {"text": "' + b"x" * 1001 + b'"}\n\n'
    assert units(TOKENS, STREAM, long, head=(EVENTS,)) is None
    assert units(TOKENS, STREAM, *(bytes([byte]) for byte in long), head=(EVENTS,)) is None


def test_no_more_is_kept_than_the_event_under_way() -> None:
    kept: list[bytes] = []
    events = ServerEvents(kept.append, 100)
    for _ in range(1000):
        events.feed(b"data: " + b"x" * 30 + b"\n")
    events.feed(b"\n")
    assert events.is_too_long
    assert sum(map(len, kept)) <= 100


@pytest.mark.parametrize(("coding", "wbits"), [(b"gzip", 31), (b"deflate", 15)])
def test_compressed_answers_are_read_too(coding: bytes, wbits: int) -> None:
    head = (b"Content-Encoding: " + coding + b"\r\n",)
    compressor = zlib.compressobj(wbits=wbits)
    packed = compressor.compress(STREAM) + compressor.flush()
    pieces = [packed[place : place + 7] for place in range(0, len(packed), 7)]
    assert units(ALL_TOKENS, *pieces, head=(EVENTS, *head)) == 7
    assert units(TOKENS, b"no " + packed, head=(EVENTS, *head)) is None
    assert units(TOKENS, packed, head=(EVENTS, b"Content-Encoding: br\r\n")) is None


def test_a_compressed_answer_may_consist_of_several_members() -> None:
    body = b"".join(gzip.compress(event) for event in STREAM.splitlines(keepends=True))
    for cut in range(len(body)):
        head = (EVENTS, b"Content-Encoding: gzip\r\n")
        assert units(ALL_TOKENS, body[:cut], body[cut:], head=head) == 7
    assert units(TOKENS, gzip.compress(b'{"usage": {"tokens": 1}}') + b"junk", head=(JSON, head[1])) is None


def test_a_compressed_answer_takes_no_more_memory_than_a_plain_one() -> None:
    compressor = zlib.compressobj(wbits=31)
    packed = compressor.compress(b" " * 50_000_000) + compressor.flush()
    assert units(TOKENS, packed, head=(JSON, b"Content-Encoding: gzip\r\n")) is None


def test_a_header_tells_in_any_spelling_but_not_twice() -> None:
    part = HeaderCost(field="x-tokens", microcents_per_unit=PRICE)
    assert units(part, head=(JSON, b"X-Tokens:  12 \r\n")) == 12
    assert units(part, head=(b"x-TOKENS: 0.5\r\n",)) == Fraction(1, 2)
    assert units(part, head=(b"X-Tokens: 1\r\n", b"X-Tokens: 1\r\n")) is None
    assert units(part, head=(JSON,)) is None
    assert units(part, head=(b"X-Tokens: many\r\n",)) is None


def test_bytes_and_time() -> None:
    parts = [BytesCost(microcents_per_byte=PRICE, of=of) for of in ("answer", "request", "both")]
    meter = Meter([*parts, DurationCost(microcents_per_ms=PRICE)], 10)
    assert meter.units(5.0) == [0, 0, 0, 0]  # never sent
    meter.sent(1.0)
    meter.asked([b"12345", b"67"])
    meter.head((JSON,))
    meter.body(b"x" * 20)
    assert meter.units(1.2505) == [20, 7, 27, Fraction(2505, 10)]
