"""The gateway's own answers: every error is JSON, ``{"error": code, "message": a sentence, …}``."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime

from gateway.policy import rate_limit_fields
from gateway.policy.money import cents_text
from gateway.policy.rate_limit_fields import whole_seconds
from gateway.policy.verdicts import BudgetExceeded, Denial, RateLimited, StoreUnavailable

_STATUS_TEXT = {
    400: b"Bad Request",
    402: b"Payment Required",
    408: b"Request Timeout",
    413: b"Content Too Large",
    414: b"URI Too Long",
    417: b"Expectation Failed",
    429: b"Too Many Requests",
    431: b"Request Header Fields Too Large",
    500: b"Internal Server Error",
    501: b"Not Implemented",
    502: b"Bad Gateway",
    503: b"Service Unavailable",
    504: b"Gateway Timeout",
    505: b"HTTP Version Not Supported",
}


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer of the gateway's own; ``fields`` are further header lines, each ending in CRLF."""

    status: int
    body: bytes
    fields: bytes = b""

    def head(self, connection: bytes = b"") -> bytes:
        """Status line and header block; ``connection`` is a ``Connection: …`` line, and what else there is to say."""
        return b"HTTP/1.1 %d %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n%b%b\r\n" % (
            self.status,
            _STATUS_TEXT[self.status],
            len(self.body),
            self.fields,
            connection,
        )


def error(
    status: int, code: str, message: str, *, details: str | None = None, retry_after_s: int | None = None
) -> Answer:
    """An error with one of the codes that README lists; ``details`` says what was found and what was expected."""
    body: dict[str, object] = {"error": code, "message": message}
    if details is not None:
        body["details"] = details
    fields = b"" if retry_after_s is None else b"Retry-After: %d\r\n" % retry_after_s
    return Answer(status, json.dumps(body).encode(), fields)


def denial(verdict: Denial, rate_limit_headers: str = "none") -> Answer:
    """The answer to a call that admission refused; ``rate_limit_headers`` is one of rules.RATE_LIMIT_HEADERS."""
    if isinstance(verdict, BudgetExceeded):
        return _budget_exceeded(verdict)
    if isinstance(verdict, RateLimited):
        return _rate_limited(verdict, rate_limit_headers)
    return _store_unavailable(verdict)


def _budget_exceeded(verdict: BudgetExceeded) -> Answer:
    resets_at, fields, until = "null", b"", "It does not reset by itself."
    if verdict.resets_ms is not None:
        resets_at = json.dumps(instant_text(verdict.resets_ms))
        fields = b"Retry-After: %d\r\n" % whole_seconds(verdict.resets_ms - verdict.now_ms)
        until = f"It resets at {instant_text(verdict.resets_ms)}."
    limit, used, cost = map(cents_text, (verdict.limit_microcents, verdict.used_microcents, verdict.cost_microcents))
    message = f"The {verdict.period} budget of {limit} cents is spent: {used} used, and this call costs {cost}. {until}"
    # Amounts are written as text, not through a float, so that every cent is exact.
    body = (
        f'{{"error": "budget_exceeded", "message": {json.dumps(message)}, "period": "{verdict.period}", '
        f'"limit_cents": {limit}, "used_cents": {used}, "cost_cents": {cost}, "resets_at": {resets_at}}}'
    )
    return Answer(402, body.encode(), fields)


def _rate_limited(verdict: RateLimited, rate_limit_headers: str) -> Answer:
    retry_after = whole_seconds(verdict.retry_after_ms)
    window_seconds = verdict.window_ms / 1000
    again = f"Try again in {retry_after} seconds."
    if not verdict.window_ms:
        rule = f"{verdict.limit} calls at once"
    elif verdict.weight == 1:
        rule = f"{verdict.limit} calls in {window_seconds:g} seconds"
    else:
        rule = f"{verdict.limit} units in {window_seconds:g} seconds, and this call weighs {verdict.weight}"
        if verdict.never_passes:
            again = "That is more than it ever lets pass."
    body = {
        "error": "rate_limited",
        "message": f"The limit {verdict.limit_name!r} allows {rule}. {again}",
        "policy": verdict.policy,
        "limit": verdict.limit,
        "window_seconds": int(window_seconds) if window_seconds.is_integer() else window_seconds,
        "retry_after": retry_after,
    }
    if verdict.weight != 1:
        body["weight"] = verdict.weight
    fields = f"Retry-After: {retry_after}\r\n{rate_limit_fields.of_refusal(verdict, rate_limit_headers)}"
    return Answer(429, json.dumps(body).encode(), fields.encode())


def _store_unavailable(verdict: StoreUnavailable) -> Answer:
    return error(
        503,
        "overloaded",
        "The gateway cannot check this call's limits right now. Nothing was charged; try again.",
        retry_after_s=whole_seconds(verdict.retry_after_ms),
    )


def instant_text(at_ms: int) -> str:
    """RFC 3339 in UTC; fractions of a second only where there are any."""
    instant = datetime.fromtimestamp(at_ms / 1000, UTC)
    return instant.isoformat(timespec="milliseconds" if at_ms % 1000 else "seconds").replace("+00:00", "Z")
