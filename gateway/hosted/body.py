"""A request's JSON body, read strictly: UTF-8, one object, no key twice, numbers exact.

What Python's parser would let pass or round is refused here, because these numbers are money: NaN and Infinity,
a key given twice, floats (a number with a point becomes a Decimal).
"""

import json
from collections.abc import Collection, Mapping
from decimal import Decimal, InvalidOperation

from aiohttp import web

from gateway.hosted.answers import FOUND_LENGTH_MAX, Problem, RefusedError, found_text, invalid

# A budget is 150 bytes. The bound is what aiohttp may buffer for one request, with room for generous white space.
BODY_BYTES_MAX = 64 * 1024
_JSON_TYPE = "Content-Type application/json"


async def read_json_object(request: web.Request) -> dict[str, object]:
    """The request's body as a JSON object; raises RefusedError (400) for anything else."""
    if "Content-Type" not in request.headers:
        raise invalid(Problem(field="body", found="no Content-Type", expected=_JSON_TYPE))
    if request.content_type != "application/json":
        raise invalid(Problem(field="body", found=f"Content-Type {request.content_type}", expected=_JSON_TYPE))
    if (request.charset or "utf-8").lower() not in ("utf-8", "utf8"):
        raise invalid(Problem(field="body", found=f"charset {request.charset}", expected="UTF-8"))
    encoding = request.headers.get("Content-Encoding", "identity").lower()
    if encoding != "identity":
        raise invalid(Problem(field="body", found=f"Content-Encoding {encoding}", expected="an unencoded body"))
    try:
        raw = await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise too_large() from None
    except web.RequestPayloadError:
        raise invalid(Problem(field="body", found="a broken transfer", expected="a whole body")) from None
    return parse_json_object(raw)


def too_large() -> RefusedError:
    """400: more than BODY_BYTES_MAX."""
    return invalid(Problem(field="body", found="more", expected=f"at most {BODY_BYTES_MAX} bytes"))


def parse_json_object(raw: bytes) -> dict[str, object]:
    """``raw`` as a JSON object (RFC 8259), numbers as int or Decimal; raises RefusedError (400) for anything else."""
    if not raw.strip():
        raise invalid(Problem(field="body", found="nothing", expected="a JSON object"))
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        found = f"byte 0x{raw[error.start]:02x} at offset {error.start}"
        raise invalid(Problem(field="body", found=found, expected="UTF-8")) from None
    try:
        value = json.loads(
            text, parse_float=_decimal, parse_int=_integer, parse_constant=_no_constant, object_pairs_hook=_object
        )
    except json.JSONDecodeError as error:
        found = f"an error at line {error.lineno}, column {error.colno} ({error.msg})"
        raise invalid(Problem(field="body", found=found, expected="JSON")) from None
    except RecursionError:
        raise invalid(Problem(field="body", found="deep nesting", expected="a flat JSON object")) from None
    if not isinstance(value, dict):
        raise invalid(Problem(field="body", found=found_text(value), expected="a JSON object"))
    return value


def unknown_keys(value: Mapping[str, object], known: Collection[str]) -> list[Problem]:
    """One problem for each key of an object that has no business there."""
    # Half a surrogate pair: JSON can write it, and no text can hold it.
    broken = [key for key in value if not is_text(key)]
    if broken:
        return [Problem(field="body", found=found_text(broken[0]), expected="keys that are Unicode text")]
    expected = f"no key but {', '.join(known)}"
    return [
        Problem(field=found_text(key).strip('"'), found=found_text(item), expected=expected)
        for key, item in value.items()
        if key not in known
    ]


def is_text(value: str) -> bool:
    """Whether it has no half of a surrogate pair in it."""
    return value.isascii() or not any("\ud800" <= character <= "\udfff" for character in value)


def _integer(digits: str) -> int | Decimal:
    # Python refuses to make an int of very many digits (quadratic time); a Decimal of them is cheap and as exact.
    return int(digits) if len(digits) <= FOUND_LENGTH_MAX else Decimal(digits)


def _decimal(text: str) -> Decimal:
    try:
        return Decimal(text)
    except InvalidOperation:
        raise invalid(Problem(field="body", found=text[:FOUND_LENGTH_MAX], expected="numbers of a sane size")) from None


def _no_constant(name: str) -> object:
    raise invalid(Problem(field="body", found=name, expected="finite numbers"))


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    value = dict(pairs)
    if len(value) < len(pairs):
        seen: set[str] = set()
        repeated = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise invalid(Problem(field="body", found=f"{found_text(repeated)} twice", expected="each key once"))
    return value
