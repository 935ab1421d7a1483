"""The kinds of value a configuration has, each read from its text with one message for everything that is wrong.

Values arrive as text, from the file or from an environment variable in it; models built in Python may pass numbers.
"""

import re
from base64 import b64decode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, cast
from urllib.parse import parse_qsl, urlsplit

from pydantic import BeforeValidator
from pydantic_core import PydanticCustomError

from gateway.config.errors import found, near_miss
from gateway.policy.money import AmountError, microcents_from_cents, price_from_cents
from gateway.policy.periods import time_zone_names

# Stripe's keys have about 110 characters; room for several webhook secrets.
_SECRET_LENGTH_MAX = 1000
_KEY_CHARACTERS = re.compile(r"[!-~]*")
_NUMBER = re.compile(r"-?[0-9]{1,20}(?:\.[0-9]{1,20})?")
_WHOLE = re.compile(r"[+-]?[0-9]{1,20}")
_QUANTITY = re.compile(r"([0-9]{1,15})([A-Za-z]+)")
_DURATION_UNITS_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_SIZE_UNITS_BYTES = {"B": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}

# Standard Webhooks 1.0, "Signature scheme".
_SIGNING_PREFIX = "whsec_"
# Of a price by the unit: a unit may be a byte, and a terabyte of them still costs something.
_PRICE_DECIMALS_MAX = 18

Reader = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Kind(BeforeValidator):
    """A kind of value: how it is read, and the JSON Schema that tells editors what may stand there."""

    schema: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __get_pydantic_json_schema__(self, _core_schema: object, _handler: object) -> dict[str, Any]:
        return dict(self.schema)


def or_variable(pattern: str) -> dict[str, str]:
    """Text of that pattern as a whole, or with a variable in it, which only the environment can judge."""
    return {"type": "string", "pattern": rf"^(?:{pattern})$|\$\{{"}


def expected(what: str, value: object, hint: str = "") -> PydanticCustomError:
    """The error "expected …, found …"; ``hint`` follows it."""
    return mistake(f"expected {what}, found {found(value)}{hint}")


def mistake(message: str) -> PydanticCustomError:
    """An error that says ``message`` and nothing else."""
    return PydanticCustomError("value", "{message}", {"message": message})


