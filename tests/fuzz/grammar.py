"""Inputs: messages put together from good and bad parts, then spoilt at a few places. All from one seed."""

from collections.abc import Callable, Sequence
from random import Random

Mutator = Callable[[Random, bytes], bytes]

_METHODS = [b"GET"] * 10 + [b"POST"] * 10 + [b"PUT", b"HEAD", b"OPTIONS", b"DELETE", b"TRACE", b"CONNECT", b"PRI", b"X"]
_TARGETS = [b"/x"] * 20 + [
    b"/",
    b"*",
    b"/a/../x",
    b"http://h/x",
    b"http://o/x",
    b"h:80",
    b"/x#y",
    b"/%00",
    b"//",
    b"?",
    b"",
]
_VERSIONS = [b"HTTP/1.1"] * 30 + [b"HTTP/1.0", b"HTTP/2.0", b"HTTP/0.9", b"RTSP/1.0", b"http/1.1", b"HTTP/1.1 "]
_LENGTHS = [
    b"3",
    b"0",
    b"5",
    b"+3",
    b"-1",
    b"0x3",
    b"3, 3",
    b"03",
    b" 3",
    b"3 ",
    b"",
    b"99999999999999999999",
    b"3\x0b",
    b"1e1",
]
_CODINGS = [
    b"chunked",
    b"chunked",
    b"Chunked",
    b"identity",
    b"gzip, chunked",
    b"chunked, gzip",
    b"xchunked",
    b"chunked\x0b",
]
_FIELDS = [
    b"Host: h",
    b"Host: o",
    b"X: 1",
    b"X:",
    b"X : 1",
    b" X: 1",
    b"X\x00: 1",
    b"X: a\x00",
    b"X: \xff",
    b"Connection: close",
    b"Connection: keep-alive",
    b"Connection: Upgrade",
    b"Connection: Host, Content-Length, Transfer-Encoding",
    b"Upgrade: websocket",
    b"Upgrade: h2c",
    b"Expect: 100-continue",
    b"Expect: x",
    b"TE: trailers",
    b"Trailer: X",
    b"Max-Forwards: 0",
    b"Cookie: a=b",
    b"Authorization: Bearer x",
    b"X-Forwarded-For: 1.2.3.4",
    b"Content_Length: 3",
    b"Transfer_Encoding: chunked",
    b": x",
    b"X",
]
_VALUES = [b"1", b"2", b"3", b"44", b"a b", b"Bearer x", b"Bearer y", b"x, y", b" a", b"a ", b"a\tb", b"\xff", b""]
_STATUSES = [b"200 OK"] * 8 + [
    b"200",
    b"204 No Content",
    b"304 Not Modified",
    b"103 Early",
    b"100 Continue",
    b"101 Switching",
]
_STATUSES += [b"500 \xff", b"999 X", b"099 X", b"000", b"20 OK", b"2000 OK", b"200 a\x00b", b"404 Not Found"]
_ANSWER_FIELDS = [*_FIELDS, b"Content-Type: text/plain", b"Set-Cookie: a=b", b"Date: x", b"Keep-Alive: timeout=1"]
_EXTENSIONS = [b"", b"", b"", b";a", b";a=b", b';a="b"', b" ;a", b";\n", b";a\x00"]
_PIECES = [
    b"\r\n",
    b"\n",
    b"\r",
    b"\x00",
    b" ",
    b"\t",
    b":",
    b"0\r\n\r\n",
    b"\r\n\r\n",
    b"\xff",
    b"\x0b",
    b"GET /smuggled HTTP/1.1\r\n",
]
_PIECES += [
    b"Transfer-Encoding: chunked\r\n",
    b"Content-Length: 5\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
]


def requests(random: Random) -> bytes:
    """What one client sends on one connection."""
    data = b"".join(_request(random) for _ in range(random.choice((1, 1, 1, 2, 3))))
    return _spoilt(random, data)


def answer(random: Random) -> bytes:
    """What an upstream says to one request."""
    interim = b"".join(_head(random, b"HTTP/1.1 103 Early", []) for _ in range(random.choice((0, 0, 0, 1, 3))))
    version = random.choice((*[b"HTTP/1.1"] * 20, b"HTTP/1.0", b"HTTP/2.0", b"RTSP/1.0"))
    fields = [random.choice(_ANSWER_FIELDS) for _ in range(random.choice((0, 0, 1, 2)))]
    framing, body = _framed(random)
    return _spoilt(random, interim + _head(random, version + b" " + random.choice(_STATUSES), fields + framing) + body)


