"""Just enough of an HTTP/1.1 response parser for a load client, with no IO (RFC 9112 §6).

The client has one request under way on a connection and never sends HEAD or CONNECT, so a response's body is told by
its head alone. What a client must refuse is refused: bytes after the end, two lengths, a length beside a transfer
coding, a broken chunk. Speed matters more than comfort: the answer is read from attributes, nothing is made for it.
"""

HEAD_BYTES_MAX = 65536  # more than any gateway under test may add; stops a peer that never ends its head
CHUNK_LINE_BYTES_MAX = 256  # a chunk size with a modest extension

_HEAD, _LENGTH, _CHUNK_SIZE, _CHUNK_DATA, _CHUNK_END, _TRAILERS, _UNTIL_CLOSE, _DONE = range(8)


class ResponseError(Exception):
    """The peer sent something that is no HTTP/1.1 response; the text says what."""


class ResponseReader:
    """Reads one response after another: ``feed`` until it says True, read the attributes, ``reset``.

    ``status``, ``close`` (the connection cannot be used again), ``body_bytes`` and, with ``keep_body``, ``body`` are
    valid once ``feed`` or ``end_of_stream`` returned True.
    """

    __slots__ = ("_buffer", "_keep_body", "_left", "_parts", "_state", "body_bytes", "close", "status")

    def __init__(self, *, keep_body: bool = False) -> None:
        self._keep_body = keep_body
        self._parts: list[bytes] = []
        self.reset()

    def reset(self) -> None:
        """Make ready for the next response on the same connection."""
        self._state = _HEAD
        self._buffer = b""
        self._left = 0
        if self._parts:
            self._parts = []
        self.status = 0
        self.close = False
        self.body_bytes = 0

    @property
    def body(self) -> bytes:
        """The decoded body; empty unless made with ``keep_body``."""
        return b"".join(self._parts)

    @property
    def began(self) -> bool:
        """Whether any byte of the response was seen."""
        return self._state != _HEAD or bool(self._buffer)

    def feed(self, data: bytes) -> bool:
        """Take bytes as they came; True when the response is complete. Raises ResponseError."""
        if self._state == _HEAD:
            rest = self._head(data)
            if rest is None:
                return False
            data = rest
        if self._state == _LENGTH:
            return self._length(data)
        if self._state == _UNTIL_CLOSE:
            self._body(data)
            return False
        if self._state == _DONE:
            if data:
                raise ResponseError("bytes after the end of the response")
            return True
        return self._chunked(data)

    def end_of_stream(self) -> bool:
        """The peer closed: True when that ends the body. Raises ResponseError where it cuts a response short."""
        if self._state == _UNTIL_CLOSE:
            self._state = _DONE
            return True
        if self.began:
            raise ResponseError("the connection closed in the middle of the response")
        return False

    def _body(self, data: bytes) -> None:
        self.body_bytes += len(data)
        if self._keep_body and data:
            self._parts.append(data)

    def _head(self, data: bytes) -> bytes | None:
        """Parse heads until one that is final; the bytes after it, or None when it is not here yet."""
        if self._buffer:
            data = self._buffer + data
        while True:
            end = data.find(b"\r\n\r\n")
            if end < 0:
                if len(data) > HEAD_BYTES_MAX:
                    raise ResponseError(f"a response head of more than {HEAD_BYTES_MAX} bytes")
                self._buffer = data
                return None
            head, data = data[: end + 2], data[end + 4 :]
            if head[:7] != b"HTTP/1." or head[8:9] != b" " or not head[9:12].isdigit():
                raise ResponseError(f"not an HTTP/1.1 status line: {head[:40]!r}")
            self.status = int(head[9:12])
            # 1xx answers come before the real one (RFC 9110 §15.2); 101 ends HTTP and is the final one.
            if self.status >= 200 or self.status == 101:
                self._buffer = b""
                self._framing(head.lower())
                return data

    def _framing(self, head: bytes) -> None:
        """Decide how the body ends (RFC 9112 §6.3); ``head`` is in lower case and ends with one CRLF."""
        self.close = head[7:8] == b"0"
        at = head.find(b"\r\nconnection:")
        if at >= 0:
            options = head[at + 13 : head.index(b"\r\n", at + 2)]
            self.close = b"close" in options or (self.close and b"keep-alive" not in options)
        at = head.find(b"\r\ncontent-length:")
        coded = head.find(b"\r\ntransfer-encoding:")
        if self.status in (101, 204, 304):
            self.close = self.close or self.status == 101
            self._state = _DONE
        elif coded >= 0:
            if at >= 0:
                raise ResponseError("both Content-Length and Transfer-Encoding")
            coding = head[coded + 20 : head.index(b"\r\n", coded + 2)].strip()
            if coding != b"chunked":
                raise ResponseError(f"unknown transfer coding {coding!r}")
            self._state = _CHUNK_SIZE
        elif at >= 0:
            end = head.index(b"\r\n", at + 2)
            text = head[at + 17 : end].strip()
            if not text.isdigit() or head.find(b"\r\ncontent-length:", end) >= 0:
                raise ResponseError(f"bad Content-Length {text!r}")
            self._left = int(text)
            self._state = _LENGTH
        else:
            self.close = True
            self._state = _UNTIL_CLOSE

    def _length(self, data: bytes) -> bool:
        self._left -= len(data)
        self._body(data)
        if self._left > 0:
            return False
        if self._left < 0:
            raise ResponseError("bytes after the end of the response")
        self._state = _DONE
        return True

    def _chunked(self, data: bytes) -> bool:
        if self._buffer:
            data, self._buffer = self._buffer + data, b""
        while True:
            if self._state == _CHUNK_DATA:
                part = data[: self._left]
                self._left -= len(part)
                self._body(part)
                data = data[len(part) :]
                if self._left:
                    return False
                self._state = _CHUNK_END
            if self._state == _CHUNK_END:
                if len(data) < 2:
                    self._buffer = data
                    return False
                if data[:2] != b"\r\n":
                    raise ResponseError("a chunk longer than it says")
                data = data[2:]
                self._state = _CHUNK_SIZE
            end = data.find(b"\r\n")
            if end < 0:
                if len(data) > (HEAD_BYTES_MAX if self._state == _TRAILERS else CHUNK_LINE_BYTES_MAX):
                    raise ResponseError("a chunk line without an end")
                self._buffer = data
                return False
            line, data = data[:end], data[end + 2 :]
            if self._state == _TRAILERS:
                if not line:
                    self._state = _DONE
                    return self.feed(data)
            else:
                self._left = _chunk_size(line)
                self._state = _CHUNK_DATA if self._left else _TRAILERS


def _chunk_size(line: bytes) -> int:
    digits = line.partition(b";")[0].strip()
    if not digits or len(digits) > 16 or digits.strip(b"0123456789abcdefABCDEF"):
        raise ResponseError(f"bad chunk size {line[:40]!r}")
    return int(digits, 16)
