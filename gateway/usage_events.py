"""What the ledger is about: events of charged calls, their ids, and what they come to."""

import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

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


# Makes a named tuple of all its fields, in half of the time that calling its class takes.
_usage_of: Callable[[tuple[object, ...]], WindowUsage] = partial(tuple.__new__, WindowUsage)


def usages_of(*columns: Sequence[object]) -> list[WindowUsage]:
    """Of the values of each field."""
    return list(map(_usage_of, zip(*columns, strict=True)))


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
