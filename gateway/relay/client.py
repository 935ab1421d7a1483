"""The client's side of the relay: one connection, its requests in order.

httptools parses; its callbacks only collect. What was collected is acted on after ``feed_data`` has accepted the bytes,
because some refusals (an unknown Transfer-Encoding, a bad chunk) come after the head's own callback: acting inside
the callbacks would send upstream what is refused a moment later.

A connection is in one of these phases, and each phase has the deadline that ``Relay.tick`` holds it to:

    IDLE       between requests                              keepalive_timeout
    HEAD       a request's first byte is here, its head not  header_timeout
    BUSY       an exchange is under way                      the exchange's own
    LINGERING  the last answer is written; what the client
               still sends is read and thrown away, so that
               a reset does not take the answer from it      linger_timeout
    TUNNEL     upgraded: bytes pass both ways                upstream.idle_timeout
    CLOSED
"""

import asyncio
import re
import socket
import struct
from collections import deque
from typing import TYPE_CHECKING, cast

import httptools

from gateway.policy import answers
from gateway.relay.heads import OTHER
from gateway.relay.request import Request

if TYPE_CHECKING:
    from gateway.relay.exchange import Exchange
    from gateway.relay.relay import Relay
    from gateway.relay.upstream import UpstreamConnection

IDLE, HEAD, BUSY, LINGERING, TUNNEL, CLOSED = range(6)
# Thrown away after the last answer: enough for what was in flight, too little to be worth sending.
_LINGER_BYTES_MAX = 1024 * 1024
_LINGER_TIMEOUT_S = 2.0
# Requests that one connection may have waiting behind the one being answered.
_PIPELINED_MAX = 64
_OTHER_PROTOCOL = re.compile(rb" (?:RTSP|ICE)/")


def _ends_line(data: bytes, place: int, request: Request) -> bool:
    """Whether the request's method and target, with their spaces, stand right before ``place``."""
    for word in (request.target, request.method):
        while place > 0 and data[place - 1] == 32:
            place -= 1
        place -= len(word)
        if place < 0 or not data.startswith(word, place):
            return False
    return True


