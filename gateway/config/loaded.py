"""A configuration that was accepted as a whole; and its values alone, which is what a worker is given.

The models that read the settings, their library and the YAML parser are a fifth of what a worker would have in memory,
and it reads nothing. So what travels to it are ``Values``: the same names with the same values, the properties worked
out. Nothing here imports a model.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, cast

from gateway.policy.rules import Rules

if TYPE_CHECKING:
    from gateway.config.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """What was read, and how it came to be."""

    settings: "Settings"
    rules: Rules
    billing_enabled: bool
    warnings: tuple[str, ...]
    files: tuple[Path, ...]  # what was read: a change of any of these, or of their folders, is worth a reload
    other_files: tuple[Path, ...] = ()  # certificates and keys: a change of one is worth a reload, too

    def as_values(self) -> "Loaded":
        """The same without models."""
        return replace(self, settings=cast("Settings", _values_of(self.settings)))


class Values:
    """A section's values by name. Frozen; not shown, as there may be secrets among them."""

    def __init__(self, values: dict[str, object]) -> None:
        self.__dict__.update(values)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"there is no setting {name!r}")

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"the setting {name!r} cannot be changed")


class Secret:
    """What pydantic's SecretStr is to its readers."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def __repr__(self) -> str:
        return "Secret()"

    def get_secret_value(self) -> str:
        return self._value


def _values_of(value: Any) -> Any:
    kind = type(value)
    if hasattr(kind, "model_fields"):
        names = [*kind.model_fields, *_properties_of(kind)]
        return Values({name: _values_of(getattr(value, name)) for name in names})
    if hasattr(kind, "get_secret_value"):
        return Secret(str(value.get_secret_value()))
    if kind in (tuple, list):
        return kind(map(_values_of, value))
    if kind is dict:
        return {str(key): _values_of(item) for key, item in value.items()}
    return str(value) if isinstance(value, str) else value  # a text of a file knows its variables: those stay behind


def _properties_of(kind: type) -> list[str]:
    """Our own, and not those that all models have of their library."""
    ours = [one for one in kind.__mro__ if one.__module__.startswith("gateway.")]
    return [name for one in ours for name, member in vars(one).items() if isinstance(member, property)]
