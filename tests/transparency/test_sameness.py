"""The suite's own eyes: what it must see, and what it must not mind."""

import dataclasses

import pytest

from tests.transparency.sameness import comparable, versions_agree
from tests.transparency.wire import Answer, Head
from tests.upstream_stub.running import Account

ACCOUNT = Account(user_id="", email="one@example.com", password="", api_key="")
FIELDS = [(b"Content-Type", b"text/plain"), (b"X-A", b"1"), (b"X-A", b"2"), (b"Content-Length", b"2")]
ANSWER = Answer(
    interim=(),
    head=Head(version=b"HTTP/1.1", status=200, reason=b"OK", fields=FIELDS),
    body=b"ok",
    trailers=(),
    whole=True,
)


def with_fields(fields: list[tuple[bytes, bytes]], body: bytes = b"ok") -> Answer:
    return dataclasses.replace(ANSWER, head=dataclasses.replace(ANSWER.head, fields=fields), body=body)


@pytest.mark.parametrize(
    "other",
    [
        dataclasses.replace(ANSWER, body=b"no"),
        dataclasses.replace(ANSWER, whole=False),
        dataclasses.replace(ANSWER, trailers=[(b"X", b"1")]),
        dataclasses.replace(ANSWER, interim=[ANSWER.head]),
        dataclasses.replace(ANSWER, head=dataclasses.replace(ANSWER.head, reason=b"Ok")),
        with_fields(FIELDS[1:]),
        with_fields([*FIELDS, (b"Via", b"1.1 gateway")]),
        with_fields([FIELDS[0], FIELDS[2], FIELDS[1], FIELDS[3]]),
        with_fields([(b"content-type", b"text/plain"), *FIELDS[1:]]),
        with_fields([*FIELDS[:3], (b"Content-Length", b"3")]),
    ],
    ids=[
        "body",
        "cut off",
        "trailer",
        "interim answer",
        "reason",
        "field gone",
        "field added",
        "order",
        "case",
        "length",
    ],
)
def test_a_difference_is_seen(other: Answer) -> None:
    assert comparable(other, ACCOUNT) != comparable(ANSWER, ACCOUNT)


def test_hop_by_hop_fields_and_dates_are_not_minded() -> None:
    others = [(b"Date", b"today"), (b"Connection", b"X-Mine"), (b"X-Mine", b"1"), (b"Transfer-Encoding", b"chunked")]
    assert comparable(with_fields([*others, *FIELDS]), ACCOUNT) == comparable(ANSWER, ACCOUNT)


def test_random_ids_and_the_digits_of_a_duration_are_not_minded() -> None:
    bodies = (
        b'{"id": "0b0f9c3e-6a51-4c3c-9d53-6d9f1f8f2a11", "elapsed_ms": 9, "key": "ck_0123456789ab"}',
        b'{"id": "ab0f9c3e-6a51-4c3c-9d53-6d9f1f8f2a1a", "elapsed_ms": 12, "key": "ck_ba9876543210"}',
    )
    one, other = (with_fields([(b"Content-Length", b"%d" % len(body))], body) for body in bodies)
    assert comparable(one, ACCOUNT) == comparable(other, ACCOUNT)


def test_the_version_counts_unless_a_side_speaks_http_1_0() -> None:
    old = dataclasses.replace(ANSWER, head=dataclasses.replace(ANSWER.head, version=b"HTTP/1.0"))
    assert not versions_agree(ANSWER, old, b"GET / HTTP/1.1\r\n")
    assert versions_agree(ANSWER, old, b"GET / HTTP/1.0\r\n")
    assert versions_agree(old, ANSWER, b"GET / HTTP/1.1\r\n")


@pytest.mark.parametrize("begun", [b'{"id": ', b""])
def test_of_a_cast_cut_off_the_digits_of_its_time_are_not_minded(begun: bytes) -> None:
    def cut_off(length: int, body: bytes = begun) -> Answer:
        return dataclasses.replace(with_fields([(b"Content-Length", b"%d" % length)], body), whole=False)

    assert comparable(cut_off(112), ACCOUNT) == comparable(cut_off(111), ACCOUNT)
    assert comparable(cut_off(115), ACCOUNT) != comparable(cut_off(111), ACCOUNT)
    assert comparable(cut_off(112, b"0123456"), ACCOUNT) != comparable(cut_off(111, b"0123456"), ACCOUNT)
