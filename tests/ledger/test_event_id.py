"""Ids of events: UUIDv7, each greater than the one before, also after a fork and when the clock steps back."""

import os
import time
from uuid import UUID

import pytest

from gateway import usage_events
from gateway.ledger import event_id


def test_an_id_is_a_uuid_of_version_7_with_the_time() -> None:
    before_ms = time.time_ns() // 1_000_000
    one = event_id()
    parsed = UUID(hex=one)
    assert (len(one), parsed.hex) == (32, one)
    assert (parsed.version, parsed.variant) == (7, "specified in RFC 4122")
    assert 0 <= (parsed.int >> 80) - before_ms < 60_000


def test_ids_rise_however_fast_they_are_made() -> None:
    ids = [event_id() for _ in range(50_000)]
    assert ids == sorted(set(ids))


def test_ids_rise_while_the_clock_stands_still_or_steps_back(monkeypatch: pytest.MonkeyPatch) -> None:
    now_ms = 1_795_348_800_000
    monkeypatch.setattr(time, "time_ns", lambda: now_ms * 1_000_000)
    make = usage_events._event_ids()
    ids = [make() for _ in range(10_000)]
    now_ms -= 5000
    ids += [make() for _ in range(10)]
    now_ms += 6000
    ids.append(make())
    assert ids == sorted(set(ids))
    assert all(UUID(hex=one).version == 7 for one in ids)
    assert UUID(hex=ids[-1]).int >> 80 == now_ms


def test_a_fork_makes_other_ids() -> None:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, event_id().encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(write)
    told = os.read(read, 100).decode()
    os.close(read)
    assert told[16:] != event_id()[16:]
