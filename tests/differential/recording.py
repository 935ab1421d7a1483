"""The upstream behind every proxy: it reads with h11, a parser that shares nothing with Castgate's, and records."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import cast

import h11

# Larger than any head in the corpus, so that it is the proxies' limits that show.
_HEAD_BYTES_MAX = 256 * 1024
_HOST = re.compile(rb"c[0-9]{3}", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One request as the upstream understood it, whole."""

    method: bytes
    target: bytes
    fields: tuple[tuple[bytes, bytes], ...]
    body: bytes

    @property
    def host(self) -> bytes:
        """The case's host, where the request names one."""
        for name, value in self.fields:
            if name == b"host" and (found := _HOST.search(value)):
                return found[0].lower()
        found = _HOST.search(self.target)
        return found[0].lower() if found else b""

    def values(self, name: bytes) -> list[bytes]:
        return [value for other, value in self.fields if other == name]


@dataclass(slots=True)
class Recorder:
    """What has come, in the order in which it was complete; and what was no HTTP."""

    port: int = 0
    seen: list[Seen] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)


class RecordingConnection(asyncio.Protocol):
    """One connection to the upstream.

    ``answer_with_id``: the body of an answer is its request's X-Request-Id. ``early``: it answers once it has the head.
    """

    def __init__(self, recorder: Recorder, *, answer_with_id: bool = False, early: bool = False) -> None:
        self._early = early
        self._recorder = recorder
        self._answer_with_id = answer_with_id
        self._parser = h11.Connection(h11.SERVER, max_incomplete_event_size=_HEAD_BYTES_MAX)
        self._head: h11.Request | None = None
        self._body = bytearray()
        self._received = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        self._parser.receive_data(data)
        try:
            while self._step():
                pass
        except h11.RemoteProtocolError as error:
            self._recorder.broken.append(f"{error}: {bytes(self._received[-300:])!r}")
            self._transport.close()

    def _step(self) -> bool:
        event = self._parser.next_event()
        if isinstance(event, h11.Request):
            self._head = event
            if self._early:
                self._answer()
            elif self._parser.they_are_waiting_for_100_continue:
                self._send(h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue"))
        elif isinstance(event, h11.Data):
            self._body += event.data
        elif isinstance(event, h11.EndOfMessage):
            self._complete()
        else:
            if event is h11.PAUSED and self._parser.our_state is h11.MUST_CLOSE:
                self._transport.close()
            return False
        return True

    def _complete(self) -> None:
        head = self._head
        assert head is not None
        self._recorder.seen.append(
            Seen(method=head.method, target=head.target, fields=tuple(head.headers), body=bytes(self._body))
        )
        self._body.clear()
        self._received.clear()
        if not self._early:
            self._answer()
        if self._parser.our_state is h11.DONE:
            self._parser.start_next_cycle()
        else:  # the last of its connection, or a CONNECT that somebody passed on
            self._transport.close()

    def _answer(self) -> None:
        head = self._head
        assert head is not None
        answer = b"ok"
        if self._answer_with_id:
            answer = b"".join(value for name, value in head.headers if name == b"x-request-id")
        headers = [("Content-Length", str(len(answer)))]
        self._send(h11.Response(status_code=200, headers=headers, reason=b"OK"))
        if self._parser.our_state is h11.SWITCHED_PROTOCOL:
            return
        if head.method != b"HEAD":
            self._send(h11.Data(data=answer))
        self._send(h11.EndOfMessage())

    def _send(self, event: h11.Event) -> None:
        self._transport.write(self._parser.send(event) or b"")


@asynccontextmanager
async def recording() -> AsyncIterator[Recorder]:
    """An upstream that listens on ``port``."""
    recorder = Recorder()
    server = await asyncio.get_running_loop().create_server(lambda: RecordingConnection(recorder), "127.0.0.1", 0)
    recorder.port = server.sockets[0].getsockname()[1]
    yield recorder
    server.close()
