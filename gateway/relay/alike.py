"""Heads that differ from the last one of their connection in a few plain values: only those are read.

Whoever calls for many (a service with its customers' keys, a proxy whose connections many share) sends the same lines
again and again but for a key, an id or a trace. The parser has read every other byte of such a head. It is not asked
about the new values, so they are of a kind that it passes on as it finds them: visible characters, blanks between them.
Fields that say how a message is framed, routed or passed on must be the same as before; if one is not, and in every
case of doubt, the head is parsed like any other.
"""

import re
from typing import TYPE_CHECKING

from gateway.policy.rules import Policy
from gateway.relay.heads import API_KEY, AUTHORIZATION, OTHER, REQUEST_ID

if TYPE_CHECKING:
    from gateway.relay.relay import Relay
    from gateway.relay.request import Request

_is_plain = re.compile(rb"[!-~](?:[ -~]*[!-~])?").fullmatch


def become(request: "Request", head: bytes, data: bytes, relay: "Relay") -> bytes:
    """Make ``request``, whose head was ``head``, the one at the beginning of ``data``; returns that one's head.

    Empty where that cannot be done, and ``request`` is as it was.
    """
    end = data.find(b"\r\n\r\n") + 4
    if end > relay.limits.head_bytes_max:
        return b""
    before, after = head.split(b"\r\n"), data[:end].split(b"\r\n")
    if len(before) != len(after):
        return b""
    changes = []
    for old, new in zip(before, after, strict=True):
        if old != new:
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
            changes.append((field, line, instead, value))
    for change in changes:
        _change(request, *change)
    if isinstance(request.match, Policy) and any(field in (AUTHORIZATION, API_KEY) for field, _, _, _ in changes):
        shown = request.authorization, request.api_key, request.cookie
        request.credentials = relay.identify.credentials_from(*shown)
    return data[:end]


def _may_become(request: "Request", field: int, was: bytes, value: bytes) -> bool:
    """Whether the value of a field may be ``value`` where it was ``was``, and the request is otherwise the same."""
    if _is_plain(value) is None:
        return False
    if field == REQUEST_ID:  # of several the last one counts, and a longer one may be too long
        return request.request_id == was and len(value) == len(was)
    return field in (OTHER, AUTHORIZATION, API_KEY)


def _change(request: "Request", field: int, line: bytes, instead: bytes, value: bytes) -> None:
    request.lines[request.lines.index(line)] = instead
    # The gateway's own lines come after those of the request.
    request.forwarded_head = request.forwarded_head.replace(b"\n%b" % line, b"\n%b" % instead, 1)
    request.head_bytes += len(instead) - len(line)
    if field == AUTHORIZATION:
        request.authorization = value
    elif field == API_KEY:
        request.api_key = value
    elif field == REQUEST_ID:
        request.request_id = value
