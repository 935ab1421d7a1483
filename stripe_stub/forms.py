"""Parameters as Stripe takes them: form-encoded, nested by brackets (``line_items[0][price]=…``, ``expand[]=…``)."""

import re
from collections.abc import Collection, Mapping
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from stripe_stub.errors import ApiError, invalid, missing_parameter

FIELDS_MAX = 1000
DEPTH_MAX = 6
TEXT_CHARS_MAX = 5000
METADATA_KEYS_MAX, METADATA_KEY_CHARS_MAX, METADATA_VALUE_CHARS_MAX = 50, 40, 500

_KEY = re.compile(r"([^\[\]]+)((?:\[[^\[\]]*\])*)")


def parse_form(text: str) -> dict[str, Any]:
    """Nested mappings, lists and texts. Raises a 400 for what has no such form."""
    try:
        pairs = parse_qsl(text, keep_blank_values=True, max_num_fields=FIELDS_MAX, errors="strict")
    except ValueError:
        raise invalid("The parameters are not valid form data in UTF-8, or too many.") from None
    nested: dict[str, Any] = {}
    for key, value in pairs:
        found = _KEY.fullmatch(key)
        parts = [found[1], *re.findall(r"\[([^\[\]]*)\]", found[2])] if found else []
        if not parts or len(parts) > DEPTH_MAX:
            raise invalid(f"Invalid parameter name: {key}", param=key)
        at = nested
        for part in parts[:-1]:
            at = at.setdefault(part or str(len(at)), {})
            if not isinstance(at, dict):
                raise invalid(f"Invalid object: {key}", param=key)
        at[parts[-1] or str(len(at))] = value
    return {name: _lists(value) for name, value in nested.items()}


def _lists(value: Any) -> Any:
    """Mappings whose keys are all numbers are lists."""
    if not isinstance(value, dict):
        return value
    if all(key.isascii() and key.isdigit() for key in value):
        return [_lists(value[key]) for key in sorted(value, key=int)]
    return {key: _lists(inner) for key, inner in value.items()}


class Parameters:
    """Reads one level of the parameters; what has the wrong form is a 400 that names it as Stripe does."""

    def __init__(self, values: Mapping[str, Any], within: str = "") -> None:
        self._values = values
        self._within = within

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def names(self) -> Collection[str]:
        return self._values.keys()

    def is_text(self, name: str) -> bool:
        return isinstance(self._values.get(name), str)

    def path(self, name: str) -> str:
        return f"{self._within}[{name}]" if self._within else name

    def refuse_unknown(self, known: Collection[str]) -> None:
        for name in self._values:
            if name not in known:
                path = self.path(name)
                raise invalid(f"Received unknown parameter: {path}", code="parameter_unknown", param=path)

    def text(self, name: str, *, chars_max: int = TEXT_CHARS_MAX) -> str | None:
        """None where it is missing or blank: Stripe takes a blank one as `unset`."""
        value = self._values.get(name, "")
        path = self.path(name)
        if not isinstance(value, str):
            raise invalid(f"Invalid string: {path}", param=path)
        if len(value) > chars_max:
            raise invalid(
                f"Invalid string: {value[:10]}…; must be at most {chars_max} characters",
                code="parameter_invalid_string_too_long",
                param=path,
            )
        return value or None

    def needed(self, name: str) -> str:
        value = self.text(name)
        if value is None:
            raise missing_parameter(self.path(name))
        return value

    def whole(self, name: str, *, low: int = 0, high: int = 2**53) -> int | None:
        text = self.text(name)
        if text is None:
            return None
        path = self.path(name)
        if not re.fullmatch(r"-?\d{1,16}", text, re.ASCII):
            raise invalid(f"Invalid integer: {text}", code="parameter_invalid_integer", param=path)
        if not low <= int(text) <= high:
            raise invalid(
                f"Invalid integer: {text}; must be {low} to {high}.", code="parameter_invalid_integer", param=path
            )
        return int(text)

    def flag(self, name: str) -> bool | None:
        text = self.text(name)
        if text is None:
            return None
        if text not in {"true", "false", "1", "0"}:
            raise invalid(f"Invalid boolean: {text}", param=self.path(name))
        return text in {"true", "1"}

    def choice(self, name: str, options: Collection[str]) -> str | None:
        text = self.text(name)
        if text is not None and text not in options:
            raise invalid(f"Invalid {self.path(name)}: must be one of {', '.join(options)}", param=self.path(name))
        return text

    def address(self, name: str) -> str | None:
        """An address that a browser may be sent to."""
        text = self.text(name)
        if text is None:
            return None
        try:
            parts = urlsplit(text)
            usable = parts.scheme in {"http", "https"} and bool(parts.hostname)
        except ValueError:
            usable = False
        if not usable:
            raise invalid(f"Not a valid URL: {text}", code="url_invalid", param=self.path(name))
        return text

    def nested(self, name: str) -> "Parameters":
        value = self._values.get(name) or {}
        if not isinstance(value, dict):
            raise invalid(f"Invalid object: {self.path(name)}", param=self.path(name))
        return Parameters(value, self.path(name))

    def rows(self, name: str) -> list["Parameters"]:
        value = self._values.get(name) or []
        if not isinstance(value, list) or not all(isinstance(row, dict) for row in value):
            raise invalid(f"Invalid array: {self.path(name)}", param=self.path(name))
        return [Parameters(row, f"{self.path(name)}[{number}]") for number, row in enumerate(value)]

    def texts(self, name: str) -> list[str]:
        value = self._values.get(name) or []
        if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
            raise invalid(f"Invalid array: {self.path(name)}", param=self.path(name))
        return value

    def mapping(self, name: str) -> dict[str, str]:
        value = self._values.get(name) or {}
        if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
            raise invalid(f"Invalid object: {self.path(name)}", param=self.path(name))
        return value

    def metadata(self, name: str = "metadata", old: Mapping[str, str] | None = None) -> dict[str, str]:
        """`old` with the changes made; a blank value takes its key away, a blank `metadata` takes all."""
        if self._values.get(name) == "":
            return {}
        merged = {**(old or {}), **self.mapping(name)}
        merged = {key: value for key, value in merged.items() if value}
        for key, value in merged.items():
            if len(key) > METADATA_KEY_CHARS_MAX or len(value) > METADATA_VALUE_CHARS_MAX:
                raise _too_much_metadata(self.path(name))
        if len(merged) > METADATA_KEYS_MAX:
            raise _too_much_metadata(self.path(name))
        return merged


def _too_much_metadata(path: str) -> ApiError:
    return invalid(
        f"Metadata can have {METADATA_KEYS_MAX} keys of {METADATA_KEY_CHARS_MAX} and values of "
        f"{METADATA_VALUE_CHARS_MAX} characters.",
        param=path,
    )
