"""The one list of Phase 1 requests that must be answered the same with and without the gateway in between.

A request is bytes; in them ``<key>``, ``<email>``, ``<password>`` stand for the account's, and ``<id>``, ``<new-key>``,
``<cookie>`` for what an earlier answer on the same connection told. Lengths are filled in after that.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from upstream_stub.raw_answers import RAW_ANSWERS

MIB = 1024 * 1024
BEARER = b"Authorization: Bearer <key>"
JSON = b"Content-Type: application/json"
EVENTS = b"Accept: text/event-stream"
NOISE = bytes(range(256)) * (4 * MIB // 256)


class Framing(Enum):
    """How a request's end is told. NONE: as the fields say, or not at all."""

    LENGTH = "Content-Length"
    CHUNKED = "chunked"
    NONE = "none"


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    line: bytes
    fields: Sequence[bytes] = ()
    host: bytes | None = b"Host: cast.example"
    body: bytes = b""
    framing: Framing | None = None  # None: LENGTH where there is a body
    status: int = 200
    waits_for_continue: bool = False

    @property
    def method(self) -> bytes:
        return self.line.split(b" ", 1)[0]

    def wire(self, known: Mapping[bytes, bytes]) -> tuple[bytes, bytes]:
        """Head and body."""
        fields, body = [_filled(field, known) for field in self.fields], _filled(self.body, known)
        framing = self.framing or (Framing.LENGTH if body else Framing.NONE)
        if framing is Framing.LENGTH:
            fields.append(b"Content-Length: %d" % len(body))
        elif framing is Framing.CHUNKED:
            fields.append(b"Transfer-Encoding: chunked")
            body = chunked(body)
        start = [_filled(self.line, known), *([] if self.host is None else [self.host])]
        return b"\r\n".join((*start, *fields, b"", b"")), body


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """Requests on one connection, one after the other, or all at once if `pipelined`."""

    name: str
    requests: Sequence[Request]
    pipelined: bool = False
    echo: bool = False  # the answer is the request as the upstream saw it
    closes: bool = False  # the server must close the connection after the last answer
    whole: bool = True  # False: the answer is cut off
    phase1_limit_spent: bool = False


def chunked(body: bytes, part_bytes: int = 10_007) -> bytes:
    parts = [body[start : start + part_bytes] for start in range(0, len(body), part_bytes)]
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


def _filled(text: bytes, known: Mapping[bytes, bytes]) -> bytes:
    if len(text) < MIB and b"<" in text:
        for name, value in known.items():
            text = text.replace(b"<%s>" % name, value)
    return text


def _get(target: bytes, *fields: bytes, status: int = 200) -> Request:
    return Request(line=b"GET %s HTTP/1.1" % target, fields=fields, status=status)


def _post(
    target: bytes, body: bytes = b"", *fields: bytes, status: int = 200, framing: Framing = Framing.LENGTH
) -> Request:
    return Request(line=b"POST %s HTTP/1.1" % target, fields=(JSON, *fields), body=body, framing=framing, status=status)


def _cast(*fields: bytes, body: bytes = b'{"input": "light"}', status: int = 200) -> Request:
    return _post(b"/v1/cast", body, *fields, status=status)


def _one(name: str, request: Request, **more: bool) -> Case:
    return Case(name=name, requests=[request], **more)


def _echo(name: str, request: Request, **more: bool) -> Case:
    return Case(name=f"request: {name}", requests=[request], echo=True, **more)


_LOGIN = _post(b"/v1/auth/login", b'{"email": "<email>", "password": "<password>"}')
_COOKIE = b"Cookie: theme=dark; session=<cookie>; lang=en"

