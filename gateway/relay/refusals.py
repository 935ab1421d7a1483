"""What a request is refused with: every answer of the relay's own, but for denials (``policy/answers.py``)."""

from typing import TYPE_CHECKING

from gateway.policy import answers
from gateway.policy.answers import Answer
from gateway.relay import conformance

if TYPE_CHECKING:
    from gateway.policy.routes import Ambiguous
    from gateway.policy.rules import Policy
    from gateway.relay.relay import Limits
    from gateway.relay.request import Request

_REQUEST_ID_CHARACTERS_MAX = 128


def of_head(request: "Request", limits: "Limits") -> Answer | None:
    """What the head alone is refused with (RFC 9112 §3.2, §6.1); None where it may go on."""
    if request.hosts != 1 and not (request.http_1_0 and request.hosts == 0):
        return _invalid("A request needs exactly one Host field.", f"found {request.hosts} of them, expected 1")
    if len(request.target) > limits.target_bytes_max:
        return answers.error(
            414,
            "invalid_request",
            "The request target is too long.",
            details=f"found {len(request.target)} bytes, expected at most {limits.target_bytes_max}",
        )
    if request.head_bytes > limits.head_bytes_max:
        return answers.error(
            431,
            "invalid_request",
            "The header block is too large.",
            details=f"found {request.head_bytes} bytes, expected at most {limits.head_bytes_max}",
        )
    if len(request.lines) > limits.headers_max:
        return answers.error(
            431,
            "invalid_request",
            "There are too many header fields.",
            details=f"found {len(request.lines)}, expected at most {limits.headers_max}",
        )
    if request.http_1_0 and request.chunked:
        return _invalid("HTTP/1.0 has no chunked bodies.", "found Transfer-Encoding: chunked in an HTTP/1.0 request")
    if request.request_id is not None and len(request.request_id) > _REQUEST_ID_CHARACTERS_MAX:
        return _invalid(
            "The X-Request-Id is too long.",
            f"found {len(request.request_id)} characters, expected at most {_REQUEST_ID_CHARACTERS_MAX}",
        )
    return conformance.refusal_of(request)


# --- what is received


def endless_head(request: "Request", limits: "Limits") -> Answer:
    """A head or a trailer that is too large before its end has come."""
    if len(request.target) > limits.target_bytes_max:
        status, what, bytes_max = 414, "The request target is too long.", limits.target_bytes_max
    else:
        status, what, bytes_max = 431, "The header block is too large.", limits.head_bytes_max
    return answers.error(status, "invalid_request", what, details=f"expected at most {bytes_max} bytes")


def not_http(why: str) -> Answer:
    return _invalid("The request is not valid HTTP/1.1.", why)


def unknown_version(version: str) -> Answer:
    return answers.error(
        505,
        "invalid_request",
        "This version of HTTP is not supported.",
        details=f"found {version}, expected HTTP/1.1",
    )


def connect_method() -> Answer:
    return answers.error(501, "invalid_request", "CONNECT is not supported here.")


def body_too_large(body_bytes: int, bytes_max: int, *, is_whole: bool) -> Answer:
    """``is_whole``: the length is what the request said; else it is what had come when it was too much."""
    found = f"found {body_bytes} bytes" if is_whole else f"found {body_bytes} bytes and more to come"
    return answers.error(
        413,
        "invalid_request",
        "The request's body is too large.",
        details=f"{found}, expected at most {bytes_max}",
    )


def late_head() -> Answer:
    return answers.error(408, "invalid_request", "The request's head did not arrive in time.")


def late_body() -> Answer:
    return answers.error(408, "invalid_request", "The request's body did not arrive in time.")


# --- too much at once


def too_many_connections() -> Answer:
    return _overloaded("Too many connections are open.")


def too_many_in_flight() -> Answer:
    return _overloaded("Too many calls are under way. Try again.")


def too_many_waiting() -> Answer:
    return _overloaded("Too many calls are waiting for the upstream.")


# --- what cannot be decided


def ambiguous_target(request: "Request", match: "Ambiguous") -> Answer:
    target = request.target[:200].decode("latin-1")
    return _invalid(
        "This spelling of the path is not accepted.",
        f"found {target!r}, which some servers read as {match.policy.path!r}; send the path itself",
    )


def two_credentials(policy: "Policy") -> Answer:
    return _invalid(
        "A request must not carry two Authorization fields.",
        f"found a credential field twice on a call of policy {policy.name!r}, expected it at most once",
    )


def doubtful_credentials(doubt: str) -> Answer:
    return _invalid("These credentials can be read in more than one way.", doubt)


def bad_idempotency_key(found: str) -> Answer:
    return _invalid("The idempotency key of this request cannot be used.", found)


def not_written_down() -> Answer:
    return _overloaded("What this call costs could not be written down now. Nothing was charged; try again.")


def not_checked_in_time() -> Answer:
    return _overloaded("The gateway could not check this call in time. Nothing was charged; try again.")


# --- the upstream's fault


def upstream_unreachable() -> Answer:
    return answers.error(502, "upstream_unreachable", "The service behind this gateway cannot be reached.")


def upstream_failed(why: str) -> Answer:
    return answers.error(502, "upstream_unreachable", "The service behind this gateway broke off.", details=why)


def upstream_timeout(why: str) -> Answer:
    return answers.error(
        504, "upstream_timeout", "The service behind this gateway did not answer in time.", details=why
    )


def _overloaded(message: str) -> Answer:
    return answers.error(503, "overloaded", message, retry_after_s=1)


def _invalid(message: str, details: str) -> Answer:
    return answers.error(400, "invalid_request", message, details=details)
