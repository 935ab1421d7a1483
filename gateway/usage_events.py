"""What the ledger is about: events of charged calls, their ids, and what they come to."""

import os
import time
from collections.abc import Callable, Iterable, Sequence
from operator import itemgetter
from typing import NamedTuple, cast

from gateway.policy.rules import Policy


class Terms(NamedTuple):
    """Why a call may cost less than its price, which the ledger decides.

    In the order of castgate_settle_terms' parameters.

    ``free_kind`` None: no free tier. ``key`` None: no idempotency key. Units are smallest units (policy/free_tier.py).
    """

    free_kind: str | None = None
    free_start_ms: int | None = None
    free_end_ms: int | None = None
    units: int | None = None  # that the call counts
    free_limit: int | None = None  # units of the window that cost nothing
    key: str | None = None  # a digest
    key_life_ms: int | None = None


def terms_at(policy: Policy, at_ms: int, units: int, key: str) -> Terms | None:
    """The terms of a call under ``policy`` that was admitted at ``at_ms``; ``key`` is blank where it has none."""
    free = policy.cost.free
    life_ms = policy.idempotency.life_ms if key and policy.idempotency is not None else None
    if free is None:
        return Terms(key=key, key_life_ms=life_ms) if key else None
    window = free.window_at(at_ms)
    return Terms(
        free.kind(policy.name),
        window.start_ms,
        window.end_ms,
        units,
        free.units,
        key or None,
        life_ms,
    )


class UsageEvent(NamedTuple):
    """One charged call. The fields up to ``terms`` stand in the order of castgate_record_usage's parameters.

    A tuple, as one is made for every call and a batch becomes columns by ``zip``.
    """

    event_id: str  # 32 hex digits, the hold's
    account_id: str
    policy: str
    occurred_ms: int
    cost_microcents: int  # with terms: its price
    upstream_status: int  # 0: the upstream never answered
    outcome: str  # posted | expired
    cast_id: str | None = None
    request_id: str | None = None
    terms: Terms | None = None


class WindowUsage(NamedTuple):
    """What an account has used in one window, as committed; it never falls."""

    account_id: str
    kind: str  # BudgetLimit.kind
    start_ms: int
    end_ms: int
    used_microcents: int  # of a free tier: units


def full_columns_of(events: Sequence[UsageEvent]) -> list[str]:
    """``events`` as the first parameters of record_usage_on_terms: each field's values as an array literal.

    As sequences the driver would look at every element several times, which costs more than writing the literal.
    """
    if not events:
        return ["{}"] * len(_COLUMNS)
    columns: Iterable[tuple[object, ...]] = zip(*events, strict=True)
    return [
        _text_array(column) if name in _TEXT_FIELDS else f"{{{','.join(map(str, column))}}}"
        for name, column in zip(_COLUMNS, columns, strict=False)
    ]


def columns_of(events: Sequence[UsageEvent]) -> list[str]:
    """The same for record_usage: in order of id, and what all of them have in common only once."""
    if not events:
        return ["{}"] * len(_COLUMNS)
    columns: Iterable[tuple[object, ...]] = zip(*sorted(events, key=_id_of), strict=True)
    literals = []
    for name, column in zip(_COLUMNS, columns, strict=False):
        first = column[0]
        if column[-1] == first and column.count(first) == len(column) and (first is None or name not in _OWN_FIELDS):
            literals.append("{}" if first is None else f"{{{_element(first)}}}")
        elif name in _TEXT_FIELDS:
            literals.append(_text_array(column))
        else:
            literals.append(f"{{{','.join(map(str, column))}}}")
    return literals


def terms_of(events: Sequence[UsageEvent]) -> list[str] | None:
    """The terms of ``events`` in the same way; None where no event has any."""
    if not any(event.terms for event in events):
        return None
    columns = zip(*(event.terms or _NO_TERMS for event in events), strict=True)
    return [f"{{{','.join(map(_element, column))}}}" for column in columns]


_COLUMNS = UsageEvent._fields[:-1]
_TEXT_FIELDS = frozenset(("account_id", "policy", "outcome", "cast_id", "request_id"))
_OWN_FIELDS = frozenset(("event_id", "cast_id", "request_id"))  # of each event; the last two may be of none
_id_of = itemgetter(0)
_NO_TERMS = Terms()


def _element(value: object) -> str:
    return str(value) if isinstance(value, int) else _quoted(value)


def _text_array(column: tuple[object, ...]) -> str:
    """An array literal of texts. Nearly all of them are ids, which need nothing but their quotes: joined at once."""
    if None not in column:
        text = '","'.join(cast("tuple[str, ...]", column))
        if "\\" not in text and text.count('"') == 2 * (len(column) - 1):
            return f'{{"{text}"}}'
    return f"{{{','.join(map(_quoted, column))}}}"


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
