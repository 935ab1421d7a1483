"""Heads of answers that were parsed before, byte for byte: what they came to is looked up instead of found out again.

An upstream writes the same head many times over, but for a date that changes once a second. Only heads that were taken
whole and plain are kept: a final status, a Content-Length, nothing that ends the connection. And only once the same
bytes were there twice in a row, so that heads that differ each time cost no more than a comparison. The parser has read
every byte of a head that is here, so nothing passes that it would have refused.
"""

from gateway.relay.added import names_of

# Statuses times routes times a second or two of dates; then all are forgotten.
_HEADS_MAX = 256
_END = b"\r\n\r\n"


class KnownAnswer:
    """What a head means: ``head`` is what the client gets of it, up to the line that ends it.

    The body begins at ``body_at`` and ends at ``end``. ``is_unchanged``: the client gets it all, byte for byte.
    """

    __slots__ = ("_names", "body_at", "end", "head", "is_unchanged", "status")

    def __init__(self, status: int, head: bytes, *, body_at: int, end: int, is_unchanged: bool) -> None:
        self.status = status
        self.head = head
        self.body_at = body_at
        self.end = end
        self.is_unchanged = is_unchanged
        self._names: frozenset[bytes] | None = None

    @property
    def names(self) -> frozenset[bytes]:
        """Of its fields, in lower case; looked for once somebody asks, as most answers have nothing added to them."""
        if self._names is None:
            self._names = names_of(self.head.split(b"\r\n")[1:-1])
        return self._names


class KnownAnswers:
    """The heads of one upstream."""

    def __init__(self) -> None:
        self._known: dict[bytes, KnownAnswer] = {}
        self._last = b""

    def __len__(self) -> int:
        return len(self._known)

    def find(self, data: bytes) -> KnownAnswer | None:
        """The meaning of an answer that is in ``data`` from its first byte to its last, if its head is known."""
        known = self._known.get(data[: data.find(_END) + 4])
        return known if known is not None and len(data) == known.end else None

    def learn(self, data: bytes, status: int, head: bytes, body_bytes: int) -> None:
        """``data`` is a whole answer, whose head the client got as ``head``, its last line included."""
        body_at, end = data.find(_END) + 4, len(data)
        if end != body_at + body_bytes:  # the parser skips empty lines behind an answer; they are none of it
            return
        seen, self._last = self._last, data[:body_at]
        if seen == self._last:
            if len(self._known) >= _HEADS_MAX:
                self._known.clear()
            self._known[seen] = KnownAnswer(status, head[:-2], body_at=body_at, end=end, is_unchanged=head == seen)