class ClientConnection(asyncio.Protocol):
    """A downstream connection: parses requests, runs their exchanges one after the other, writes the answers."""

    __slots__ = (
        "_advancing",
        "_at_eof",
        "_data",
        "_discarded_bytes",
        "_earlier",
        "_fields",
        "_head_bytes",
        "_incoming",
        "_last",
        "_last_bytes",
        "_last_head",
        "_parser",
        "_relay",
        "_requests",
        "_skipping_head",
        "_unparsed",
        "_unsent_bytes",
        "address",
        "deadline",
        "exchange",
        "forwarded_line",
        "is_trusted_proxy",
        "peer",
        "phase",
        "proto",
        "reading_paused",
        "transport",
        "writable",
    )

    def __init__(self, relay: "Relay") -> None:
        self._relay = relay
        self._fields = relay.request_fields
        self._parser = httptools.HttpRequestParser(self)
        self._incoming: Request | None = None
        self._requests: deque[Request] = deque()
        self._head_bytes = 0  # received since the last message or piece of a body
        self._data = b""  # what is being parsed
        self._earlier = b""  # and what of its first head was parsed before
        self._skipping_head = False
        # The last request that arrived alone and whole, its head, and its length.
        self._last: Request | None = None
        self._last_head = b""
        self._last_bytes = 0
        self._unparsed: bytes | None = None  # bytes after a request that asks for an upgrade
        self.reading_paused = False
        self._discarded_bytes = 0
        self._advancing = False
        self._unsent_bytes = 0
        self._at_eof = False
        self.exchange: Exchange | None = None
        self.peer: UpstreamConnection | None = None
        self.phase = IDLE
        self.writable = True
        self.deadline = 0.0
        self.address = b""
        self.proto = b"http"
        self.forwarded_line = b""
        self.is_trusted_proxy = False

    # --- transport events

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        peername = transport.get_extra_info("peername")
        self.address = peername[0].encode() if isinstance(peername, tuple) else b"unknown"
        if transport.get_extra_info("sslcontext") is not None:
            self.proto = b"https"
        self.forwarded_line = b"X-Forwarded-For: %b\r\nX-Forwarded-Proto: %b\r\n" % (self.address, self.proto)
        self.is_trusted_proxy = self._relay.forwarding.is_trusted(self.address)
        self.transport.set_write_buffer_limits(high=self._relay.limits.buffered_bytes_max)
        self.deadline = self._relay.clock_s + self._relay.limits.header_timeout_s
        if not self._relay.opened(self):
            self.refuse(answers.error(503, "overloaded", "Too many connections are open.", retry_after_s=1))

    def data_received(self, data: bytes) -> None:
        if self.phase >= LINGERING:
            self._after_requests(data)
            return
        if self._unparsed is not None:
            self._hold_back(data)
            return
        if self.phase == IDLE:
            self.phase = HEAD
            self.deadline = self._relay.clock_s + self._relay.limits.header_timeout_s
            if self._is_known(data):
                self._advance()
                return
            self._feed(data)
            self._remember(data)
        else:
            self._feed(data)
        self._advance()

    def _is_known(self, data: bytes) -> bool:
        """Whether ``data`` is a whole request whose head is that of the last one, which then is this one as well."""
        head = self._last_head
        if not head or len(data) != self._last_bytes or not data.startswith(head):
            return False
        request = self._last
        assert request is not None
        request.body.clear()  # that of a call which was refused was sent to nobody
        if len(data) > len(head):
            request.body.append(data[len(head) :])
        request.body_bytes = len(data) - len(head)
        self._requests.append(request)
        return True

    def _remember(self, data: bytes) -> None:
        """Keeps the only request in ``data``, where a request with the same head can mean nothing else."""
        self._last_head = b""
        requests = self._requests
        if len(requests) != 1 or self._incoming is not None:
            return
        request = requests[0]
        if (
            request.complete
            and request.keep_alive
            and request.refusal is None
            and request.upgrade is None
            and not (request.chunked or request.broken or request.http_1_0 or request.expects_continue)
        ):
            end = len(data) - request.body_bytes
            if data.find(b"\r\n\r\n") + 4 == end and self._unparsed is None:  # no empty lines before or behind it
                self._last, self._last_head, self._last_bytes = request, data[:end], len(data)

    def eof_received(self) -> bool:
        if self.phase == TUNNEL and self.peer is not None:
            self._at_eof = True
            # TLS has no half-close here: its end is the end of both directions.
            return self.peer.half_close() and self.transport.can_write_eof()
        # Whoever shuts down its sending side while it waits cannot be told from whoever has left, so it has left.
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        was = self.phase
        if was == BUSY:
            self._relay.in_flight -= 1
        self.phase = CLOSED
        self._relay.closed(self)
        self._requests.clear()
        if was == TUNNEL and self.peer is not None:
            self.peer.finish()
            self.peer = None
        exchange = self.exchange
        if exchange is not None:
            exchange.client_lost()
            if exchange.finished:
                self.exchange = None
        # It refers to our methods: without this each connection stays, some 4 KiB, until a collection that looks at old
        # objects, and there is hardly ever one.
        del self._parser

    def pause_writing(self) -> None:
        self.writable = False
        source = self.peer or (self.exchange and self.exchange.upstream)
        if source:
            source.pause_reading()

    def resume_writing(self) -> None:
        self.writable = True
        source = self.peer or (self.exchange and self.exchange.upstream)
        if source:
            source.resume_reading()
        elif self.phase < LINGERING:
            self._advance()

    # --- parser events: collect only

    def on_message_begin(self) -> None:
        if not self._skipping_head:
            self._incoming = Request()

    def on_url(self, url: bytes) -> None:
        if not self._skipping_head:
            request = self._incoming
            assert request is not None
            request.target += url
            request.head_bytes += len(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._skipping_head:
            return
        request = self._incoming
        assert request is not None
        request.head_bytes += len(name) + len(value) + 4
        field = self._fields[name]
        if request.method:  # the head is complete: a trailer
            if field != OTHER:  # whoever merges trailers into the head would see another request than was judged
                request.broken = True
                request.keep_alive = False
                request.refuse_field("This field has no place in a trailer.", name)
            elif request.head_bytes > self._relay.limits.head_bytes_max:  # however few pieces it comes in
                request.broken = True
                request.keep_alive = False
                request.refusal = self._too_large(request)
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
        request = self._incoming
        assert request is not None
        parser = self._parser
        request.method = parser.get_method()
        version = parser.get_http_version()
        request.http_1_0 = version == "1.0"
        request.keep_alive = parser.should_keep_alive()
        if request.http_1_0 or not parser.should_upgrade():
            request.upgrade = None  # without its Connection option it is to be ignored (RFC 9110 §7.8)
        if version not in ("1.0", "1.1") or self._is_other_protocol(request):
            request.refusal = answers.error(
                505,
                "invalid_request",
                "This version of HTTP is not supported.",
                details=f"found {version}, expected HTTP/1.1",
            )
            request.keep_alive = False
        self._head_bytes = 0
        self._requests.append(request)

    def _is_other_protocol(self, request: Request) -> bool:
        """Whether the request line names RTSP or ICE, whose versions the parser reports like HTTP's.

        It does not tell where the line was. So it is looked for, rarely: most data holds nothing that looks like it.
        """
        data = self._earlier + self._data if self._earlier else self._data
        if b" RTSP/" not in data and b" ICE/" not in data:
            return False
        return any(_ends_line(data, found.start(), request) for found in _OTHER_PROTOCOL.finditer(data))

    def on_body(self, body: bytes) -> None:
        self._head_bytes = 0
        request = self._incoming
        assert request is not None
        request.body.append(body)
        request.body_bytes += len(body)

    def on_message_complete(self) -> None:
        request = self._incoming
        if request is not None:
            request.complete = True
            self._incoming = None

    # --- from bytes to exchanges

    def _feed(self, data: bytes) -> None:
        """Parses ``data``; the parser stops at each request for an upgrade, and is replaced where it goes on."""
        request = self._incoming
        in_request_line = request is None or (not request.method and request.head_bytes == len(request.target))
        while data:
            self._data = data
            self._head_bytes += len(data)
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                data = self._upgrade_asked(data[upgrade.args[0] :])
                continue
            except httptools.HttpParserError as error:
                self._parse_failed(str(error))
                return
            break
        request = self._incoming
        if request is None:
            self._head_bytes = 0
        else:
            # A head or a trailer in many small pieces, one field without end, chunk extensions without a chunk.
            head_bytes = max(self._head_bytes, request.head_bytes) if request.method else self._head_bytes
            if head_bytes > self._relay.limits.head_bytes_max:
                self._parse_failed("the header block is too large", too_large=True)
        if request is not None and not request.method:
            if in_request_line:
                self._earlier += self._data
        elif self._earlier:
            self._earlier = b""
        self._data = b""

    def _upgrade_asked(self, rest: bytes) -> bytes:
        """Only a WebSocket's upgrade is passed on, and waits for 101. Returns what is to be parsed on."""
        request = self._requests[-1]
        if request.method == b"CONNECT":
            request.refusal = answers.error(501, "invalid_request", "CONNECT is not supported here.")
            request.keep_alive = False
            self._unparsed = b""
            return b""
        if (request.upgrade or b"").strip().lower() == b"websocket" and not (request.has_length or request.chunked):
            self._unparsed = rest
            return b""
        # Not one that is passed on: it is an ordinary request, whose body (if any) the parser has yet to see.
        request.upgrade = None
        if len(self._requests) > _PIPELINED_MAX:  # each costs a parser and a copy of what follows
            self._parse_failed("too many requests for an upgrade at once")
            return b""
        self._replace_parser(request)
        return rest

    def _replace_parser(self, request: Request | None) -> None:
        """A parser that is at the beginning of ``request``'s body, or at the end of a message."""
        self._parser = httptools.HttpRequestParser(self)
        if request is not None and (request.has_length or request.chunked):
            if request.chunked:
                framing = b"Transfer-Encoding: chunked"
            else:
                lengths = [line.rstrip() for line in request.lines if line[:15].lower() == b"content-length:"]
                framing = b"".join(lengths)
            request.complete = False
            self._incoming = request
            self._skipping_head = True
            self._parser.feed_data(b"POST / HTTP/1.1\r\nHost: x\r\n%b\r\n\r\n" % framing)

    def _too_large(self, request: Request) -> answers.Answer:
        limits = self._relay.limits
        if len(request.target) > limits.target_bytes_max:
            status, what, bytes_max = 414, "The request target is too long.", limits.target_bytes_max
        else:
            status, what, bytes_max = 431, "The header block is too large.", limits.head_bytes_max
        return answers.error(status, "invalid_request", what, details=f"expected at most {bytes_max} bytes")

    def _parse_failed(self, why: str, *, too_large: bool = False) -> None:
        request = self._incoming
        if request is None:
            if self._requests and not self._requests[-1].keep_alive:
                return  # bytes after a request that announced it was the last: they are not read
            if self.exchange is not None and not self.exchange.request.keep_alive:
                return
            request = Request()
        request.broken = True
        request.keep_alive = False
        if too_large:
            request.refusal = self._too_large(request)
        elif request.refusal is None:
            request.refusal = answers.error(400, "invalid_request", "The request is not valid HTTP/1.1.", details=why)
        if not request.method:
            self._requests.append(request)
        self._incoming = None
        self._unparsed = b""  # nothing after this can be understood

    def _advance(self) -> None:
        """Starts what can be started, and tells the exchange under way of body that has arrived.

        A loop, not a recursion: a flood of pipelined requests may each be refused on the spot.
        """
        exchange = self.exchange
        if exchange is not None:
            request = exchange.request
            if request.broken:
                exchange.request_broken()
            elif request.body or request.complete:
                exchange.body_arrived()
        elif not self._advancing:
            self._advancing = True
            # A client that does not read its answers gets no more of them.
            while self.exchange is None and self._requests and self.phase < LINGERING and self.writable:
                if self.phase != BUSY:
                    self.phase = BUSY
                    self._relay.in_flight += 1
                self.exchange = exchange = self._relay.new_exchange(self._relay, self, self._requests.popleft())
                exchange.start()
            self._advancing = False
            if self.exchange is None and not self._requests and self.phase < LINGERING:
                self._await_request()
        self.update_reading()

    def _await_request(self) -> None:
        if self.phase == BUSY:
            self._relay.in_flight -= 1
        if self._incoming is None:
            self._head_bytes = 0
            self.phase = IDLE
            self.deadline = self._relay.clock_s + self._relay.limits.keepalive_timeout_s
        elif self.phase == BUSY:
            self.phase = HEAD
            self.deadline = self._relay.clock_s + self._relay.limits.header_timeout_s

    def _hold_back(self, data: bytes) -> None:
        """Bytes that follow a request for an upgrade, until it is known whose they are."""
        self._unparsed = (self._unparsed or b"") + data
        self.update_reading()

    def _after_requests(self, data: bytes) -> None:
        if self.phase == TUNNEL and self.peer is not None:
            self.deadline = self._relay.clock_s + self._relay.limits.tunnel_idle_timeout_s
            self.peer.write(data)
        elif self.phase == LINGERING:
            self._discarded_bytes += len(data)
            if self._discarded_bytes > _LINGER_BYTES_MAX:
                self.transport.abort()

    # --- what the exchange calls

    def write(self, data: bytes) -> None:
        if self.phase != CLOSED:
            self.transport.write(data)

    def update_reading(self) -> None:
        """Reads on only while there is room for what may come, and somebody who takes it."""
        bytes_max = self._relay.limits.buffered_bytes_max
        exchange = self.exchange
        is_full = exchange is not None and exchange.is_full(bytes_max)
        if not is_full and (self._requests or self._unparsed):
            waiting_bytes = len(self._unparsed or b"") + sum(request.body_bytes for request in self._requests)
            is_full = waiting_bytes > bytes_max or len(self._requests) > _PIPELINED_MAX
        if is_full:
            self.pause_reading()
        elif self.reading_paused:
            self.resume_reading()

    def pause_reading(self) -> None:
        if not self.reading_paused and self.phase != CLOSED:
            self.reading_paused = True
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        if self.reading_paused and self.phase != CLOSED:
            self.reading_paused = False
            self.transport.resume_reading()

    def exchange_done(self, *, keep_alive: bool) -> None:
        """The answer is written in full. Next request, or the end of the connection."""
        exchange = self.exchange
        assert exchange is not None
        self.exchange = None
        if self.phase == CLOSED:
            return
        if not keep_alive or self._relay.draining:
            self._finish(linger=not exchange.request.complete)
            return
        if self._unparsed is None and not self._requests and not self._advancing and self.phase == BUSY:
            self._await_request()  # nearly always; as _advance would
            if self.reading_paused:
                self.resume_reading()
            return
        if self._unparsed is not None:  # an upgrade that was not accepted: what follows is HTTP after all
            rest, self._unparsed = self._unparsed, None
            self._replace_parser(None)
            self._feed(rest)
        self._advance()

    def refuse(self, answer: answers.Answer) -> None:
        """An answer outside of any exchange, then the end."""
        self.write(answer.head(b"Connection: close\r\n") + answer.body)
        self._finish(linger=True)

    def _finish(self, *, linger: bool) -> None:
        self._requests.clear()
        if self.phase == BUSY:
            self._relay.in_flight -= 1
        self.phase = LINGERING
        self._unsent_bytes = self.transport.get_write_buffer_size()
        self.deadline = self._relay.clock_s + (
            self._relay.limits.idle_timeout_s if self._unsent_bytes else _LINGER_TIMEOUT_S
        )
        self.resume_reading()
        if linger and self.transport.can_write_eof():
            self.transport.write_eof()
        else:
            self.transport.close()

    def become_tunnel(self, peer: "UpstreamConnection") -> bytes:
        """From here bytes pass as they come. Returns what the client has already sent for the other side."""
        self._relay.in_flight -= 1
        self.phase = TUNNEL
        self.peer = peer
        self.exchange = None
        self.deadline = self._relay.clock_s + self._relay.limits.tunnel_idle_timeout_s
        rest, self._unparsed = self._unparsed or b"", None
        self.resume_reading()
        return rest

    def half_close(self) -> bool:
        """The upstream sends no more. False where the client does not either: the tunnel is over."""
        if self._at_eof or self.phase != TUNNEL:
            return False
        if not self.transport.can_write_eof():
            self.transport.close()  # TLS: what is written goes out, and then both directions end
            return False
        self.transport.write_eof()
        return True

    def close(self) -> None:
        if self.phase != CLOSED:
            self.transport.close()

    def cut_off(self, *, reset: bool) -> None:
        """The answer cannot be completed. What is written of it goes out, unless ``reset`` has to tell the client."""
        if self.phase == CLOSED:
            return
        if not reset:
            self._finish(linger=False)
            return
        connection = self.transport.get_extra_info("socket")
        if connection is not None:
            # A linger time of zero turns the close into a reset (socket(7)).
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def timed_out(self) -> None:
        """``Relay.tick`` found the deadline passed."""
        if self.phase == BUSY and self.exchange is not None:
            self.exchange.timed_out()
        elif self.phase == HEAD:
            self.refuse(answers.error(408, "invalid_request", "The request's head did not arrive in time."))
        elif self.phase == LINGERING and 0 < self.transport.get_write_buffer_size() < self._unsent_bytes:
            self._unsent_bytes = self.transport.get_write_buffer_size()  # a slow reader, but it reads
            self.deadline = self._relay.clock_s + self._relay.limits.idle_timeout_s
        elif self.phase in (LINGERING, TUNNEL):
            self.transport.abort()
        else:
            self.close()

    def drain(self) -> None:
        """The worker stops: an idle connection closes, a busy one closes after its answer (Exchange sees to it)."""
        if self.phase == IDLE:
            self.close()
