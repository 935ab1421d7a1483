"""``${VAR}`` and ``${VAR:-default}`` inside the values of a file.

As in a shell, ``:-`` also stands in for a variable that is set to nothing. ``$$`` is a dollar sign, and so is a ``$``
before anything but ``{`` or ``$``, because SQL has its ``$1``. A default cannot hold a variable or a ``}``.
"""

import re
from collections.abc import Mapping

# Groups: the escape; the name and its default; a "${" that is neither.
_REFERENCE = re.compile(r"(\$\$)|\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-((?:(?!\$\{)[^}])*))?\}|(\$\{)")


class InterpolationError(ValueError):
    """A reference that cannot be resolved; the text says which and why."""


class Variables:
    """The variables a configuration may use, and a record of those that it did use.

    ``fallbacks`` stand in for variables that are missing or blank where the reference has no default of its own.
    """

    def __init__(self, environ: Mapping[str, str], fallbacks: Mapping[str, str]) -> None:
        self._environ = environ
        self._fallbacks = fallbacks
        self.used: dict[str, str] = {}

    def interpolate(self, text: str) -> tuple[str, tuple[str, ...]]:
        """The text with its references resolved, and the names of the variables whose values are in it.

        Raises InterpolationError for a missing variable and for a malformed reference.
        """
        if "$" not in text:
            return text, ()
        names: list[str] = []

        def value_of(match: re.Match[str]) -> str:
            escape, name, default, malformed = match.groups()
            if escape:
                return "$"
            if malformed:
                raise InterpolationError('expected "${NAME}", "${NAME:-default}" or, for a dollar sign, "$$"')
            value = self._value(name, default)
            self.used[name] = value
            if value != default:
                names.append(name)
            return value

        return _REFERENCE.sub(value_of, text), tuple(names)

    def _value(self, name: str, default: str | None) -> str:
        value = self._environ.get(name)
        if default is not None:
            return value or default
        if name in self._fallbacks and (value is None or not value.strip()):
            return self._fallbacks[name]
        if value is None:
            raise InterpolationError(f"environment variable {name} is not set and has no default (${{{name}:-…}})")
        return value
