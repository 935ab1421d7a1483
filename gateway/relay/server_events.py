"""Server-sent events as they pass (HTML Living Standard §9.2.6), no more of them kept than the event under way."""

from collections.abc import Callable


class ServerEvents:
    """Calls ``on_data`` with the data of each event, its lines joined by newlines.

    ``is_too_long`` says that an event was longer than ``bytes_max``, and was not read.
    """

    __slots__ = ("_bytes", "_bytes_max", "_data", "_ended_in_cr", "_on_data", "_rest", "is_too_long")

    def __init__(self, on_data: Callable[[bytes], None], bytes_max: int) -> None:
        self._on_data = on_data
        self._bytes_max = bytes_max
        self._rest = b""  # the line that is not complete
        self._data: list[bytes] = []
        self._bytes = 0
        self._ended_in_cr = False
        self.is_too_long = False

    def feed(self, piece: bytes) -> None:
        """More of the stream, cut anywhere."""
        if self._ended_in_cr and piece.startswith(b"\n"):
            piece = piece[1:]  # the second half of CRLF
            self._ended_in_cr = False
        if not piece:
            return
        self._ended_in_cr = piece.endswith(b"\r")
        if b"\n" not in piece and b"\r" not in piece:
            self._keep(piece)
            return
        text = (self._rest + piece).replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        self._rest = b""
        *lines, rest = text.split(b"\n")
        for line in lines:
            self._line(line)
        self._keep(rest)

    def end(self) -> None:
        """The stream is over. What of an event has arrived counts: some servers leave the last blank line out."""
        if self._rest:
            self._line(self._rest)
            self._rest = b""
        self._line(b"")

    def _keep(self, piece: bytes) -> None:
        if len(self._rest) + len(piece) + self._bytes > self._bytes_max:
            self.is_too_long = True
            self._rest = b""
        else:
            self._rest += piece

    def _line(self, line: bytes) -> None:
        if not line:
            if self._data:
                self._on_data(b"\n".join(self._data))
                self._data.clear()
                self._bytes = 0
            return
        name, _, value = line.partition(b":")
        if name != b"data":
            return
        self._bytes += len(value)
        if self._bytes > self._bytes_max:
            self.is_too_long = True
            self._data.clear()
            self._bytes = 0
        else:
            self._data.append(value.removeprefix(b" "))