def pieces(random: Random, data: bytes) -> list[bytes]:
    """The data as it may arrive."""
    if len(data) < 2 or random.random() < 0.5:
        return [data]
    if random.random() < 0.1:
        return [data[place : place + 1] for place in range(len(data))]
    cuts = sorted(random.randrange(1, len(data)) for _ in range(random.choice((1, 1, 2, 4))))
    return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def nearly_the_same(random: Random) -> list[bytes]:
    """Requests of one connection whose heads differ in the values of a few fields; one in five is spoilt besides."""
    names = random.sample((b"X", b"x", b"X-Y", b"Via", b"Authorization", b"X-API-Key", b"Cookie"), random.randint(1, 5))
    lines = [b"Host: h", *(name + b": 1" for name in names), *random.sample(_FIELDS, random.choice((0, 0, 0, 1)))]
    framing, body = random.choice((([], b""), ([b"Content-Length: 3"], b"abc"), ([b"Content-Length: 0"], b"")))
    line = random.choice((b"GET /x HTTP/1.1", b"POST /x HTTP/1.1"))
    place, found = random.randrange(len(names)), []
    for _ in range(random.randint(3, 7)):
        for where in random.choice(([place], [place], [place], range(len(names)))):
            lines[1 + where] = names[where] + b": " + random.choice(_VALUES)
        data = b"\r\n".join((line, *lines, *framing, b"", body))
        found.append(_spoilt(random, data) if random.random() < 0.2 else data)
    return found


def _request(random: Random) -> bytes:
    line = random.choice(_METHODS) + b" " + random.choice(_TARGETS) + b" " + random.choice(_VERSIONS)
    fields = [b"Host: h"] if random.random() < 0.95 else []
    fields += [random.choice(_FIELDS) for _ in range(random.choice((0, 0, 0, 1, 2)))]
    framing, body = _framed(random)
    return _head(random, line, fields + framing) + body


def _head(random: Random, line: bytes, fields: Sequence[bytes]) -> bytes:
    shuffled = random.sample(list(fields), len(fields))
    return b"\r\n".join((line, *shuffled, b"", b""))


def _framed(random: Random) -> tuple[list[bytes], bytes]:
    """Framing fields and a body that may or may not agree with them."""
    kind = random.choice(("none", "none", "length", "length", "chunked", "chunked", "both", "odd"))
    if kind == "none":
        return [], b""
    if kind == "length":
        body = random.choice((b"abc", b"GET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n", b"0\r\n\r\n", b""))
        return [b"Content-Length: %d" % len(body)], body
    if kind == "chunked":
        return [b"Transfer-Encoding: chunked"], _chunks(random)
    if kind == "both":
        return [b"Content-Length: 5", b"Transfer-Encoding: chunked"], random.choice((_chunks(random), b"abcde"))
    fields = [b"Content-Length: " + random.choice(_LENGTHS), b"Transfer-Encoding: " + random.choice(_CODINGS)]
    return [random.choice(fields) for _ in range(random.choice((1, 2)))], random.choice((_chunks(random), b"abc", b""))


def _chunks(random: Random) -> bytes:
    data = b""
    for _ in range(random.choice((0, 1, 2, 5))):
        piece = random.choice((b"a", b"abc", b"GET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n", b"x" * 300))
        data += b"%x%b\r\n%b\r\n" % (len(piece), random.choice(_EXTENSIONS), piece)
    trailers = b"".join(random.choice(_FIELDS) + b"\r\n" for _ in range(random.choice((0, 0, 0, 1, 2))))
    return data + b"0" + random.choice(_EXTENSIONS) + b"\r\n" + trailers + b"\r\n"


def _spoilt(random: Random, data: bytes) -> bytes:
    for _ in range(random.choice((0, 0, 0, 1, 1, 2, 4))):
        data = random.choice(_MUTATORS)(random, data)
    return data


def _insert(random: Random, data: bytes) -> bytes:
    place = random.randint(0, len(data))
    return data[:place] + random.choice(_PIECES) + data[place:]


def _insert_anything(random: Random, data: bytes) -> bytes:
    place = random.randint(0, len(data))
    return data[:place] + random.randbytes(random.choice((1, 1, 2, 8))) + data[place:]


def _delete(random: Random, data: bytes) -> bytes:
    place = random.randint(0, len(data))
    return data[:place] + data[place + random.choice((1, 1, 2, 10)) :]


def _replace(random: Random, data: bytes) -> bytes:
    place = random.randint(0, len(data))
    return data[:place] + bytes((random.randrange(256),)) + data[place + 1 :]


def _truncate(random: Random, data: bytes) -> bytes:
    return data[: random.randint(0, len(data))]


def _repeat(random: Random, data: bytes) -> bytes:
    start = random.randint(0, len(data))
    end = min(len(data), start + random.choice((1, 4, 30)))
    return data[:end] + data[start:end] * random.choice((1, 1, 3, 200)) + data[end:]


def _swap_lines(random: Random, data: bytes) -> bytes:
    lines = data.split(b"\r\n")
    first, second = random.randrange(len(lines)), random.randrange(len(lines))
    lines[first], lines[second] = lines[second], lines[first]
    return b"\r\n".join(lines)


def _other_line_ends(random: Random, data: bytes) -> bytes:
    lines = data.split(b"\r\n")
    place = random.randrange(len(lines))
    end = random.choice((b"\n", b"\r", b"\n\r", b"\r\r\n", b"\r\n "))
    return b"\r\n".join(lines[:place]) + end + b"\r\n".join(lines[place:])


def _other_case(random: Random, data: bytes) -> bytes:
    place = random.randint(0, len(data))
    return data[:place] + data[place : place + 20].swapcase() + data[place + 20 :]


_MUTATORS: Sequence[Mutator] = (
    _insert,
    _insert,
    _insert_anything,
    _delete,
    _replace,
    _truncate,
    _repeat,
    _swap_lines,
    _other_line_ends,
    _other_case,
)
