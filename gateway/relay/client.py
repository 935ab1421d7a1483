"""The client's side of the relay: one connection, its requests in order.

What is received becomes requests in ``request_reader.py``. A connection is in one of these phases, and each phase has
the deadline that ``Relay.tick`` holds it to:

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
import socket
import struct
from typing import TYPE_CHECKING, cast

from gateway.relay import refusals
from gateway.relay.request_reader import PIPELINED_MAX, RequestReader

if TYPE_CHECKING:
    from gateway.policy.answers import Answer
    from gateway.relay.relay import Relay
    from gateway.relay.request import Request
    from gateway.relay.upstream import UpstreamConnection

IDLE, HEAD, BUSY, LINGERING, TUNNEL, CLOSED = range(6)
# Thrown away after the last answer: enough for what was in flight, too little to be worth sending.
_LINGER_BYTES_MAX = 1024 * 1024
_LINGER_TIMEOUT_S = 2.0


class ClientConnection(RequestReader):
    """A downstream connection: runs the exchanges of its requests one after the other, and writes the answers."""

    __slots__ = (
        "_advancing",
        "_at_eof",
        "_discarded_bytes",
        "_unsent_bytes",
        "address",
        "deadline",
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
        super().__init__(relay)
        self.reading_paused = False
        self._discarded_bytes = 0
        self._advancing = False
        self._unsent_bytes = 0
        self._at_eof = False
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
        self.is_trusted_proxy = self.relay.forwarding.is_trusted(self.address)
        self.transport.set_write_buffer_limits(high=self.relay.limits.buffered_bytes_max)
        self.deadline = self.relay.clock_s + self.relay.limits.header_timeout_s
        if not self.relay.opened(self):
            self.refuse(refusals.too_many_connections())

    def data_received(self, data: bytes) -> None:
        if self.phase == IDLE and self.unparsed is None:
            known = self.known(data)
            if known is not None and self.writable:
                self._begin(known)  # as _advance would
                return
            self.phase = HEAD
            self.deadline = self.relay.clock_s + self.relay.limits.header_timeout_s
            if known is not None:
                self.requests.append(known)
            else:
                self.feed(data)
                self.remember(data)
        elif self.phase >= LINGERING:
            self._after_requests(data)
            return
        elif self.unparsed is not None:
            self._hold_back(data)
            return
        else:
            self.feed(data)
        self._advance()

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
            self.relay.in_flight -= 1
        self.phase = CLOSED
        self.relay.closed(self)
        self.requests.clear()
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

    # --- from bytes to exchanges

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
            while self.exchange is None and self.requests and self.phase < LINGERING and self.writable:
                self._begin(self.requests.popleft())
            self._advancing = False
            if self.exchange is None and self.phase < LINGERING:
                if not self.requests:
                    self._await_request()
                elif self.phase != BUSY:  # its request is here and waits for it to read, as those behind an answer do
                    self.phase = BUSY
                    self.relay.in_flight += 1
                    self.deadline = self.relay.clock_s + self.relay.limits.idle_timeout_s
        self.update_reading()

    def _begin(self, request: "Request") -> None:
        relay = self.relay
        if self.phase != BUSY:
            self.phase = BUSY
            relay.in_flight += 1
        self.exchange = exchange = relay.new_exchange(relay, self, request)
        exchange.start()

    def _await_request(self) -> None:
        if self.phase == BUSY:
            self.relay.in_flight -= 1
        if self.incoming is None:
            self.head_bytes = 0
            self.phase = IDLE
            self.deadline = self.relay.clock_s + self.relay.limits.keepalive_timeout_s
        elif self.phase == BUSY:
            self.phase = HEAD
            self.deadline = self.relay.clock_s + self.relay.limits.header_timeout_s

    def _hold_back(self, data: bytes) -> None:
        """Bytes that follow a request for an upgrade, until it is known whose they are."""
        self.unparsed = (self.unparsed or b"") + data
        self.update_reading()

    def _after_requests(self, data: bytes) -> None:
        if self.phase == TUNNEL and self.peer is not None:
            self.deadline = self.relay.clock_s + self.relay.limits.tunnel_idle_timeout_s
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
        bytes_max = self.relay.limits.buffered_bytes_max
        exchange = self.exchange
        is_full = exchange is not None and exchange.is_full(bytes_max)
        if not is_full and (self.requests or self.unparsed):
            waiting_bytes = len(self.unparsed or b"") + sum(request.body_bytes for request in self.requests)
            is_full = waiting_bytes > bytes_max or len(self.requests) > PIPELINED_MAX
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
        exchange, relay = self.exchange, self.relay
        self.exchange = None
        if self.phase == CLOSED:
            return
        if not keep_alive or relay.draining:
            self._finish(linger=exchange is not None and not exchange.request.complete)
            return
        is_alone = not (self.requests or self._advancing)
        if is_alone and self.unparsed is None and self.incoming is None and self.phase == BUSY:
            # Nearly always; as _advance would.
            relay.in_flight -= 1
            self.phase = IDLE
            self.deadline = relay.clock_s + relay.limits.keepalive_timeout_s
            if self.reading_paused:
                self.resume_reading()
            return
        # If it does not read, what waits behind this answer does not begin.
        self.deadline = relay.clock_s + relay.limits.idle_timeout_s
        if self.unparsed is not None:  # an upgrade that was not accepted: what follows is HTTP after all
            rest, self.unparsed = self.unparsed, None
            self.replace_parser(None)
            self.feed(rest)
        self._advance()

    def refuse(self, answer: "Answer") -> None:
        """An answer outside of any exchange, then the end."""
        self.write(answer.head(b"Connection: close\r\n") + answer.body)
        self._finish(linger=True)

    def _finish(self, *, linger: bool) -> None:
        self.requests.clear()
        if self.phase == BUSY:
            self.relay.in_flight -= 1
        self.phase = LINGERING
        self._unsent_bytes = self.transport.get_write_buffer_size()
        self.deadline = self.relay.clock_s + (
            self.relay.limits.idle_timeout_s if self._unsent_bytes else _LINGER_TIMEOUT_S
        )
        self.resume_reading()
        if linger and self.transport.can_write_eof():
            self.transport.write_eof()
        else:
            self.transport.close()

    def become_tunnel(self, peer: "UpstreamConnection") -> bytes:
        """From here bytes pass as they come. Returns what the client has already sent for the other side."""
        self.relay.in_flight -= 1
        self.phase = TUNNEL
        self.peer = peer
        self.exchange = None
        self.deadline = self.relay.clock_s + self.relay.limits.tunnel_idle_timeout_s
        rest, self.unparsed = self.unparsed or b"", None
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
        elif self.phase == BUSY:
            self._finish(linger=False)  # it does not read its answers, and so gets no more of them
        elif self.phase == HEAD:
            self.refuse(refusals.late_head())
        elif self.phase == LINGERING and 0 < self.transport.get_write_buffer_size() < self._unsent_bytes:
            self._unsent_bytes = self.transport.get_write_buffer_size()  # a slow reader, but it reads
            self.deadline = self.relay.clock_s + self.relay.limits.idle_timeout_s
        elif self.phase in (LINGERING, TUNNEL):
            self.transport.abort()
        else:
            self.close()

    def drain(self) -> None:
        """The worker stops: an idle connection closes, a busy one closes after its answer (Exchange sees to it)."""
        if self.phase == IDLE:
            self.close()
