"""What the hosted endpoints answer: JSON with exact amounts, and errors of one shape.

Every error is ``{"error": "<code>", "message": "<a sentence>", …}``. The codes are the contract's; two statuses that
the contract's table leaves out borrow from it: 405 says ``invalid_request``, and a store that is away says
``overloaded`` (503, try again). Only 500 has a code of its own, ``internal_error``.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal

from aiohttp import web

from gateway.policy.money import Cents as Cents  # noqa: PLC0414  what answers are written with

# How much of a wrong value an error repeats: enough to recognise it, too little to fill a log.
FOUND_LENGTH_MAX = 80
# What is known of an account is nobody else's to keep, proxies on the way included.
NO_STORE = {"Cache-Control": "no-store"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing wrong with a request, as ``details`` of the answer lists it."""

    field: str
    found: str
    expected: str


class RefusedError(Exception):
    """A request that is answered with an error; raised anywhere below the error middleware."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        problems: Sequence[Problem] = (),
        headers: Mapping[str, str] | None = None,
        extra: Mapping[str, object] | None = None,
    ) -> None:
        """``extra`` are further keys of the answer, beside error, message and details."""
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.problems = problems
        self.headers = headers or {}
        self.extra = extra or {}


def invalid(*problems: Problem) -> RefusedError:
    """400: the request has a shape that no request has."""
    return RefusedError(400, "invalid_request", _sentence(problems), problems=problems)


def unprocessable(*problems: Problem) -> RefusedError:
    """422: every part is well formed, yet together they cannot be meant."""
    return RefusedError(422, "unprocessable", _sentence(problems), problems=problems)


def store_away() -> RefusedError:
    """503: a store that the answer needs cannot be reached just now."""
    message = "A store that this answer needs cannot be reached just now; try again shortly."
    return RefusedError(503, "overloaded", message, headers={"Retry-After": "1"})


def _sentence(problems: Sequence[Problem]) -> str:
    """All problems in one readable line."""
    parts = (f"{problem.field}: expected {problem.expected}, found {problem.found}" for problem in problems)
    return "; ".join(parts) + "."


def found_text(value: object) -> str:
    """A value out of a request's JSON as an error repeats it: scalars as JSON writes them, the rest by its kind."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    # ASCII only: a lone surrogate or a control character in the request must not reach the answer raw.
    text = str(value) if isinstance(value, Decimal) else json.dumps(value)
    return text if len(text) <= FOUND_LENGTH_MAX else text[:FOUND_LENGTH_MAX] + "…"


def json_text(value: object) -> str:
    """JSON of dicts, sequences, strings, integers, booleans, None and Cents. Floats are refused: money passes here."""
    match value:
        case Cents():
            return str(value)
        case None | bool() | int() | str():
            return json.dumps(value)
        case Mapping():
            return "{" + ", ".join(f"{json.dumps(str(key))}: {json_text(item)}" for key, item in value.items()) + "}"
        case Sequence():
            return "[" + ", ".join(json_text(item) for item in value) + "]"
    raise TypeError(f"{type(value).__name__} has no exact JSON")


def answer(value: object, *, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """A JSON answer."""
    fields = {**NO_STORE, **(headers or {}), "Content-Type": "application/json"}
    return web.Response(body=json_text(value).encode(), status=status, headers=fields)


def refusal(refused: RefusedError) -> web.Response:
    """The answer that a refusal stands for."""
    body: dict[str, object] = {"error": refused.code, "message": refused.message}
    if refused.problems:
        body["details"] = [asdict(problem) for problem in refused.problems]
    body.update(refused.extra)
    return answer(body, status=refused.status, headers=refused.headers)


def failure() -> web.Response:
    """500: a fault of ours; the log says which, the answer does not."""
    return refusal(RefusedError(500, "internal_error", "The gateway could not answer; its log says why."))
