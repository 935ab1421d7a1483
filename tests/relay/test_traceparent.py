"""The ``traceparent`` field, by the tables of the W3C's recommendation."""

import pytest

from gateway.relay.traceparent import Parent, begin, forwarded, parent_of

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def line(value: str, name: str = "traceparent") -> bytes:
    return f"{name}: {value}\r\n".encode()


@pytest.mark.parametrize("name", ["traceparent", "Traceparent", "TRACEPARENT"])
@pytest.mark.parametrize(("flags", "sampled"), [("00", False), ("01", True), ("03", True), ("fe", False)])
def test_what_a_caller_says_is_read(name: str, flags: str, sampled: bool) -> None:
    lines = [b"Accept: */*\r\n", line(f"00-{TRACE}-{SPAN}-{flags}", name)]
    assert parent_of(lines) == Parent(trace_id=TRACE, span_id=SPAN, sampled=sampled)


def test_a_later_version_is_read_as_far_as_it_is_known() -> None:
    assert parent_of([line(f"cc-{TRACE}-{SPAN}-01-what.comes.later")]) is not None


@pytest.mark.parametrize(
    "value",
    [
        "",
        "00",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE}-{SPAN}-01-more",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE[:-1]}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-1",
        f"00-{TRACE}-{SPAN}-0g",
    ],
)
def test_what_is_malformed_counts_as_not_there(value: str) -> None:
    assert parent_of([line(value)]) is None


def test_two_of_them_count_as_none() -> None:
    assert parent_of([line(f"00-{TRACE}-{SPAN}-01")] * 2) is None


def test_it_goes_on_below_our_span_and_the_rest_as_it_came() -> None:
    lines = [b"Accept: */*\r\n", line(f"00-{TRACE}-{SPAN}-01"), b"tracestate: vendor=1\r\n", b"X-A: 1\r\n"]
    trace = begin(parent_of(lines))
    assert (trace.trace_id, trace.parent_id) == (TRACE, SPAN)
    *rest, last = forwarded(lines, trace)
    assert rest == [b"Accept: */*\r\n", b"tracestate: vendor=1\r\n", b"X-A: 1\r\n"]
    assert last == line(f"00-{TRACE}-{trace.upstream_span_id}-01")


def test_a_trace_that_begins_here_has_no_state_of_another() -> None:
    lines = [line("nonsense"), b"tracestate: vendor=1\r\n", b"X-A: 1\r\n"]
    trace = begin(parent_of(lines))
    assert trace.parent_id is None
    assert forwarded(lines, trace) == [b"X-A: 1\r\n", line(f"00-{trace.trace_id}-{trace.upstream_span_id}-01")]
    assert begin(None).trace_id != trace.trace_id
