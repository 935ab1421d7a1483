"""What the ledger is about: events of charged calls, their ids, and what they come to."""

import os
import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, cast


class UsageEvent(NamedTuple):
    """One charged call. The fields stand in the order of castgate_record_usage's parameters.

    A tuple, as one is made for every call and a batch becomes columns by ``zip``.
    """

    event_id: str  # 32 hex digits, the hold's
    account_id: str
    policy: str
    occurred_ms: int
    cost_microcents: int
    upstream_status: int  # 0: the upstream never answered
    outcome: str  # posted | expired
    cast_id: str | None = None
    request_id: str | None = None


class WindowUsage(NamedTuple):
    """What an account has used in one window, as committed; it never falls."""

    account_id: str
    kind: str  # BudgetLimit.kind
    start_ms: int
    end_ms: int
    used_microcents: int


def columns_of(events: Sequence[UsageEvent]) -> list[str]:
    """``events`` as the first parameters of record_usage: each field's values as an array literal.

    As sequences the driver would look at every element several times, which costs more than writing the literal.
    """
    if not events:
        return ["{}"] * len(UsageEvent._fields)
    columns: Iterable[tuple[object, ...]] = zip(*events, strict=True)
    return [
        f"{{{','.join(map(_quoted if name in _TEXT_FIELDS else str, column))}}}"
        for name, column in zip(UsageEvent._fields, columns, strict=True)
    ]


_TEXT_FIELDS = frozenset(("account_id", "policy", "outcome", "cast_id", "request_id"))


def _quoted(value: object) -> str:
    """An element of an array literal (Postgres, 8.15.6); None is NULL."""
    if value is None:
        return "NULL"
    text = cast("str", value)
    if '"' in text or "\\" in text:
        text = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'


def _event_ids() -> Callable[[], str]:
    """UUIDv7 (RFC 9562, 5.7): milliseconds, a 12-bit counter within one (6.2, method 1), and 62 bits of this process.

    The last are random, but drawn once: ids of one process differ in what is before them, and a third of the time is
    saved. A fork draws again.
    """
    tail = ""

    def draw() -> None:
        nonlocal tail
        tail = f"{(1 << 63) | (int.from_bytes(os.urandom(8), 'big') >> 2):016x}"

    draw()
    os.register_at_fork(after_in_child=draw)
    time_ns = time.time_ns
    head = 0  # 48 bits of milliseconds, the version, the counter

    def event_id() -> str:
        """A new id, greater than every earlier one of this process, also when the clock steps back."""
        nonlocal head
        now = (time_ns() // 1_000_000 << 16) | 0x7000
        if now > head:
            head = now
        else:
            # After 4096 in one millisecond the next one is begun early.
            head += 1 if head & 0xFFF != 0xFFF else 0xF001
        return f"{head:016x}{tail}"

    return event_id


event_id = _event_ids()
