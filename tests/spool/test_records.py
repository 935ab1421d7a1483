"""Any prefix of a file gives a prefix of its records, and no flipped byte goes unnoticed."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.spool_records import (
    MARK,
    PAYLOAD_BYTES_MAX,
    Header,
    event_of,
    packed_events,
    packed_header,
    read_contents,
)
from gateway.usage_events import Terms, UsageEvent, event_id

HEADER = Header(worker_id="gateway-0-1", created_ms=1_795_348_800_000)
texts = st.text(max_size=30)
events = st.builds(
    UsageEvent,
    event_id=st.uuids().map(lambda one: one.hex),
    account_id=texts,
    policy=texts,
    occurred_ms=st.integers(0, 2**53),
    cost_microcents=st.integers(0, 2**53),
    upstream_status=st.integers(0, 599),
    outcome=st.sampled_from(["posted", "expired"]),
    cast_id=st.none() | texts,
    request_id=st.none() | texts,
)


def read(data: bytes) -> list[UsageEvent]:
    return [event_of(payload) for payload in read_contents(data).payloads]


@given(st.lists(events, max_size=5), st.data())
def test_any_prefix_gives_a_prefix_of_the_events(written: list[UsageEvent], data: st.DataObject) -> None:
    whole = packed_header(HEADER) + packed_events(written)
    length = data.draw(st.integers(0, len(whole)))
    contents = read_contents(whole[:length])
    found = [event_of(payload) for payload in contents.payloads]
    assert found == written[: len(found)]
    assert contents.damaged_bytes == 0
    # Nothing that was whole is lost: what is missing is only what was not written to its end.
    assert len(packed_header(HEADER) + packed_events(written[: len(found) + 1])) > length or len(found) == len(written)
    assert contents.whole_bytes + contents.torn_bytes == length
    if length >= len(packed_header(HEADER)):
        assert contents.header == HEADER


@given(st.lists(events, min_size=1, max_size=4), st.data())
def test_any_flipped_bits_of_a_byte_are_noticed_and_cost_one_record(
    written: list[UsageEvent], data: st.DataObject
) -> None:
    whole = packed_header(HEADER) + packed_events(written)
    at = data.draw(st.integers(0, len(whole) - 1))
    flipped = bytearray(whole)
    flipped[at] ^= data.draw(st.integers(1, 255))
    contents = read_contents(bytes(flipped))
    assert contents.torn_bytes + contents.damaged_bytes > 0
    found = [event_of(payload) for payload in contents.payloads]
    assert len(found) >= len(written) - 1
    remaining = iter(written)
    assert all(one in remaining for one in found), "what is read was written, in this order"


@given(st.binary(max_size=300))
def test_any_bytes_at_all_can_be_read(data: bytes) -> None:
    read_contents(data)
    read_contents(MARK + data)


def test_what_a_client_wrote_is_never_taken_for_a_record() -> None:
    bait = packed_events([UsageEvent(event_id(), "bait", "p", 0, 1, 200, "posted")]).decode("latin-1")
    whole = packed_events([UsageEvent(event_id(), "a", "p", 0, 1, 200, "posted", None, bait)] * 2)
    cut = whole[: len(whole) // 2 - 3] + whole[len(whole) // 2 :]
    assert [one.account_id for one in read(cut)] == ["a"]


def test_an_event_too_large_for_a_record_goes_without_its_ids() -> None:
    written = UsageEvent(event_id(), "a", "p", 0, 1, 200, "posted", "c" * PAYLOAD_BYTES_MAX, "r")
    assert read(packed_events([written])) == [written._replace(cast_id=None, request_id=None)]


TERMS = Terms("free/cast/total/UTC/1", 0, 253_402_214_400_000, 2**53 - 1, 2**53 - 1, "digest", 86_400_000)


@pytest.mark.parametrize(
    "terms", [TERMS, Terms(key="digest", key_life_ms=1000), TERMS._replace(key=None, key_life_ms=None)]
)
def test_terms_are_read_as_they_were_written(terms: Terms) -> None:
    written = UsageEvent(event_id(), "a", "p", 0, 1, 200, "posted", None, None, terms)
    assert read(packed_events([written])) == [written]


@pytest.mark.parametrize("place", range(len(Terms._fields)))
@pytest.mark.parametrize("part", [1.5, True, [], {}])
def test_terms_of_another_version_are_not_taken_for_ours(place: int, part: object) -> None:
    terms = [*TERMS]
    terms[place] = part  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="not the terms"):
        event_of(json.dumps([event_id(), "a", "p", 0, 1, 200, "posted", None, None, terms]).encode())
