"""The upstream's side of the relay: one connection. ``pool.py`` keeps the idle ones.

An answer is turned into the bytes for the client while it is parsed, collected, and handed over only when the parser
has accepted everything it was fed: a bad upstream cannot split an answer in two.
"""

import asyncio
import re
from typing import TYPE_CHECKING, cast

import httptools

from gateway.relay import heads
from gateway.relay.added import Added, added_beside, names_of
from gateway.relay.known import KnownAnswer

if TYPE_CHECKING:
    from gateway.relay.client import ClientConnection
    from gateway.relay.exchange import Exchange
    from gateway.relay.pool import Pool
    from gateway.relay.relay import Relay

# What a reason phrase consists of (RFC 9112 §4); the parser also takes control characters.
_REASON = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
_VERSION = b"HTTP/1."
# Before its answer an upstream sends a 100 and perhaps a few early hints, not interim answers without end.
_INTERIM_MAX = 32
# A length of more digits is hidden behind zeros, or more than a client counts to.
_LENGTH_DIGITS_MAX = 18
# What a client said last in its tunnel has this long to reach an upstream that does not read.
_FINISH_TIMEOUT_S = 2.0


class UpstreamConnection:
    """One keep-alive connection to an upstream; serves one exchange at a time."""

    __slots__ = (
        "_added_bytes",
        "_at_eof",
        "_at_start",
        "_chunk_framing",
        "_chunked",
        "_connection_options",
        "_has_length",
        "_interim",
        "_interims",
        "_invalid",
        "_is_http_1",
        "_lines",
        "_out",
        "_parser",
        "_plain",
        "_promises_body",
        "_reading_paused",
        "_reason",
        "_relay",
        "_unusable",
        "_withheld_bytes",
        "complete",
        "exchange",
        "head_done",
        "idle_since",
        "open",
        "peer",
        "pool",
        "status",
        "transport",
        "used",
        "writable",
    )
    __deletable__ = ("_parser",)  # mypyc's

    def __init__(self, relay: "Relay", pool: "Pool") -> None:
        self._relay = relay
        self.pool = pool
        self._parser = httptools.HttpResponseParser(self)
        self.exchange: Exchange | None = None
        self.peer: ClientConnection | None = None
        self.open = False
        self.writable = True
        self.used = False  # has carried an exchange before: it may be closing at this very moment
        self.idle_since = 0.0
        self._reading_paused = False
        self._unusable = False
        self._at_eof = False
        self._out: list[bytes] = []
        self._interims = 0
        self._begin_answer()

    def _begin_answer(self) -> None:
        self.status = 0
        self.head_done = False
        self.complete = False
        self._interim = False
        self._is_http_1 = False
        self._invalid: str | None = None
        self._reason = b""
        self._lines: list[bytes] = []
        self._connection_options: list[bytes] = []
        self._has_length = False
        self._promises_body = False
        self._chunked = False
        self._chunk_framing = False
        self._at_start = True
        self._plain = False  # a head worth knowing
        self._added_bytes = 0  # of fields of the gateway's own at the head's end
        self._withheld_bytes = 0  # received since anything was there to pass on

    # --- transport events

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(high=self._relay.limits.buffered_bytes_max)
        self.open = True

    def data_received(self, data: bytes) -> None:
        if self.peer is not None:
            self._relay_tunnel(data)
            return
        exchange = self.exchange
        if exchange is None:  # nobody asked: whatever it is, it must not become the next exchange's answer
            self.close()
            return
        is_whole = self._at_start
        if is_whole:
            known = self.pool.known_answers.find(data)
            if known is not None and exchange.meter is None and exchange.request.method != b"HEAD":
                self._take_known(known, data, exchange)
                return
            self._at_start = False
            self._is_http_1 = data.startswith(_VERSION)
            if not self._is_http_1 and not _VERSION.startswith(data):
                self._invalid = "it is not HTTP/1.1"  # the parser reads RTSP and ICE as well
            if data[9:10] == b"1" and 3 < (end := data.find(b"\r\n\r\n") + 4) < len(data):
                # What follows an interim answer is looked at like any answer's beginning: its version as well.
                self._at_start = True
                self.data_received(data[:end])
                self.data_received(data[end:])
                return
        self._withheld_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            if self._invalid is None:
                self._out.append(data[upgrade.args[0] :])
                exchange.switched_protocols(self, self.take())
                return
        except httptools.HttpParserError as error:
            if not self.complete:
                self._unusable = True
                self.pool.failed()
                exchange.upstream_failed(f"the upstream's answer is not valid HTTP/1.1: {error}")
                return
            self._unusable = True  # bytes after a complete answer
        if self._invalid is not None:
            self.pool.failed()
            exchange.upstream_failed(f"the upstream's answer cannot be relayed: {self._invalid}")
        elif self._out or self.complete:
            if is_whole and self._plain and self.complete and not self._unusable and self._interims == 0:
                head, *body = self._out
                if self._added_bytes:  # this call's alone
                    head = head[: -self._added_bytes - 2] + b"\r\n"
                self.pool.known_answers.learn(data, self.status, head, sum(map(len, body)))
            self._withheld_bytes = 0  # the answer has begun
            exchange.answer_arrived(self)
        elif self._withheld_bytes > self._relay.limits.head_bytes_max:
            exchange.upstream_failed("the upstream's answer has too large a header block")

    def _take_known(self, known: KnownAnswer, data: bytes, exchange: "Exchange") -> None:
        """As the parser's events would have done, of an answer that is over as soon as it is here."""
        self.complete = True
        if exchange.captured is not None:
            exchange.captured = [data[known.body_at :]]
        framing = exchange.answer_framing(bodiless=False, has_length=True)
        if exchange.added:
            framing += added_beside(exchange.added, known.names)
        if framing or not known.is_unchanged:
            data = b"%b%b\r\n%b" % (known.head, framing, data[known.body_at :])
        exchange.whole_answer_arrived(self, known.status, data)

    def take(self) -> bytes:
        """The bytes for the client that have been collected."""
        out = self._out
        data = out[0] if len(out) == 1 else b"".join(out)
        out.clear()
        return data

    def eof_received(self) -> bool:
        if self.peer is not None:
            self._at_eof = True
            # TLS has no half-close here: its end is the end of both directions.
            return self.peer.half_close() and self.transport.can_write_eof()
        self.open = False  # now, and not only once it is lost: a call that comes before must not get it
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.open = False
        self.pool.lost(self)
        if self.peer is not None:
            self.peer.close()
        del self._parser  # it refers to our methods: so we go at once, and not with some later collection
        exchange = self.exchange
        if exchange is None:
            return
        if self.head_done and not self._has_length and not self._chunked and not self.complete and exc is None:
            self._end_of_body()  # an answer that ends where the connection does (RFC 9112 §6.3, item 8)
            exchange.answer_arrived(self)
        else:
            if not self.head_done and not self.used:  # a used one may just have been let go, as is its right
                self.pool.failed()
            exchange.upstream_lost(self)

    def pause_writing(self) -> None:
        self.writable = False
        if self.peer is not None:
            self.peer.pause_reading()

    def resume_writing(self) -> None:
        self.writable = True
        if self.peer is not None:
            self.peer.resume_reading()
        elif self.exchange is not None:
            self.exchange.upstream_writable()

    # --- parser events: collect only

    def on_message_begin(self) -> None:
        self._at_start = False  # the final answer may begin in the piece that an interim one ends in
        if self.complete:
            self._unusable = True  # a second answer to one request

    def on_status(self, reason: bytes) -> None:
        self._reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.complete:
            return
        if self.head_done:
            if self._chunk_framing and not self._interim:
                # A trailer; one that would count in a head has no place here (RFC 9110 §6.5.1).
                if heads.RESPONSE_FIELDS[name] == heads.OTHER:
                    self._lines.append(b"%b: %b\r\n" % (name, value))
                else:
                    self._unusable = True  # the parser may act on it
            return
        field = heads.RESPONSE_FIELDS[name]
        if field == heads.OTHER:
            self._lines.append(b"%b: %b\r\n" % (name, value))
        elif field == heads.CONTENT_LENGTH:
            self._has_length = True
            if len(value) > _LENGTH_DIGITS_MAX:
                self._invalid = "its Content-Length is too long a number"
            self._promises_body = value.strip() != b"0"
            status = self._parser.get_status_code()
            if status >= 200 and status != 204:  # others have no body, whatever they say (RFC 9110 §8.6)
                self._lines.append(b"%b: %b\r\n" % (name, value))
        elif field == heads.TRANSFER_ENCODING:
            if self._chunked or value.strip().lower() != b"chunked":
                self._invalid = "its transfer coding is not chunked"
            self._chunked = True
        elif field in (heads.CONNECTION, heads.UPGRADE):
            if self._parser.get_status_code() == 101:  # what is switched to is the client's to know
                self._lines.append(b"%b: %b\r\n" % (name, value))
                if field == heads.UPGRADE and value.strip().lower() != b"websocket":
                    self._invalid = "it switches to another protocol than was asked for"
            elif field == heads.CONNECTION:
                self._connection_options += heads.connection_tokens(value)

    def on_headers_complete(self) -> None:
        if self.complete:
            return
        exchange = self.exchange
        assert exchange is not None
        status = self._parser.get_status_code()
        if not self._has_status_line(status):
            self._invalid = "its status line is not one of HTTP/1.1"
            return
        if status < 200 and status != 101:
            self._interim = True
            self._interims += 1
            if self._interims > _INTERIM_MAX:
                self._invalid = "it has too many interim answers"
            elif exchange.wants_interim(status):
                self._write_head(status, b"")
            return
        self.status = status
        self.head_done = True
        if self._chunked and self._has_length:
            self._invalid = "it has both Transfer-Encoding and Content-Length"
        elif status == 101 and exchange.request.upgrade is None:
            self._invalid = "it switches protocols unasked"
        if not self._parser.should_keep_alive() or (self._chunked and self._parser.get_http_version() == "1.0"):
            self._unusable = True  # HTTP/1.0 has no chunks: where such an answer ends is not sure (RFC 9112 §6.1)
        bodiless = exchange.request.method == b"HEAD" or status in (204, 304)
        framing = b""
        if status != 101:
            self._chunk_framing = not bodiless and not self._has_length and not exchange.request.http_1_0
            framing = exchange.answer_framing(bodiless=bodiless, has_length=self._has_length)
            self._plain = self._has_length and not bodiless and not framing and not self._interim
        if exchange.meter is not None:
            exchange.meter.head(self._lines)
        self._write_head(status, framing, exchange.added)
        self._lines = []
        if bodiless:
            # The parser cannot be told that this answer has no body; it is not asked again.
            self.complete = True
            if self._chunked or self._promises_body:
                # A server that sends the body of an answer to HEAD all the same may do so a moment later: it would be
                # read as the answer to the next request, which may be somebody else's.
                self._unusable = True
            self._parser = httptools.HttpResponseParser(self)

    def _has_status_line(self, status: int) -> bool:
        """Whether version, status and reason are HTTP/1's: the parser knows other versions, and takes any digits."""
        if not self._is_http_1 and self._parser.get_http_version() not in ("1.1", "1.0"):
            return False
        return status >= 100 and (self._reason.isalnum() or _REASON.fullmatch(self._reason) is not None)

    def _write_head(self, status: int, framing: bytes, added: tuple[Added, ...] = ()) -> None:
        lines = self._lines
        if len(self._connection_options) > 1 or self._connection_options not in ([], [b"keep-alive"], [b"close"]):
            lines = heads.without_named(lines, self._connection_options, heads.RESPONSE_FIELDS)
        if added:
            own = added_beside(added, names_of(lines))
            self._added_bytes = len(own)
            framing += own
        self._out.append(b"HTTP/1.1 %d %b\r\n%b%b\r\n" % (status, self._reason, b"".join(lines), framing))

    def on_body(self, body: bytes) -> None:
        if self.complete:
            self._unusable = True  # a body where there is none
            return
        if self._interim:
            self._invalid = "an interim answer has a body"  # the parser knows some of them only
            return
        exchange = self.exchange
        assert exchange is not None
        exchange.capture(body)
        self._out.append(b"%x\r\n%b\r\n" % (len(body), body) if self._chunk_framing else body)

    def on_message_complete(self) -> None:
        if self._interim and self._invalid is None:
            self._begin_answer()
        elif not self.complete:
            self._end_of_body()

    def _end_of_body(self) -> None:
        self.complete = True
        if self._chunk_framing:
            self._out.append(b"0\r\n%b\r\n" % b"".join(self._lines))

    # --- what the exchange calls

    def start(self, exchange: "Exchange", data: bytes) -> None:
        """Serves this exchange from here on, whose request begins with ``data``."""
        self.exchange = exchange
        self._interims = 0
        if self._at_start:  # nothing was parsed since: the last answer was a known one, or there was none
            self.complete = False
        else:
            self._begin_answer()
        if self.open:
            self.transport.write(data)

    @property
    def is_silent(self) -> bool:
        """Whether not a byte of an answer has come, an interim one's included."""
        return self._at_start and self._interims == 0

    def write(self, data: bytes) -> None:
        if self.open:
            self.transport.write(data)

    def pause_reading(self) -> None:
        if self.open and not self._reading_paused:
            self._reading_paused = True
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        if self.open and self._reading_paused:
            self._reading_paused = False
            self.transport.resume_reading()

    def done(self, *, reusable: bool) -> None:
        """The exchange is over. Back to the pool, where both sides of the connection are at a message's end."""
        self.exchange = None
        self.used = True
        if self._reading_paused:
            self.resume_reading()
        if self.pool.is_doubtful and self.complete:
            self.pool.succeeded()
        if reusable and self.open and self.complete and not self._unusable and not self.transport.is_closing():
            self.pool.release(self)
        else:
            self.close()

    def close(self) -> None:
        self._unusable = True
        if self.open and not self.transport.is_closing():
            self.transport.abort()
        self.open = False

    # --- tunnel

    def become_tunnel(self, peer: "ClientConnection") -> None:
        self.exchange = None
        self.peer = peer
        self.pool.leave(self)

    def _relay_tunnel(self, data: bytes) -> None:
        peer = self.peer
        assert peer is not None
        peer.deadline = self._relay.clock_s + self._relay.limits.tunnel_idle_timeout_s
        peer.write(data)

    def finish(self) -> None:
        """The client is gone: what it said last still goes out."""
        self._unusable = True
        if self.open:
            self.transport.close()
            if self.transport.get_write_buffer_size() > 0:
                asyncio.get_running_loop().call_later(_FINISH_TIMEOUT_S, self.transport.abort)

    def half_close(self) -> bool:
        """The client sends no more. False where the upstream does not either: the tunnel is over."""
        if self._at_eof or not self.open:
            return False
        if not self.transport.can_write_eof():
            self.transport.close()  # TLS: what is written goes out, and then both directions end
            return False
        self.transport.write_eof()
        return True