def _text_of(value: object) -> str | None:
    """The text of a scalar; None where there is none to read."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    return str(value).strip()


def reader_of(validator: BeforeValidator) -> Reader:
    """The function inside, for kinds of value made from others."""
    return cast(Reader, validator.func)


def whole(minimum: int, maximum: int) -> Kind:
    """An integer of ``minimum`` to ``maximum``."""
    what = f"an integer of {minimum} or more"

    def read(value: object) -> int:
        text = _text_of(value)
        if text is None or _WHOLE.fullmatch(text) is None or int(text) < minimum:
            raise expected(what, value)
        if int(text) > maximum:
            raise expected(f"an integer of at most {maximum}", value)
        return int(text)

    number = {"type": "integer", "minimum": minimum, "maximum": maximum}
    return Kind(read, schema={"anyOf": [number, or_variable("[+-]?[0-9]+")]})


def months_kept() -> Kind:
    """How many months of the past are kept: 0 is all, 1 is refused."""
    read = reader_of(whole(0, 1200))

    def read_kept(value: object) -> int:
        months: int = read(value)
        if months == 1:
            raise expected("0, which keeps all, or an integer of 2 or more", value)
        return months

    return Kind(read_kept, schema=whole(0, 1200).schema)


def duration_ms(minimum: str, maximum: str) -> Kind:
    """A duration such as ``250ms`` or ``1h``, as whole milliseconds."""
    low_ms, high_ms = _quantity(minimum, _DURATION_UNITS_MS), _quantity(maximum, _DURATION_UNITS_MS)

    def read(value: object) -> int:
        text = _text_of(value)
        amount_ms = None if text is None else _quantity(text, _DURATION_UNITS_MS)
        if amount_ms is None:
            raise expected("a duration such as 250ms, 5s, 1m, 1h or 1d", value)
        if low_ms is None or high_ms is None or not low_ms <= amount_ms <= high_ms:
            raise expected(f"a duration of {minimum} to {maximum}", value)
        return amount_ms

    return Kind(
        read, schema={**or_variable("[0-9]{1,15}(?:ms|s|m|h|d)"), "examples": ["250ms", "5s", "1m", "1h", "1d"]}
    )


def duration_s(minimum: str, maximum: str) -> Kind:
    """A duration such as ``250ms`` or ``1h``, as seconds; a number is taken for seconds."""
    read_ms = reader_of(duration_ms(minimum, maximum))

    def read(value: object) -> float:
        if isinstance(value, int | float) and not isinstance(value, bool):
            value = f"{round(value * 1000)}ms"
        milliseconds: int = read_ms(value)
        return milliseconds / 1000

    return Kind(read, schema={})


def size_bytes(minimum: str, maximum: str) -> Kind:
    """A size such as ``64KiB``, as bytes; a number is taken for bytes."""
    low_bytes, high_bytes = _quantity(minimum, _SIZE_UNITS_BYTES), _quantity(maximum, _SIZE_UNITS_BYTES)

    def read(value: object) -> int:
        text = f"{value}B" if isinstance(value, int) and not isinstance(value, bool) else _text_of(value)
        amount_bytes = None if text is None else _quantity(text, _SIZE_UNITS_BYTES)
        if amount_bytes is None:
            raise expected("a size such as 512B, 64KiB or 1MiB", value)
        if low_bytes is None or high_bytes is None or not low_bytes <= amount_bytes <= high_bytes:
            raise expected(f"a size of {minimum} to {maximum}", value)
        return amount_bytes

    return Kind(read, schema=or_variable("[0-9]{1,15}(?:B|KiB|MiB|GiB)"))


def _quantity(text: str, units: dict[str, int]) -> int | None:
    match = _QUANTITY.fullmatch(text)
    if match is None or match[2] not in units:
        return None
    return int(match[1]) * units[match[2]]


def text(what: str, pattern: str = r".+", length_max: int = 255) -> Kind:
    """Text that matches ``pattern`` as a whole; ``what`` says it in words."""
    matcher = re.compile(pattern, re.DOTALL)

    def read(value: object) -> str:
        stripped = _text_of(value)
        if stripped is None or len(stripped) > length_max or matcher.fullmatch(stripped) is None:
            raise expected(what, value)
        return stripped

    return Kind(read, schema=or_variable(pattern))


def secret(what: str, refused_prefixes: Mapping[str, str], *, length_min: int = 1) -> Kind:
    """Text without spaces that is never shown, or None where it is blank.

    ``refused_prefixes`` are beginnings by which another kind of secret is told, and what that kind is called.
    """

    def read(value: object) -> str | None:
        if value is None or value == "":
            return None
        stripped = _text_of(value)
        if stripped is None:
            raise expected(what, value)
        for prefix, kind in refused_prefixes.items():
            if stripped.startswith(prefix):
                raise mistake(f"expected {what}, found {kind} ({prefix}…)")
        if (
            len(stripped) > _SECRET_LENGTH_MAX
            or not stripped.isascii()
            or not stripped.isprintable()
            or " " in stripped
        ):
            raise mistake(f"expected {what}, found one with spaces or other characters that no key has")
        if 0 < len(stripped) < length_min:
            raise mistake(f"expected {what}, found one of {len(stripped)}")
        return stripped or None

    return Kind(read, schema={})


def url(what: str, *schemes: str, host_only: bool = False) -> Kind:
    """A URL of one of ``schemes``; with ``host_only``, one that has a host, maybe a port, and nothing else."""

    def read(value: object) -> str:
        address = value.strip() if isinstance(value, str) else ""
        try:
            parts = urlsplit(address)
            is_known = parts.scheme in schemes and "://" in address and parts.port != 0
        except ValueError:
            raise expected(what, value) from None
        extra = parts.path.strip("/") or parts.query or parts.fragment or "@" in parts.netloc
        if not is_known or (host_only and (not parts.hostname or extra)):
            raise expected(what, value)
        return address

    return Kind(read, schema={})


def secret_url(what: str, *schemes: str) -> Kind:
    """A URL with a host whose path or query may be a secret, so that it is never shown."""
    read_url = reader_of(url(what, *schemes))

    def read(value: object) -> object:
        address = value.strip() if isinstance(value, str) else ""
        try:
            if address.isprintable() and " " not in address and urlsplit(address).hostname:
                return read_url(address)
        except (ValueError, PydanticCustomError):
            pass  # the message would show it
        raise mistake(f"expected {what}, found {'a value that is not shown' if address else found(value)}")

    return Kind(read, schema={})


def database_url() -> Kind:
    """Postgres' address. A wrong word for the gateway's own parameter in it is not taken for false."""
    read_url = reader_of(url("a URL such as postgresql://user@host/database", "postgres", "postgresql"))

    def read(value: object) -> str:
        address: str = read_url(value)
        for name, said in parse_qsl(urlsplit(address).query, keep_blank_values=True):
            if name == "pgbouncer" and said not in ("true", "false"):
                raise expected("pgbouncer=true or pgbouncer=false, if either", f"pgbouncer={said}")
        return address

    return Kind(read, schema={})


def optional(reader: BeforeValidator) -> Kind:
    """The same, or None for a value that is missing or blank."""
    read_present = reader_of(reader)

    def read(value: object) -> object:
        return None if value is None or _text_of(value) == "" else read_present(value)

    schema = reader.schema if isinstance(reader, Kind) else {}
    return Kind(read, schema={"anyOf": [schema, {"type": "null"}, {"const": ""}]})


def choice(*options: str) -> Kind:
    """One of a few words."""
    what = f"one of {', '.join(options)}" if len(options) > 1 else options[0]

    def read(value: object) -> str:
        word = _text_of(value)
        if word not in options:
            raise expected(what, value, near_miss(word, options) if word else "")
        return word

    return Kind(read, schema={"anyOf": [{"enum": list(options)}, {"type": "string", "pattern": r"\$\{"}]})


def flag() -> Kind:
    """``true`` or ``false``."""

    def read(value: object) -> bool:
        if isinstance(value, bool):
            return value
        word = _text_of(value)
        if word not in ("true", "false"):
            raise expected("true or false", value)
        return word == "true"

    return Kind(read, schema={"anyOf": [{"type": "boolean"}, or_variable("true|false")]})


def cents() -> Kind:
    """An amount of cents, as microcents; exact, because the text is read and no float ever made."""

    def read(value: object) -> int:
        amount = _text_of(value) if isinstance(value, str | int) else None
        if amount is None:
            raise expected("cents as a number", value)
        try:
            return microcents_from_cents(amount)
        except AmountError as error:
            raise expected(error.expected.removeprefix("expected "), value) from None

    return Kind(
        read, schema={"anyOf": [{"type": "number", "minimum": 0}, or_variable(r"\+?[0-9]+(?:\.[0-9]{1,6}0*)?")]}
    )


def price() -> Kind:
    """Cents for one unit, finer than any amount may be: exact, because the text is read and no float ever made."""

    def read(value: object) -> Decimal:
        amount = str(value) if isinstance(value, Decimal) else _text_of(value) if isinstance(value, str | int) else None
        try:
            price_from_cents(amount or "")
        except AmountError as error:
            raise expected(error.expected.removeprefix("expected "), value) from None
        exact = Decimal(amount or "")
        if -int(exact.as_tuple().exponent) > _PRICE_DECIMALS_MAX:
            raise expected(f"at most {_PRICE_DECIMALS_MAX} decimals", value)
        return exact

    return Kind(read, schema={"anyOf": [{"type": "number", "minimum": 0}, or_variable(r"\+?[0-9]+(?:\.[0-9]{1,18})?")]})


def statuses() -> Kind:
    """A list of HTTP statuses."""
    read_status = reader_of(whole(100, 599))

    def read(value: object) -> frozenset[int]:
        if not isinstance(value, list | tuple | frozenset) or not value:
            raise expected("a list of statuses such as [200, 201]", value)
        return frozenset(read_status(status) for status in value)

    return Kind(read, schema={"type": "array", "minItems": 1, "items": whole(100, 599).schema})


def percents(count_max: int) -> Kind:
    """A list of different whole percents, 1 to 100, in ascending order once read."""
    read_percent = reader_of(whole(1, 100))

    def read(value: object) -> tuple[int, ...]:
        listed = [read_percent(percent) for percent in value] if isinstance(value, list | tuple) else None
        if listed is None or len(listed) > count_max or len(set(listed)) < len(listed):
            raise expected(f"a list of at most {count_max} different percents such as [50, 80, 100]", value)
        return tuple(sorted(listed))

    return Kind(
        read, schema={"type": "array", "maxItems": count_max, "uniqueItems": True, "items": whole(1, 100).schema}
    )


def signing_secrets() -> Kind:
    """Secrets of Standard Webhooks, ``whsec_`` and base64 of 24 to 64 bytes; several separated by commas. Or None."""
    what = "whsec_ and the base64 of 24 to 64 random bytes (several separated by commas)"
    read_text = reader_of(secret(what, {"sk_": "a Stripe secret key", "pk_": "a Stripe publishable key"}))

    def read(value: object) -> str | None:
        stripped: str | None = read_text(value)
        for one in (stripped or "").split(",") if stripped else ():
            try:
                key = b64decode(one.removeprefix(_SIGNING_PREFIX), validate=True)
            except ValueError:
                key = b""
            if not one.startswith(_SIGNING_PREFIX) or not 24 <= len(key) <= 64:
                raise mistake(f"expected {what}, found another text")
        return stripped

    return Kind(read, schema={})


def share() -> Kind:
    """A share of something, from 0 to 1."""

    def read(value: object) -> float:
        text = _text_of(value) if isinstance(value, str) else str(value)
        if text is None or _NUMBER.fullmatch(text) is None or not 0 <= float(text) <= 1:
            raise expected("a share from 0 to 1", value)
        return float(text)

    return Kind(read, schema={"anyOf": [{"type": "number", "minimum": 0, "maximum": 1}, or_variable("[0-9.]+")]})


def time_zone() -> Kind:
    """An IANA time zone name."""

    def read(value: object) -> str:
        name = _text_of(value)
        if name is None or name not in time_zone_names():
            hint = near_miss(name, sorted(time_zone_names())) if name else ""
            raise expected("an IANA time zone such as Europe/Berlin", value, hint)
        return name

    return Kind(read, schema={"type": "string", "examples": ["UTC", "Europe/Berlin", "Asia/Tokyo"]})


def one_of_words(words: Sequence[str]) -> Kind:
    """One of ``words``, as its place in them, counted from 1."""
    read_word = reader_of(choice(*words))

    def read(value: object) -> int:
        if isinstance(value, int):
            return value
        return words.index(read_word(value)) + 1

    return Kind(read, schema=choice(*words).schema)
