"""From bytes to requests: the half of a client connection that knows no socket.

httptools parses; its callbacks only collect. What was collected is acted on after ``feed_data`` has accepted the bytes,
because some refusals (an unknown Transfer-Encoding, a bad chunk) come after the head's own callback: acting inside
the callbacks would send upstream what is refused a moment later.
"""

import re
from collections import deque
from typing import TYPE_CHECKING

import httptools

from gateway.relay import refusals
from gateway.relay.alike import become
from gateway.relay.heads import OTHER
from gateway.relay.request import Request

if TYPE_CHECKING:
    from gateway.relay.exchange import Exchange
    from gateway.relay.relay import Relay

# Requests that one connection may have waiting behind the one being answered.
PIPELINED_MAX = 64
_OTHER_PROTOCOL = re.compile(rb" (?:RTSP|ICE)/")


class RequestReader:
    """What is received on one connection: its base class, since as a part it would cost every call some look-ups."""

    __slots__ = (
        "_data",
        "_earlier",
        "_fields",
        "_last",
        "_last_body_bytes",
        "_last_bytes",
        "_last_head",
        "_parser",
        "_skipping_head",
        "exchange",
        "head_bytes",
        "incoming",
        "relay",
        "requests",
        "unparsed",
    )
    __deletable__ = ("_parser",)  # mypyc's: what client.py deletes

    def __init__(self, relay: "Relay") -> None:
        self.relay = relay
        self.requests: deque[Request] = deque()  # received, at least their heads, and not begun
        self.exchange: Exchange | None = None  # what became of the one before them
        self.incoming: Request | None = None  # the one whose end has not come yet
        self.unparsed: bytes | None = None  # bytes after a request that asks for an upgrade
        self.head_bytes = 0  # received since the last message or piece of a body
        self._fields = relay.request_fields
        self._parser = httptools.HttpRequestParser(self)
        self._data = b""  # what is being parsed
        self._earlier = b""  # and what of its first head was parsed before
        self._skipping_head = False
        # The last request that arrived alone and whole, its head, its length, and that of its body.
        self._last: Request | None = None
        self._last_head = b""
        self._last_bytes = 0
        self._last_body_bytes = 0

    # --- heads that were met before

    def known(self, data: bytes) -> Request | None:
        """The request in ``data``, where that is whole and its head is the last one's: then it is that one again."""
        request, head = self._last, self._last_head
        if request is None:
            return None
        size = len(data)
        if size != self._last_bytes or not data.startswith(head):
            head = become(request, head, self._last_body_bytes, data, self.relay)
            if not head:
                return None
            self._last_head, self._last_bytes = head, size
        body_bytes = self._last_body_bytes
        # What is there yet is the body of a call that was refused, and sent to nobody.
        request.body = [data[size - body_bytes :]] if body_bytes else []
        request.body_bytes = body_bytes
        return request

    def remember(self, data: bytes) -> None:
        """Keeps the only request in ``data``, where a request with the same head can mean nothing else."""
        self._last = None
        requests = self.requests
        if len(requests) != 1 or self.incoming is not None:
            return
        request = requests[0]
        if (
            request.complete
            and request.keep_alive
            and request.refusal is None
            and request.upgrade is None
            and not (request.chunked or request.broken or request.http_1_0 or request.expects_continue)
            and request.body_bytes <= self.relay.limits.buffered_bytes_max  # more of it may have to wait
        ):
            end = len(data) - request.body_bytes
            if data.find(b"\r\n\r\n") + 4 == end and self.unparsed is None:  # no empty lines before or behind it
                self._last, self._last_head, self._last_bytes = request, data[:end], len(data)
                self._last_body_bytes = request.body_bytes

    # --- what is fed to the parser

    def feed(self, data: bytes) -> None:
        """Parses ``data``; the parser stops at each request for an upgrade, and is replaced where it goes on."""
        request = self.incoming
        in_request_line = request is None or (not request.method and request.head_bytes == len(request.target))
        while data:
            self._data = data
            self.head_bytes += len(data)
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                data = self._upgrade_asked(data[upgrade.args[0] :])
                continue
            except httptools.HttpParserError as error:
                self._parse_failed(str(error))
                return
            break
        request = self.incoming
        if request is None:
            self.head_bytes = 0
        else:
            # A head or a trailer in many small pieces, one field without end, chunk extensions without a chunk.
            head_bytes = max(self.head_bytes, request.head_bytes) if request.method else self.head_bytes
            if head_bytes > self.relay.limits.head_bytes_max:
                self._parse_failed("the header block is too large", too_large=True)
        if request is not None and not request.method:
            if in_request_line:
                self._earlier += self._data
        elif self._earlier:
            self._earlier = b""
        self._data = b""

    def _upgrade_asked(self, rest: bytes) -> bytes:
        """Only a WebSocket's upgrade is passed on, and waits for 101. Returns what is to be parsed on."""
        request = self.requests[-1]
        if request.method == b"CONNECT":
            request.refusal = refusals.connect_method()
            request.keep_alive = False
            self.unparsed = b""
            return b""
        if (request.upgrade or b"").strip().lower() == b"websocket" and not (request.has_length or request.chunked):
            self.unparsed = rest
            return b""
        # Not one that is passed on: it is an ordinary request, whose body (if any) the parser has yet to see.
        request.upgrade = None
        if len(self.requests) > PIPELINED_MAX:  # each costs a parser and a copy of what follows
            self._parse_failed("too many requests for an upgrade at once")
            return b""
        self.replace_parser(request)
        return rest

    def replace_parser(self, request: Request | None) -> None:
        """A parser that is at the beginning of ``request``'s body, or at the end of a message."""
        self._parser = httptools.HttpRequestParser(self)
        if request is not None and (request.has_length or request.chunked):
            if request.chunked:
                framing = b"Transfer-Encoding: chunked"
            else:
                lengths = [line.rstrip() for line in request.lines if line[:15].lower() == b"content-length:"]
                framing = b"".join(lengths)
            request.complete = False
            self.incoming = request
            self._skipping_head = True
            self._parser.feed_data(b"POST / HTTP/1.1\r\nHost: x\r\n%b\r\n\r\n" % framing)

    def _parse_failed(self, why: str, *, too_large: bool = False) -> None:
        request = self.incoming
        if request is None:
            if self.requests and not self.requests[-1].keep_alive:
                return  # bytes after a request that announced it was the last: they are not read
            if self.exchange is not None and not self.exchange.request.keep_alive:
                return
            request = Request()
        request.broken = True
        request.keep_alive = False
        if too_large:
            request.refusal = refusals.endless_head(request, self.relay.limits)
        elif request.refusal is None:
            request.refusal = refusals.not_http(why)
        if not request.method:
            self.requests.append(request)
        self.incoming = None
        self.unparsed = b""  # nothing after this can be understood

    # --- parser events: collect only

    def on_message_begin(self) -> None:
        if not self._skipping_head:
            self.incoming = Request()

    def on_url(self, url: bytes) -> None:
        if not self._skipping_head:
            request = self.incoming
            assert request is not None
            request.target += url
            request.head_bytes += len(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._skipping_head:
            return
        request = self.incoming
        assert request is not None
        request.head_bytes += len(name) + len(value) + 4
        field = self._fields[name]
        if request.method:  # the head is complete: a trailer
            if field != OTHER:  # whoever merges trailers into the head would see another request than was judged
                request.broken = True
                request.keep_alive = False
                request.refuse_field("This field has no place in a trailer.", name)
            elif request.head_bytes > self.relay.limits.head_bytes_max:  # however few pieces it comes in
                request.broken = True
                request.keep_alive = False
                request.refusal = refusals.endless_head(request, self.relay.limits)
            request.trailers.append(b"%b: %b\r\n" % (name, value))
            return
        if field == OTHER:
            request.lines.append(b"%b: %b\r\n" % (name, value))
        else:
            request.take_field(field, name, value)

    def on_headers_complete(self) -> None:
        if self._skipping_head:
            self._skipping_head = False
            return
        request = self.incoming
        assert request is not None
        parser = self._parser
        request.method = parser.get_method()
        version = parser.get_http_version()
        request.http_1_0 = version == "1.0"
        request.keep_alive = parser.should_keep_alive()
        if request.http_1_0 or not parser.should_upgrade():
            request.upgrade = None  # without its Connection option it is to be ignored (RFC 9110 §7.8)
        if version not in ("1.0", "1.1") or self._is_other_protocol(request):
            request.refusal = refusals.unknown_version(version)
            request.keep_alive = False
        self.head_bytes = 0
        self.requests.append(request)

    def _is_other_protocol(self, request: Request) -> bool:
        """Whether the request line names RTSP or ICE, whose versions the parser reports like HTTP's.

        It does not tell where the line was. So it is looked for, rarely: most data holds nothing that looks like it.
        """
        data = self._earlier + self._data if self._earlier else self._data
        if b" RTSP/" not in data and b" ICE/" not in data:
            return False
        return any(_ends_line(data, found.start(), request) for found in _OTHER_PROTOCOL.finditer(data))

    def on_body(self, body: bytes) -> None:
        self.head_bytes = 0
        request = self.incoming
        assert request is not None
        request.body.append(body)
        request.body_bytes += len(body)

    def on_message_complete(self) -> None:
        request = self.incoming
        if request is not None:
            request.complete = True
            self.incoming = None


def _ends_line(data: bytes, place: int, request: Request) -> bool:
    """Whether the request's method and target, with their spaces, stand right before ``place``."""
    for word in (request.target, request.method):
        while place > 0 and data[place - 1] == 32:
            place -= 1
        place -= len(word)
        if place < 0 or not data.startswith(word, place):
            return False
    return True
