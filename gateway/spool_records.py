"""What the bytes of a spool file mean: records that show by themselves whether they are whole.

A record is a mark, the payload's length, a CRC-32 of length and payload, and the payload, which is ASCII JSON: in the
first record an object, the file's header; in the others a list, an event. The mark begins with a byte that no payload
has, so that after a damaged record the next whole one is found again, and what a client wrote can never look like one.

A file ends anywhere: a process was killed, a machine lost power, a disk was full. What follows the last whole record is
torn and worth nothing. Damage before it (a disk that forgot) costs the records it hit and no others.
"""

import json
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from zlib import crc32

from gateway.usage_events import Terms, UsageEvent

MARK = b"\xc5CG1"
_HEAD = struct.Struct("<4sII")  # mark, length, checksum
_LENGTH = struct.Struct("<I")
# Of one payload. An event has some 200 bytes; its longest part by far is a request id that a client made.
PAYLOAD_BYTES_MAX = 1024 * 1024
# What every version has written; terms follow where a call has any.
_PLAIN_FIELDS = len(UsageEvent._fields) - 1
_TERMS_KINDS = (str, int, int, int, int, str, int)

_json = json.JSONEncoder(separators=(",", ":"), ensure_ascii=True).encode


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """Whose events these are: a worker's holds are found by its id. ``created_ms`` is about the first event's time."""

    worker_id: str
    created_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """A file, read: ``torn_bytes`` follow the last whole record, ``damaged_bytes`` are before it."""

    header: Header | None
    payloads: tuple[bytes, ...]
    whole_bytes: int  # up to the end of the last whole record
    torn_bytes: int
    damaged_bytes: int


def packed_header(header: Header) -> bytes:
    """``header`` as a record."""
    return _packed(_json({"worker_id": header.worker_id, "created_ms": header.created_ms}).encode())


def packed_events(events: Iterable[UsageEvent]) -> bytes:
    """``events`` as records, one after the other."""
    return b"".join(map(_packed_event, events))


def read_contents(data: bytes) -> Contents:
    """Every whole record in ``data``; never raises, whatever the bytes."""
    header: Header | None = None
    payloads: list[bytes] = []
    whole = end = 0
    for record_end, payload in _whole_records(data):
        end = record_end
        whole += _HEAD.size + len(payload)
        if payload.startswith(b"["):
            payloads.append(payload)
        elif header is None:
            header = _header_of(payload)
    return Contents(
        header=header,
        payloads=tuple(payloads),
        whole_bytes=end,
        torn_bytes=len(data) - end,
        damaged_bytes=end - whole,
    )


def event_of(payload: bytes) -> UsageEvent:
    """The event of a record. Raises ValueError where another version of this program wrote something else."""
    fields = json.loads(payload)
    kinds = [type(field) for field in fields]
    if kinds[:7] != [str, str, str, int, int, int, str] or len(fields) not in (_PLAIN_FIELDS, _PLAIN_FIELDS + 1):
        raise ValueError("not an event")
    if len(fields) == _PLAIN_FIELDS:
        return UsageEvent(*fields)
    terms = fields.pop()
    if not isinstance(terms, list) or len(terms) != len(Terms._fields):
        raise ValueError("not the terms of an event")
    if any(part is not None and type(part) is not kind for part, kind in zip(terms, _TERMS_KINDS, strict=True)):
        raise ValueError("not the terms of an event")
    return UsageEvent(*fields)._replace(terms=Terms(*terms))


def _packed_event(event: UsageEvent) -> bytes:
    payload = _json(event if event.terms else event[:_PLAIN_FIELDS]).encode()
    if len(payload) > PAYLOAD_BYTES_MAX:  # only what others made can be so long
        event = event._replace(cast_id=None, request_id=None)
        payload = _json(event if event.terms else event[:_PLAIN_FIELDS]).encode()
    return _packed(payload)


def _packed(payload: bytes) -> bytes:
    return _HEAD.pack(MARK, len(payload), _checksum(payload)) + payload


def _checksum(payload: bytes) -> int:
    return crc32(payload, crc32(_LENGTH.pack(len(payload))))


def _whole_records(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The end and the payload of each whole record."""
    at = 0
    while 0 <= at < len(data):
        payload = _payload_at(data, at)
        if payload is None:
            at = data.find(MARK, at + 1)
        else:
            at += _HEAD.size + len(payload)
            yield at, payload


def _payload_at(data: bytes, at: int) -> bytes | None:
    if len(data) - at < _HEAD.size:
        return None
    mark, length, checksum = _HEAD.unpack_from(data, at)
    if mark != MARK or length > min(PAYLOAD_BYTES_MAX, len(data) - at - _HEAD.size):
        return None
    payload = data[at + _HEAD.size : at + _HEAD.size + length]
    return payload if _checksum(payload) == checksum else None


def _header_of(payload: bytes) -> Header | None:
    try:
        fields = json.loads(payload)
        if isinstance(fields, Mapping):
            return Header(worker_id=str(fields["worker_id"]), created_ms=int(fields["created_ms"]))
    except (ValueError, KeyError, TypeError):
        pass
    return None
