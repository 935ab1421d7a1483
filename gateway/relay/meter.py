"""What is seen of a call whose cost is measured: fields of the answer's head, values inside its body, bytes, time.

Made only for calls of policies that measure; keeps no more of an answer than it must, and never delays or changes it.
What cannot be read (another content coding, an answer or event beyond the bound, no JSON) is missing, and what a
missing part costs is the policy's to say.
"""

import json
import zlib
from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any

from gateway.policy.costs import BytesCost, DurationCost, HeaderCost, JsonCost, Part, quantity_of
from gateway.policy.pointers import names_of, value_at
from gateway.relay.server_events import ServerEvents

# Inflated in pieces of this size, so that a compressed answer never takes more memory than a plain one.
_INFLATED_BYTES_MAX = 64 * 1024
_CODINGS = {b"gzip": 31, b"x-gzip": 31, b"deflate": 15}
# json.loads reads any number of digits; beyond these it is no count.
_DIGITS_MAX = 30


class Meter:
    """One call, as far as its policy's cost needs to know it."""

    __slots__ = ("_answer_bytes", "_began", "_body", "_fields", "_fields_seen", "_parts", "_request_bytes", "_took_us")

    def __init__(self, parts: Sequence[Part], bytes_max: int) -> None:
        """``bytes_max`` bounds what is kept of an answer at any time: the whole of a JSON answer, or one event."""
        self._parts = parts
        self._fields = {part.field.encode(): part.field for part in parts if isinstance(part, HeaderCost)}
        self._fields_seen: dict[str, list[str]] = {}
        pointers = [part for part in parts if isinstance(part, JsonCost)]
        self._body = _Body(pointers, bytes_max) if pointers else None
        self._began: float | None = None
        self._took_us = 0
        self._request_bytes = 0
        self._answer_bytes = 0

    def sent(self, now_s: float) -> None:
        """The call went to the upstream."""
        self._began = now_s

    def asked(self, pieces: Sequence[bytes]) -> None:
        """Some of the request's body went to the upstream."""
        self._request_bytes += sum(map(len, pieces))

    def head(self, lines: Sequence[bytes]) -> None:
        """The final answer's head, as field lines."""
        content_type, coding = b"", b""
        for line in lines:
            name, _, value = line.partition(b":")
            name = name.lower()
            if name == b"content-type":
                content_type = value.partition(b";")[0].strip().lower()
            elif name == b"content-encoding":
                coding = value.strip().lower()
            field = self._fields.get(name)
            if field is not None:
                self._fields_seen.setdefault(field, []).append(value.strip().decode("latin-1"))
        if self._body is not None:
            self._body.begin(content_type, coding)

    def body(self, data: bytes) -> None:
        """Some of the answer's body."""
        self._answer_bytes += len(data)
        if self._body is not None:
            self._body.feed(data)

    def units(self, now_s: float) -> list[Fraction | int | None]:
        """The quantity of each part, in order; the call is over."""
        if self._began is not None:
            self._took_us = max(0, round((now_s - self._began) * 1_000_000))
        values = iter(self._body.values()) if self._body is not None else iter(())
        return [next(values) if isinstance(part, JsonCost) else self._units_of(part) for part in self._parts]

    def _units_of(self, part: HeaderCost | DurationCost | BytesCost) -> Fraction | int | None:
        if isinstance(part, DurationCost):
            return Fraction(self._took_us, 1000)
        if isinstance(part, BytesCost):
            answer = self._answer_bytes if part.of != "request" else 0
            return answer + (self._request_bytes if part.of != "answer" else 0)
        values = self._fields_seen.get(part.field, ())
        return quantity_of(values[0]) if len(values) == 1 else None  # two of them: whose is right?


class _Body:
    """Values at JSON pointers into a body that arrives in pieces."""

    def __init__(self, parts: Sequence[JsonCost], bytes_max: int) -> None:
        self._parts = parts
        self._bytes_max = bytes_max
        self._pieces: list[bytes] = []
        self._bytes = 0
        self._is_unreadable = False
        self._inflate: zlib._Decompress | None = None
        self._wbits = 0
        self._events: ServerEvents | None = None
        self._found: list[Fraction | None] = [None] * len(parts)
        # An event without one of these in it is not parsed. (Names may be written with escapes.)
        self._marks = (*{_mark_of(names_of(part.pointer)[0]) for part in parts}, b"\\u")

    def begin(self, content_type: bytes, coding: bytes) -> None:
        if coding in _CODINGS:
            self._wbits = _CODINGS[coding]
            self._inflate = zlib.decompressobj(wbits=self._wbits)
        elif coding not in (b"", b"identity"):
            self._is_unreadable = True
        if content_type == b"text/event-stream":
            self._events = ServerEvents(self._event, self._bytes_max)

    def feed(self, data: bytes) -> None:
        if self._is_unreadable:
            return
        if self._inflate is None:
            self._plain(data)
            return
        try:
            while data and not self._is_unreadable:
                if self._inflate.eof:  # gzip may consist of several members (RFC 1952 §2.2)
                    self._inflate = zlib.decompressobj(wbits=self._wbits)
                self._plain(self._inflate.decompress(data, _INFLATED_BYTES_MAX))
                data = self._inflate.unconsumed_tail or self._inflate.unused_data
        except zlib.error:
            self._give_up()

    def values(self) -> list[Fraction | None]:
        """What was found at each pointer; the body is over."""
        if self._events is not None:
            self._events.end()
            self._is_unreadable = self._is_unreadable or self._events.is_too_long
        elif not self._is_unreadable:
            document = _document(b"".join(self._pieces))
            self._found = [quantity_of(value_at(document, part.pointer)) for part in self._parts]
        return [None] * len(self._parts) if self._is_unreadable else self._found

    def _plain(self, data: bytes) -> None:
        if self._events is not None:
            self._events.feed(data)
            return
        self._bytes += len(data)
        if self._bytes > self._bytes_max:
            self._give_up()
        else:
            self._pieces.append(data)

    def _give_up(self) -> None:
        self._is_unreadable = True
        self._pieces.clear()

    def _event(self, data: bytes) -> None:
        if not any(mark in data for mark in self._marks):
            return
        document = _document(data)
        for place, part in enumerate(self._parts):
            count = quantity_of(value_at(document, part.pointer))
            if count is not None:
                before = self._found[place] if part.events == "sum" else None
                self._found[place] = count if before is None else before + count


def _mark_of(name: str) -> bytes:
    """What is in every JSON text that has something at ``name``, where its characters are not written as numbers."""
    if name.isdecimal() or "/" in name:  # a place in an array; a slash may be written as it is or escaped
        return b""
    return json.dumps(name, ensure_ascii=False).encode()


def _document(text: bytes) -> Any:
    """The JSON value, its fractions exact; None where it is not JSON."""
    try:
        return json.loads(text.decode(), parse_float=Decimal, parse_int=_whole, parse_constant=lambda _: None)
    except (ValueError, RecursionError, ArithmeticError):
        return None


def _whole(digits: str) -> int | None:
    return int(digits) if len(digits) <= _DIGITS_MAX else None
