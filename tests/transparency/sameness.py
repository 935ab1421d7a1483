"""What must be the same on both sides, and what differs of necessity.

Left out are: hop-by-hop fields (RFC 9110 §7.6.1) and those the answer's own ``Connection`` names; ``Date``; the
protocol version where one side speaks HTTP/1.0 (it is each hop's own, RFC 9110 §6.2). Random ids, keys, tokens, times
and the account are replaced by their names. All else counts: names in their case and order, empty and repeated fields.
"""

import json
import re
from collections.abc import Sequence
from typing import Any

from tests.transparency.wire import Answer, Fields, Head
from tests.upstream_stub.running import Account

HOP_BY_HOP = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade")
)

# What a gateway may add to a request on its way, or answer in the upstream's place (Expect).
ADDED_ON_THE_WAY = frozenset(
    (b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host", b"x-request-id", b"expect")
)

# Each replacement has a fixed length, so that lengths compare as well.
RANDOM: Sequence[tuple[re.Pattern[bytes], bytes]] = (
    (re.compile(rb"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"), b"<uuid>"),
    (re.compile(rb"ck_[0-9a-f]{6,48}"), b"<key>"),
    (re.compile(rb"session=[\w-]{43}"), b"session=<token>"),
    (re.compile(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}\+00:00"), b"<time>"),
    (re.compile(rb'"elapsed_ms": \d+'), b'"elapsed_ms": <ms>'),
)


def comparable(answer: Answer, account: Account) -> dict[str, Any]:
    """The parts of an answer that must be equal on both sides, for one ``==`` with a readable difference."""
    body = without_random(answer.body, account)
    return {
        "interim": [(head.status, head.reason, _end_to_end(head, account)) for head in answer.interim],
        "status": (answer.head.status, answer.head.reason),
        "fields": _with_length_of(body, answer, _end_to_end(answer.head, account)),
        "body": body,
        "trailers": list(answer.trailers),
        "whole": answer.whole,
    }


def comparable_echo(answer: Answer, account: Account) -> dict[str, Any]:
    """As `comparable`, for an answer of ``/v1/echo``: the request as the upstream saw it, but what a gateway adds."""
    seen = json.loads(without_random(answer.body, account))
    fields = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in seen["fields"]]
    head = Head(version=b"", status=0, reason=b"", fields=fields)
    seen["fields"] = [each for each in _end_to_end(head, account) if each[0].lower() not in ADDED_ON_THE_WAY]
    if seen["version"] == "1.0":
        seen["version"] = "1.1"
    return {
        "status": (answer.head.status, answer.head.reason),
        "fields": [each for each in _end_to_end(answer.head, account) if each[0].lower() != b"content-length"],
        "request": seen,
    }


def versions_agree(direct: Answer, through: Answer, request: bytes) -> bool:
    old = b" HTTP/1.0\r\n" in request or direct.head.version == b"HTTP/1.0"
    return old or direct.head.version == through.head.version


def without_random(data: bytes, account: Account) -> bytes:
    for pattern, name in RANDOM:
        data = pattern.sub(name, data)
    return data.replace(account.email.encode(), b"<email>")


def _end_to_end(head: Head, account: Account) -> list[tuple[bytes, bytes]]:
    dropped = HOP_BY_HOP | {b"date"}
    for value in head.values(b"Connection"):
        dropped |= {name.strip().lower() for name in value.split(b",")}
    return [(name, without_random(value, account)) for name, value in head.fields if name.lower() not in dropped]


def _with_length_of(body: bytes, answer: Answer, fields: Fields) -> list[tuple[bytes, bytes]]:
    """`elapsed_ms` has as many digits as it has: where the length told is the body's own, tell the replaced body's.

    Of a cast that is cut off before them nobody can count them: tell only that they are one to four. (Of a download
    that is cut off, the exact length is compared.)
    """
    if not answer.whole and b'{"id": '.startswith(body):
        told = {b"%d" % length: b"<about 111>" for length in range(111, 115)}
    else:
        told = {str(len(answer.body)).encode(): str(len(body)).encode()} if answer.whole else {}
    return [(name, told.get(value, value) if name.lower() == b"content-length" else value) for name, value in fields]
