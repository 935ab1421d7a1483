"""The load client's response parser: exact about where an answer ends, however its bytes come."""

from collections.abc import Iterator

import pytest

from bench.response import HEAD_BYTES_MAX, ResponseError, ResponseReader

WITH_LENGTH = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = (
    b"HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2;a=b\r\nlo\r\n0\r\nTrailer: 1\r\n\r\n"
)
NO_BODY = b"HTTP/1.1 204 No Content\r\n\r\n"


def in_pieces(data: bytes, length: int) -> Iterator[bytes]:
    for start in range(0, len(data), length):
        yield data[start : start + length]


@pytest.mark.parametrize("length", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize(("data", "status", "body"), [(WITH_LENGTH, 200, b"hello"), (CHUNKED, 201, b"hello")])
def test_an_answer_is_read_whole_however_it_is_cut(data: bytes, status: int, body: bytes, length: int) -> None:
    reader = ResponseReader(keep_body=True)
    done = [reader.feed(piece) for piece in in_pieces(data, length)]
    assert done == [False] * (len(done) - 1) + [True]
    assert (reader.status, reader.body, reader.body_bytes, reader.close) == (status, body, 5, False)


def test_an_answer_without_a_body_ends_with_its_head() -> None:
    reader = ResponseReader()
    assert reader.feed(NO_BODY)
    assert reader.status == 204


def test_an_empty_body_ends_with_its_head() -> None:
    reader = ResponseReader()
    assert reader.feed(b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 0\r\n\r\n")
    assert reader.status == 429


def test_one_reader_reads_one_answer_after_another() -> None:
    reader = ResponseReader(keep_body=True)
    for data, status in ((WITH_LENGTH, 200), (NO_BODY, 204), (CHUNKED, 201)):
        assert reader.feed(data)
        assert reader.status == status
        reader.reset()
    assert reader.body == b""
    assert not reader.began


def test_an_interim_answer_is_passed_over() -> None:
    reader = ResponseReader()
    assert not reader.feed(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert reader.feed(WITH_LENGTH)
    assert reader.status == 200


@pytest.mark.parametrize(
    ("head", "close"),
    [
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\n", True),
        (b"HTTP/1.1 200 OK\r\nConnection: Close\r\n", True),
        (b"HTTP/1.1 200 OK\r\nConnection: keep-alive\r\n", False),
        (b"HTTP/1.0 200 OK\r\n", True),
        (b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n", False),
    ],
)
def test_it_knows_whether_the_connection_can_be_used_again(head: bytes, close: bool) -> None:
    reader = ResponseReader()
    assert reader.feed(head + b"Content-Length: 0\r\n\r\n")
    assert reader.close is close


def test_without_a_length_the_end_of_the_stream_ends_the_body() -> None:
    reader = ResponseReader(keep_body=True)
    assert not reader.feed(b"HTTP/1.1 200 OK\r\n\r\nhel")
    assert not reader.feed(b"lo")
    assert reader.end_of_stream()
    assert reader.body == b"hello"


@pytest.mark.parametrize("data", [WITH_LENGTH[:-1], CHUNKED[:-1], b"HTTP/1.1 200"])
def test_an_answer_that_is_cut_short_is_an_error(data: bytes) -> None:
    reader = ResponseReader()
    assert not reader.feed(data)
    with pytest.raises(ResponseError, match="in the middle"):
        reader.end_of_stream()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"HTTP/2 200\r\n\r\n", "status line"),
        (b"HTTP/1.1 abc OK\r\n\r\n", "status line"),
        (WITH_LENGTH + b"x", "after the end"),
        (CHUNKED + b"x", "after the end"),
        (NO_BODY + b"x", None),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", "Content-Length"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", "Content-Length"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", "both"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n", "transfer coding"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", "chunk size"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\r\n", "chunk size"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabc\r\n", "longer"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"0" * 300, "without an end"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"a" * HEAD_BYTES_MAX, "head"),
    ],
)
def test_what_is_no_answer_is_refused(data: bytes, message: str | None) -> None:
    with pytest.raises(ResponseError, match=message):
        ResponseReader().feed(data)