_ACCOUNT_CASES = [
    Case(
        name="key created, listed, used, deleted, used again",
        requests=[
            _post(b"/v1/keys", b'{"name": "laptop"}', BEARER, status=201),
            _get(b"/v1/keys", BEARER),
            _cast(b"X-API-Key: <new-key>"),
            Request(line=b"DELETE /v1/keys/<id> HTTP/1.1", fields=[BEARER], status=204),
            Request(line=b"DELETE /v1/keys/<id> HTTP/1.1", fields=[BEARER], status=404),
            _cast(b"X-API-Key: <new-key>", status=401),
            _get(b"/v1/keys", BEARER),
        ],
    ),
    Case(
        name="login, cast with the cookie, logout, cast again",
        requests=[
            _LOGIN,
            _cast(_COOKIE),
            _get(b"/v1/casts", _COOKIE),
            _post(b"/v1/auth/logout", b"", _COOKIE, status=204),
            _cast(_COOKIE, status=401),
        ],
    ),
    _one("wrong password", _post(b"/v1/auth/login", b'{"email": "<email>", "password": "no"}', status=401)),
    _one("login without a password", _post(b"/v1/auth/login", b"{}", status=422)),
    _one("logout without a session", _post(b"/v1/auth/logout", status=204)),
    _one("key with a name too long", _post(b"/v1/keys", b'{"name": "%s"}' % (b"x" * 201), BEARER, status=422)),
    _one("two Authorization fields where no policy is", _get(b"/v1/keys", BEARER, b"Authorization: Bearer other")),
]

_CAST_CASES = [
    _one("cast by bearer", _cast(BEARER)),
    _one("cast by a bearer in lower case", _cast(b"authorization: bearer <key>")),
    _one("cast by X-API-Key", _cast(b"X-API-Key: <key>")),
    _one("cast with a chunked body", _post(b"/v1/cast", b'{"input": "x"}', BEARER, framing=Framing.CHUNKED)),
    _one("cast with an empty body", _cast(BEARER, body=b"")),
    _one("cast without a body or a length", _post(b"/v1/cast", b"", BEARER, framing=Framing.NONE)),
    _one("cast of UTF-8", _cast(BEARER, body='{"input": "naïve ☃ 𝄞"}'.encode())),
    _one("cast with a query", _post(b"/v1/cast?trace=1&q=%2F", b"{}", BEARER)),
    _one("cast of 900 KiB", _cast(BEARER, body=b'{"input": "%s"}' % (b"x" * 900 * 1024))),
    _one("cast of more than Phase 1 takes", _cast(BEARER, body=b'{"input": "%s"}' % (b"x" * MIB), status=413)),
    _one("cast of no JSON", _cast(BEARER, body=b"{", status=400)),
    _one("cast of a JSON array", _cast(BEARER, body=b"[1]", status=400)),
    _one("cast of NUL", _cast(BEARER, body=b'{"input": "\\u0000"}', status=422)),
    _one("cast of bytes that are no text", _cast(BEARER, body=b"\xff\xfe\x00\r\n\r\n", status=400)),
    _one("cast by nobody", _cast(status=401)),
    _one("cast by an unknown key", _cast(b"Authorization: Bearer ck_0000", status=401)),
    _one("cast by another scheme", _cast(b"Authorization: Basic dXNlcjpwYXNz", status=401)),
    _one("cast by an empty bearer", _cast(b"Authorization: Bearer", status=401)),
    _one("cast by an empty Authorization", _cast(b"Authorization:", status=401)),
    _one("cast by an unknown cookie", _cast(b"Cookie: session=" + b"x" * 43, status=401)),
    # On a route without a policy: on one with, the gateway refuses what two servers may read differently.
    _one("keys by a key that is no text", _get(b"/v1/keys", b"X-API-Key: ck_\xff\xfe", status=401)),
    _one("cast over Phase 1's own limit", _cast(BEARER, status=429), phase1_limit_spent=True),
    _one("cast as a stream", _cast(BEARER, EVENTS)),
    _one("cast as a slow stream", _cast(BEARER, EVENTS, b"X-Stub-Fault: trickle=20ms")),
    _one("cast as a stream cut off", _cast(BEARER, EVENTS, b"X-Stub-Fault: cut=body"), whole=False, closes=True),
    _one("cast with its answer cut off", _cast(BEARER, b"X-Stub-Fault: cut=body"), whole=False, closes=True),
    _one("cast with its body missing", _cast(BEARER, b"X-Stub-Fault: cut=head"), whole=False, closes=True),
    _one("cast that comes late", _cast(BEARER, b"X-Stub-Fault: delay=50ms")),
    _one("cast that comes in drops", _cast(BEARER, b"X-Stub-Fault: trickle=5ms")),
    _one("cast that fails", _cast(BEARER, b"X-Stub-Fault: status=500", status=500)),
    _one("cast that is unavailable", _cast(BEARER, b"X-Stub-Fault: status=503", status=503)),
    _one("cast that is found elsewhere", _cast(BEARER, b"X-Stub-Fault: status=302", status=302)),
    _one("no cast: GET", _get(b"/v1/cast", BEARER, status=405)),
    _one("no cast: OPTIONS", Request(line=b"OPTIONS /v1/cast HTTP/1.1", status=405)),
    _one("no cast: HEAD", Request(line=b"HEAD /v1/cast HTTP/1.1", fields=[BEARER], status=405)),
    Case(name="three casts and their list", requests=[*[_cast(BEARER)] * 3, _get(b"/v1/casts?limit=2", BEARER)]),
    Case(
        name="casts pipelined",
        requests=[_cast(BEARER), _cast(BEARER), _get(b"/v1/casts", BEARER)],
        pipelined=True,
    ),
    _one("list with a bad limit", _get(b"/v1/casts?limit=x", BEARER, status=400)),
]

