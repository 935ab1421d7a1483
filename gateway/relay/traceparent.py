"""W3C Trace Context (Recommendation, 23 November 2021): the ``traceparent`` of a request, read and passed on."""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass

# Version 00; of a later version the first four fields are the same (§3.2.2.1), and what follows them is not ours.
_FIELD = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_NAME = b"traceparent"
_SAMPLED = 0x01


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceContext:
    """The spans of one request: ours, below ``parent_id`` (None: it begins the trace), and the upstream call's."""

    trace_id: str
    parent_id: str | None
    span_id: str
    upstream_span_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Parent:
    """What the caller says."""

    trace_id: str
    span_id: str
    sampled: bool


def parent_of(lines: Iterable[bytes]) -> Parent | None:
    """The caller's ``traceparent`` among a request's field lines; None where there is none, or none that is valid."""
    found = [value for name, _, value in (line.partition(b":") for line in lines) if name.lower() == _NAME]
    match = _FIELD.fullmatch(found[0].strip()) if len(found) == 1 else None
    if match is None:
        return None
    version, trace_id, span_id, flags, rest = match.groups()
    if version == b"ff" or (version == b"00" and rest) or not trace_id.strip(b"0") or not span_id.strip(b"0"):
        return None
    return Parent(trace_id=trace_id.decode(), span_id=span_id.decode(), sampled=bool(int(flags, 16) & _SAMPLED))


def begin(parent: Parent | None) -> TraceContext:
    """Spans below ``parent``, or a new trace."""
    return TraceContext(
        trace_id=parent.trace_id if parent else os.urandom(16).hex(),
        parent_id=parent.span_id if parent else None,
        span_id=os.urandom(8).hex(),
        upstream_span_id=os.urandom(8).hex(),
    )


def forwarded(lines: Iterable[bytes], trace: TraceContext) -> list[bytes]:
    """The field lines as the upstream gets them: below our span. ``tracestate`` goes on as it came with its parent."""
    own = {_NAME} if trace.parent_id is not None else {_NAME, b"tracestate"}
    kept = [line for line in lines if line.partition(b":")[0].lower() not in own]
    kept.append(f"traceparent: 00-{trace.trace_id}-{trace.upstream_span_id}-01\r\n".encode())
    return kept
