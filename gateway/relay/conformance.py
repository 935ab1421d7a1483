"""What makes a request's head unfit to be passed on, beyond what the parser refuses (RFC 9112 §3.2, RFC 9110 §7.6).

The parser's grammar is a little wider than HTTP's: it takes a fragment, an asterisk for any method, any text as Host. A
server behind this one may read such a thing in another way than it was judged here, so it goes no further.
"""

import re
from functools import lru_cache
from typing import TYPE_CHECKING

from gateway.policy import answers
from gateway.policy.routes import Ambiguous
from gateway.relay import heads

if TYPE_CHECKING:
    from gateway.policy.answers import Answer
    from gateway.policy.routes import RouteTable
    from gateway.policy.rules import Policy
    from gateway.relay.request import Request

# A host as RFC 3986 §3.2.2 has it, but for the comma, which would make a list of it; then a port.
_HOST = re.compile(rb"(?:[A-Za-z0-9._~%!$&'()*+;=-]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]{0,5})?[ \t]*")
_ABSOLUTE_FORM = re.compile(rb"(https?|wss?)://([^/?#]*)", re.IGNORECASE)
# Clients name few hosts; whoever names others pays for a look at each.
_HOSTS_KEPT_MAX = 1024
_SHOWN_CHARACTERS_MAX = 200
_MAX_FORWARDS_DIGITS_MAX = 9


def refusal_of(request: "Request") -> "Answer | None":
    """What the head is refused with; None where it may go on. Settles what the next hop gets instead of what came."""
    host = request.host
    if host is not None and not _is_host(host):
        return _invalid("The Host field names no host.", f"found {_shown(host)}, expected host or host:port")
    target = request.target
    if not target.startswith(b"/"):
        refusal = _refusal_of_target(request)
        if refusal is not None:
            return refusal
    if b"#" in target:
        return _invalid("A request target has no fragment.", f"found {_shown(target)}")
    if request.expects_continue and request.http_1_0:
        # To be ignored (RFC 9110 §10.1.1): the next hop, which gets HTTP/1.1, would answer it.
        request.lines = [line for line in request.lines if line[:7].lower() != b"expect:"]
        request.expects_continue = False
    return None if request.max_forwards is None else _count_forward(request, request.max_forwards)


def match(request: "Request", routes: "RouteTable") -> "Policy | Ambiguous | None":
    """The policy of a request; Ambiguous also where a server that lets fields override its line sees another."""
    found = routes.match(request.method, request.target)
    return _unless_overridden(request, routes, found) if request.overrides else found


def _unless_overridden(
    request: "Request", routes: "RouteTable", judged: "Policy | Ambiguous | None"
) -> "Policy | Ambiguous | None":
    methods = {request.method, *(value.upper() for field, value in request.overrides if field == heads.METHOD_OVERRIDE)}
    targets = {request.target, *(value for field, value in request.overrides if field == heads.TARGET_OVERRIDE)}
    for method in methods:
        for target in targets:
            found = routes.match(method, target)
            if found is not None and found is not judged:
                return found if isinstance(found, Ambiguous) else Ambiguous(found)
    return judged


def _refusal_of_target(request: "Request") -> "Answer | None":
    """Asterisk form and absolute form (RFC 9112 §3.2); other schemes' URLs are nothing that is served here."""
    target = request.target
    if target == b"*":
        if request.method == b"OPTIONS":
            return None
        return _invalid("Only OPTIONS may ask for *.", f"found {_shown(request.method)}")
    absolute = _ABSOLUTE_FORM.match(target)
    if absolute is None:
        return _invalid(
            "This request target is not served here.", f"found {_shown(target)}, expected a path or an http URL"
        )
    authority = absolute[2]
    if not authority or not _is_host(authority):
        return _invalid("The request target names no host.", f"found {_shown(target)}")
    if request.host is None:  # HTTP/1.0
        request.host = authority
        request.lines.append(b"Host: %b\r\n" % authority)
    elif _without_default_port(request.host, absolute[1]) != _without_default_port(authority, absolute[1]):
        return _invalid(
            "The request target and the Host field name different hosts.",
            f"found {_shown(authority)} and {_shown(request.host)}",
        )
    return None


def _without_default_port(host: bytes, scheme: bytes) -> bytes:
    default = b":443" if scheme.lower() in (b"https", b"wss") else b":80"
    return host.strip().lower().removesuffix(default)


def _count_forward(request: "Request", value: bytes) -> "Answer | None":
    """Max-Forwards counts down for the methods that ask about the way itself (RFC 9110 §7.6.2)."""
    value = value.strip()
    if request.method not in (b"OPTIONS", b"TRACE") or not value.isdigit() or len(value) > _MAX_FORWARDS_DIGITS_MAX:
        return None
    left = int(value)
    if left == 0:
        return answers.error(
            501,
            "invalid_request",
            "This request was to go no further than to this gateway, which has no answer to it.",
            details="found Max-Forwards: 0",
        )
    request.max_forwards = None  # it is counted once, though the rules may change under a head that is known
    lines = [line for line in request.lines if line[:13].lower() != b"max-forwards:"]
    request.lines = [*lines, b"Max-Forwards: %d\r\n" % (left - 1)]
    return None


@lru_cache(maxsize=_HOSTS_KEPT_MAX)
def _is_host(value: bytes) -> bool:
    return _HOST.fullmatch(value) is not None


def _shown(value: bytes) -> str:
    return repr(value[:_SHOWN_CHARACTERS_MAX].decode("latin-1"))


def _invalid(message: str, details: str) -> "Answer":
    return answers.error(400, "invalid_request", message, details=details)