_METHOD_AND_TARGET_CASES = [
    _one("health", _get(b"/health")),
    _one("health with a query", _get(b"/health?")),
    _one("HEAD", Request(line=b"HEAD /health HTTP/1.1")),
    _one("HEAD of a large answer", Request(line=b"HEAD /v1/blob?bytes=5000000 HTTP/1.1")),
    _one("HEAD of a chunked answer", Request(line=b"HEAD /v1/blob?bytes=5000000&chunked=1 HTTP/1.1")),
    Case(name="HEAD, then GET", requests=[Request(line=b"HEAD /health HTTP/1.1"), _get(b"/health")]),
    _one("not found", _get(b"/nowhere", status=404)),
    _one("not found: the root", _get(b"/", status=404)),
    _one("not allowed", _post(b"/health", b"x", status=405)),
    _one("OPTIONS *", Request(line=b"OPTIONS * HTTP/1.1", status=404)),
    _one("absolute target", _get(b"http://cast.example/health")),
    *[
        _echo(f"method {method.decode()}", Request(line=method + b" /v1/echo HTTP/1.1"))
        for method in (b"GET", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS", b"PROPFIND", b"M-SEARCH", b"PURGE")
    ],
    *[
        _echo(f"target {target.decode()}", _get(b"/v1/echo" + target))
        for target in (
            b"?",
            b"?a=1&a=2&b&=c&&",
            b"?q=%20+%2B%26%3d%00",
            b"?q=[x]{y}|^`\"<>\\'",
            b"?https://cast.example/a?b",
            b"/a%20b%2Fc%2fd",
            b"/caf%C3%A9/caf%e9",
            b"/%2e%2e/%2E/x",
            b"/a//b///",
            b"/;v=1,2/@:!$&'()*+=~-._",
            b"/%7Etilde/~tilde",
            b"/" + b"long/" * 800,
        )
    ],
]

_FIELD_CASES = [
    _echo(name, _get(b"/v1/echo", *fields))
    for name, fields in {
        "field names keep their case and order": (b"x-b: 1", b"X-A: 2", b"X-SHOUT: 3", b"x-B: 4", b"accept: */*"),
        "a field several times": (b"X-Many: 1", b"X-Other: a", b"X-Many: 2", b"x-many: 1"),
        "empty values": (b"X-Empty:", b"X-Blank:   ", b"Accept-Language:"),
        "blanks around values": (b"X-Blanks:  \t a  b\tc \t ", b"X-None:a"),
        "bytes above ASCII": (b"X-Latin: caf\xe9 \xfc\xff", "X-Utf8: naïve ☃".encode()),
        "every character of a name": (b"!#$%&'*+-.^_`|~09AZaz: token",),
        "names with underscores": (b"x_under_score: 1", b"X-Under-Score: 2"),
        "every visible character of a value": (b"X-Visible: " + bytes(range(0x21, 0x7F)),),
        "many cookies in a field": (b"Cookie: " + b"; ".join(b"c%d=%d" % (n, n) for n in range(300)),),
        "many fields of cookies": tuple(b"Cookie: c%d=%d" % (n, n) for n in range(40)),
        "odd cookies": (b'Cookie: a="x y"; b=; =c; d; e=f=g; $Version=1; caf\xe9=1',),
        "a long value": (b"X-Long: " + b"v" * 7000,),
        "many fields": tuple(b"X-Field-%d: %d" % (n, n) for n in range(90)),
        "negotiation": (b"Accept-Encoding: gzip, br;q=0.1", b"Range: bytes=0-99", b'If-None-Match: W/"x", "y"'),
        "hop-by-hop fields": (
            b"Connection: X-Private, keep-alive",
            b"X-Private: 1",
            b"Keep-Alive: timeout=9",
            b"X-Public: 1",
        ),
        "TE": (b"TE: trailers", b"Connection: TE"),
        "a client's own forwarding": (b"Forwarded: for=192.0.2.1", b"Via: 1.0 old", b"X-Real-IP: 192.0.2.1"),
        "an upgrade nobody knows": (b"Upgrade: foo/2", b"Connection: upgrade"),
        "credentials where no policy is": (b'Authorization: Digest username="x"', b"Proxy-Connection: keep-alive"),
        "Max-Forwards": (b"Max-Forwards: 10", b"Cache-Control: no-cache", b"Pragma: no-cache"),
    }.items()
]

_HOST_CASES = [
    _echo(f"host {host.decode()!r}", Request(line=b"GET /v1/echo HTTP/1.1", host=host))
    for host in (b"Host: cast.example:8080", b"Host: CAST.Example", b"host:[::1]:80", b"HOST: xn--caf-dma.example")
]

_BODY_CASES = [
    _one("download of 5 MiB", _get(b"/v1/blob?bytes=5242881")),
    _one("download of 5 MiB in chunks", _get(b"/v1/blob?bytes=5242881&chunked=1")),
    _one("download of nothing", _get(b"/v1/blob?bytes=0")),
    _one("download of nothing in chunks", _get(b"/v1/blob?bytes=0&chunked=1")),
    _one("download cut off", _get(b"/v1/blob?bytes=300000", b"X-Stub-Fault: cut=body"), whole=False, closes=True),
    _one("upload of 4 MiB", _post(b"/v1/blob", NOISE)),
    _one("upload of 4 MiB in chunks", _post(b"/v1/blob", NOISE, framing=Framing.CHUNKED)),
    _one("both ways 4 MiB", _post(b"/v1/mirror", NOISE)),
    _one("both ways 4 MiB in chunks", _post(b"/v1/mirror", NOISE, framing=Framing.CHUNKED)),
    Case(name="upload, then another request", requests=[_post(b"/v1/blob", NOISE), _get(b"/health")]),
    Case(
        name="upload that is refused, then another request",
        requests=[_post(b"/nowhere", b"x" * 100_000, status=404), _get(b"/health")],
    ),
    _echo("an empty body", _post(b"/v1/echo")),
    _echo("no body and no length", _post(b"/v1/echo", framing=Framing.NONE)),
    _echo("an empty body in chunks", _post(b"/v1/echo", framing=Framing.CHUNKED)),
    _echo("GET with a body", Request(line=b"GET /v1/echo HTTP/1.1", body=b"body")),
    _echo("DELETE with a body", Request(line=b"DELETE /v1/echo HTTP/1.1", body=b"body")),
    _echo(
        "a length with zeros before it",
        Request(line=b"PUT /v1/echo HTTP/1.1", fields=[b"Content-Length: 0004"], body=b"body", framing=Framing.NONE),
    ),
    _echo(
        "chunk extensions and odd sizes",
        Request(
            line=b"POST /v1/echo HTTP/1.1",
            fields=[b"transfer-encoding: Chunked"],
            body=b"2;a=b\r\nhe\r\n0003\r\nllo\r\nA\r\n0123456789\r\n000\r\n\r\n",
            framing=Framing.NONE,
        ),
    ),
    _echo(
        "trailers",
        Request(
            line=b"POST /v1/echo HTTP/1.1",
            fields=[b"Transfer-Encoding: chunked", b"Trailer: X-Sum"],
            body=b"5\r\nhello\r\n0\r\nX-Sum: 5\r\n\r\n",
            framing=Framing.NONE,
        ),
    ),
    _one(
        "Expect: 100-continue",
        Request(
            line=b"POST /v1/blob HTTP/1.1",
            fields=[b"Expect: 100-continue"],
            body=b"x" * 70_000,
            waits_for_continue=True,
        ),
    ),
    _one(
        "Expect: 100-continue on a cast",
        Request(
            line=b"POST /v1/cast HTTP/1.1",
            fields=[BEARER, b"expect: 100-Continue"],
            body=b'{"input": "x"}',
            waits_for_continue=True,
        ),
    ),
    _one(
        "Expect: 100-continue of one who does not wait",
        Request(line=b"POST /v1/blob HTTP/1.1", fields=[b"Expect: 100-continue"], body=b"x" * 10),
    ),
]

_CONNECTION_CASES = [
    _one("HTTP/1.0", Request(line=b"GET /health HTTP/1.0"), closes=True),
    _one("HTTP/1.0 without a host", Request(line=b"GET /health HTTP/1.0", host=None), closes=True),
    _one("HTTP/1.0 and a cast", Request(line=b"POST /v1/cast HTTP/1.0", fields=[BEARER], body=b"{}"), closes=True),
    _one(
        "HTTP/1.0 and a stream",
        Request(line=b"POST /v1/cast HTTP/1.0", fields=[BEARER, EVENTS], body=b"{}"),
        closes=True,
    ),
    _one("HTTP/1.0 and a long download", Request(line=b"GET /v1/blob?bytes=1000000&chunked=1 HTTP/1.0"), closes=True),
    Case(
        name="HTTP/1.0 kept alive",
        requests=[Request(line=b"GET /health HTTP/1.0", fields=[b"Connection: keep-alive"])] * 2,
    ),
    _echo("HTTP/1.0", Request(line=b"GET /v1/echo HTTP/1.0"), closes=True),
    _one("Connection: close", _get(b"/health", b"Connection: close"), closes=True),
    _one("Connection: Close on a cast", _cast(BEARER, b"connection: Close"), closes=True),
    Case(
        name="many requests on a connection",
        requests=[_get(b"/health"), _cast(BEARER), _get(b"/nowhere", status=404)] * 5,
    ),
    Case(
        name="pipelined with bodies",
        requests=[_post(b"/v1/mirror", b"%d" % n * 1000) for n in range(5)] + [_get(b"/health")],
        pipelined=True,
    ),
    _one("empty lines before a request", Request(line=b"\r\n\r\nGET /health HTTP/1.1")),
]

_RAW_STATUS = {"no-content": 204, "not-modified": 304, "unknown-status": 299}
_RAW_CASES = [
    _one(
        f"answer {name}",
        _get(b"/v1/raw/" + name.encode(), status=_RAW_STATUS.get(name, 200)),
    )
    for name in RAW_ANSWERS
]

CASES: Sequence[Case] = [
    *_ACCOUNT_CASES,
    *_CAST_CASES,
    *_METHOD_AND_TARGET_CASES,
    *_FIELD_CASES,
    *_HOST_CASES,
    *_BODY_CASES,
    *_CONNECTION_CASES,
    *_RAW_CASES,
]
