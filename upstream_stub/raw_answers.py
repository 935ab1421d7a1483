"""Answers that are legal and rare, as the bytes on the wire, under ``/v1/raw/{name}``: what a relay may break."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class RawAnswer:
    """`close`: the body ends with the connection, or the answer says so."""

    wire: bytes
    close: bool = False


def _head(*lines: bytes) -> bytes:
    return b"\r\n".join((*lines, b"", b""))


RAW_ANSWERS: Mapping[str, RawAnswer] = {
    # Order, case, repetition, emptiness and bytes above ASCII are the sender's business (RFC 9110 §5.3, §5.5).
    "fields": RawAnswer(
        wire=_head(
            b"HTTP/1.1 200 Perfectly Fine",
            b"Date: Mon, 01 Jan 2024 00:00:00 GMT",
            b"X-Order-B: 2",
            b"x-order-a: 1",
            b"Set-Cookie: a=1; Path=/",
            b"X-SHOUT: yes",
            b"Set-Cookie: b=2; Path=/; Expires=Thu, 01 Jan 2099 00:00:00 GMT",
            b"X-Order-B: 3",
            b"X-Empty:",
            b"X-Latin: caf\xe9 \xfc",
            b"X-Tab: one\ttwo",
            b"X-Commas: a, b,, c",
            b"x_underscore: kept",
            b"Content-Type: text/plain;charset=ISO-8859-1",
            b"content-length: 4",
        )
        + b"caf\xe9"
    ),
    "no-reason": RawAnswer(wire=_head(b"HTTP/1.1 200 ", b"Content-Length: 2") + b"ok"),
    "unknown-status": RawAnswer(wire=_head(b"HTTP/1.1 299 Nearly", b"Content-Length: 2") + b"ok"),
    "not-modified": RawAnswer(wire=_head(b"HTTP/1.1 304 Not Modified", b'ETag: "v1"', b"Content-Length: 1234")),
    "no-content": RawAnswer(wire=_head(b"HTTP/1.1 204 No Content", b"X-Left: yes")),
    "empty": RawAnswer(wire=_head(b"HTTP/1.1 200 OK", b"Content-Length: 0")),
    "hop-by-hop": RawAnswer(
        wire=_head(
            b"HTTP/1.1 200 OK",
            b"Connection: X-Private, keep-alive",
            b"X-Private: between us",
            b"Keep-Alive: timeout=5",
            b"X-Public: for all",
            b"Content-Length: 2",
        )
        + b"ok"
    ),
    "early-hints": RawAnswer(
        wire=_head(b"HTTP/1.1 103 Early Hints", b"Link: </style.css>; rel=preload")
        + _head(b"HTTP/1.1 200 OK", b"Content-Length: 2")
        + b"ok"
    ),
    "chunked": RawAnswer(
        wire=_head(b"HTTP/1.1 200 OK", b"Transfer-Encoding: chunked", b"X-After: kept")
        + b"1\r\na\r\n0000A\r\nbcdefghijk\r\n3;name=value\r\nlmn\r\n0\r\n\r\n"
    ),
    "empty-chunked": RawAnswer(wire=_head(b"HTTP/1.1 200 OK", b"transfer-encoding: Chunked") + b"0\r\n\r\n"),
    "trailers": RawAnswer(
        wire=_head(b"HTTP/1.1 200 OK", b"Trailer: X-Sum", b"Transfer-Encoding: chunked")
        + b"2\r\nok\r\n0\r\nX-Sum: 42\r\n\r\n"
    ),
    "until-close": RawAnswer(
        wire=_head(b"HTTP/1.1 200 OK", b"Content-Type: text/plain") + b"until the end", close=True
    ),
    "close": RawAnswer(wire=_head(b"HTTP/1.1 200 OK", b"Connection: close", b"Content-Length: 2") + b"ok", close=True),
    "old": RawAnswer(wire=_head(b"HTTP/1.0 200 OK", b"Content-Length: 3") + b"old", close=True),
    "old-until-close": RawAnswer(wire=_head(b"HTTP/1.0 200 OK", b"X-Age: old") + b"until the end", close=True),
}
