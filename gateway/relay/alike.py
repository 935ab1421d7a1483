"""Heads that differ from the last one of their connection in a few plain values: only those are read.

Whoever calls for many (a service with its customers' keys, a proxy whose connections many share) sends the same lines
again and again but for a key, an id or a trace. The parser has read every other byte of such a head. It is not asked
about the new values, so they are of a kind that it passes on as it finds them: visible characters, blanks between them.
Fields that say how a message is framed, routed or passed on must be the same as before; if one is not, and in every
case of doubt, the head is parsed like any other.
"""

import re
from typing import TYPE_CHECKING

from gateway.relay.heads import API_KEY, AUTHORIZATION, OTHER, REQUEST_ID

if TYPE_CHECKING:
    from gateway.relay.relay import Relay
    from gateway.relay.request import Request

# To read more new values than this takes longer than to parse the head; a hundred, ten times as long.
CHANGES_MAX = 4
_is_plain = re.compile(rb"[!-~](?:[ -~]*[!-~])?").fullmatch


class Varying:
    """The one value that differed last, as it nearly always is the one that differs next: what is around it."""

    __slots__ = (
        "after",
        "before",
        "field",
        "forwarded",
        "forwarded_after",
        "forwarded_before",
        "is_all_shown",
        "line_at",
        "place",
    )

    def __init__(self, request: "Request", head: bytes, field: int, place: int, line_at: int) -> None:
        line = request.lines[place]
        value_at = line_at + line.find(b": ") + 2
        self.field = field
        self.place = place  # of its line in ``Request.lines``; no other line has a field of that spelling
        self.line_at = line_at  # in the head
        self.before, self.after = head[:value_at], head[line_at + len(line) - 2 :]
        # Whether this value alone says who calls.
        self.is_all_shown = field == AUTHORIZATION and request.api_key is None and request.cookie is None
        self.forwarded = b""  # the head that went upstream last, and what is around the value there
        self.forwarded_before = self.forwarded_after = b""

    def in_forwarded(self, head: bytes, line: bytes, value: bytes) -> bytes:
        """``head``, which goes upstream and in which ``line`` has the value, with this one."""
        if head is not self.forwarded:
            # The gateway's own lines come after those of the request.
            line_at = head.find(b"\n%b" % line) + 1
            if line_at == 0:
                return head
            self.forwarded_before = head[: line_at + line.find(b": ") + 2]
            self.forwarded_after = head[line_at + len(line) - 2 :]
        self.forwarded = b"%b%b%b" % (self.forwarded_before, value, self.forwarded_after)
        return self.forwarded


def become(request: "Request", head: bytes, body_bytes: int, data: bytes, relay: "Relay") -> bytes:
    """Make ``request``, whose head was ``head``, the one that ``data`` is from its first byte to its last, with a body
    of ``body_bytes``; returns that one's head. Empty where that cannot be done, and ``request`` is as it was.
    """
    varying = request.varying
    if varying is not None:
        before, after = varying.before, varying.after
        end = len(data) - body_bytes - len(after)
        head_end = end + len(after)
        if (
            end > len(before)
            and head_end <= relay.limits.head_bytes_max
            and data.startswith(before)
            and data.startswith(after, end)
        ):
            value = data[len(before) : end]
            shows_all = varying.is_all_shown and request.policy is not None
            met = relay.identify.met_with(value) if shows_all else None
            if met is not None or _is_plain(value) is not None:  # what was met with was plain
                _vary(request, varying, data[varying.line_at : end + 2], value)
                if met is not None:
                    request.credentials, request.met = met.credentials, met
                elif varying.field != OTHER:
                    _identify_again(request, relay)
                    if shows_all and request.credentials is not None:
                        request.met = relay.identify.remember(value, request.credentials)
                return data[:head_end]
    head_end = data.find(b"\r\n\r\n") + 4
    if head_end + body_bytes != len(data) or head_end > relay.limits.head_bytes_max:
        return b""
    return _become_by_lines(request, head, data[:head_end], relay)


def _vary(request: "Request", varying: Varying, line: bytes, value: bytes) -> None:
    """``_change`` where nothing has to be looked for."""
    lines, place = request.lines, varying.place
    was = lines[place]
    lines[place] = line
    if request.forwarded_head:
        request.forwarded_head = varying.in_forwarded(request.forwarded_head, was, value)
    request.head_bytes += len(line) - len(was)
    _take(request, varying.field, value)


def _become_by_lines(request: "Request", head: bytes, new_head: bytes, relay: "Relay") -> bytes:
    before, after = head.split(b"\r\n"), new_head.split(b"\r\n")
    if len(before) != len(after):
        return b""
    changes: list[tuple[int, int, bytes, bytes, bytes]] = []
    for old, new in zip(before, after, strict=True):
        if old != new:
            if len(changes) == CHANGES_MAX:
                return b""
            name, _, was = old.partition(b": ")
            if not new.startswith(b"%b: " % name) or name.lower() in request.connection_options:
                return b""
            field, value = relay.request_fields[name], new[len(name) + 2 :]
            line, instead = b"%b\r\n" % old, b"%b\r\n" % new
            # What was not passed on as it came, or is there twice, or comes to be, has no line of its own.
            if request.lines.count(line) != 1 or instead in request.lines:
                return b""
            if not _may_become(request, field, was, value):
                return b""
            changes.append((field, request.lines.index(line), line, instead, value))
    for change in changes:
        _change(request, *change)
    if any(change[0] in (AUTHORIZATION, API_KEY) for change in changes):
        _identify_again(request, relay)
    request.varying = _varying_in(request, new_head, *changes[0][:2]) if len(changes) == 1 else None
    return new_head


def _varying_in(request: "Request", head: bytes, field: int, place: int) -> Varying | None:
    line = request.lines[place]
    begin = line[: line.find(b": ") + 2]
    if field == REQUEST_ID or sum(one.startswith(begin) for one in request.lines) > 1:
        return None
    return Varying(request, head, field, place, head.find(b"\n%b" % line) + 1)


def _identify_again(request: "Request", relay: "Relay") -> None:
    if request.policy is not None:
        shown = request.authorization, request.api_key, request.cookie
        request.credentials, request.met = relay.identify.credentials_from(*shown), None


def _may_become(request: "Request", field: int, was: bytes, value: bytes) -> bool:
    """Whether the value of a field may be ``value`` where it was ``was``, and the request is otherwise the same."""
    if _is_plain(value) is None:
        return False
    if field == REQUEST_ID:  # of several the last one counts, and a longer one may be too long
        return not request.has_two_request_ids and len(value) == len(was)
    return field in (OTHER, AUTHORIZATION, API_KEY)


def _change(request: "Request", field: int, place: int, line: bytes, instead: bytes, value: bytes) -> None:
    request.lines[place] = instead
    # The gateway's own lines come after those of the request.
    request.forwarded_head = request.forwarded_head.replace(b"\n%b" % line, b"\n%b" % instead, 1)
    request.head_bytes += len(instead) - len(line)
    _take(request, field, value)


def _take(request: "Request", field: int, value: bytes) -> None:
    if field == AUTHORIZATION:
        request.authorization = value
    elif field == API_KEY:
        request.api_key = value
    elif field == REQUEST_ID:
        request.request_id = value
