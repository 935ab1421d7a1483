"""What h11, which shares nothing with Castgate's parser, makes of the same bytes."""

from dataclasses import dataclass

import h11

_HEAD_BYTES_MAX = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Message:
    """A whole request, or a whole answer (``method`` empty, ``target`` its status)."""

    method: bytes
    target: bytes
    body: bytes


def requests_in(data: bytes) -> list[Message]:
    """The whole requests, up to the first that cannot be read, that ends the connection, or that changes protocols."""
    parser = h11.Connection(h11.SERVER, max_incomplete_event_size=_HEAD_BYTES_MAX)
    parser.receive_data(data)
    found: list[Message] = []
    head, body = None, b""
    try:
        while True:
            event = parser.next_event()
            if isinstance(event, h11.Request):
                head, body = event, b""
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                assert head is not None
                found.append(Message(head.method, head.target, body))
                if head.method == b"CONNECT":
                    return found
                parser.send(h11.Response(status_code=204, headers=[]))
                parser.send(h11.EndOfMessage())
                if parser.our_state is not h11.DONE or parser.their_state is not h11.DONE:
                    return found
                parser.start_next_cycle()
            else:
                return found
    except h11.RemoteProtocolError:
        return found


@dataclass(frozen=True, slots=True)
class Answers:
    """The whole final answers in a client's data; ``rest`` says what follows them: "" nothing, "cut", or an error."""

    whole: list[Message]
    rest: str


def answers_in(data: bytes, methods: list[bytes], *, closed: bool) -> Answers:
    """The answers to requests of these methods, as a client understands them."""
    found: list[Message] = []
    for method in methods:
        if not data:
            return Answers(found, "")
        parser = h11.Connection(h11.CLIENT, max_incomplete_event_size=_HEAD_BYTES_MAX)
        parser.send(h11.Request(method=method, target="/x", headers=[("Host", "h")]))
        parser.send(h11.EndOfMessage())
        parser.receive_data(data)
        if closed:
            parser.receive_data(b"")
        status, body = b"", b""
        try:
            while not isinstance(event := parser.next_event(), h11.EndOfMessage):
                if isinstance(event, h11.Response):
                    status = b"%d" % event.status_code
                elif isinstance(event, h11.Data):
                    body += event.data
                elif not isinstance(event, h11.InformationalResponse):
                    return Answers(found, "cut")
        except h11.RemoteProtocolError as error:
            return Answers(found, "cut" if closed and "peer" in str(error) else str(error))
        found.append(Message(b"", status, body))
        data = parser.trailing_data[0]
    return Answers(found, "" if not data else f"more than was asked for: {data[:100]!r}")
