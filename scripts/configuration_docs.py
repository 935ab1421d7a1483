"""``./dev docs``: docs/configuration.md, every key of config.yaml and policies/*.yaml, made of the models.

Keys, defaults and what may stand there are the models' own: what a reader expects is what it says when it refuses. The
environment variable and what a setting is for are config.yaml's, whose comments are beside the keys. A test holds that
the file in the repository is what this makes.
"""

import re
import sys
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BeforeValidator, SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError, PydanticUndefined

from gateway.config.models import Section
from gateway.config.policies import PlanSpec, PolicySpec
from gateway.config.rate_limits import WeightSpec
from gateway.config.scalars import Kind, reader_of
from gateway.config.settings import Settings
from gateway.policy.money import cents_text
from gateway.policy.periods import WEEKDAYS

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "docs" / "configuration.md"
_KEY = re.compile(r"^( *)(?:- )?([a-z_]+):(?: +(.*?))?$")
_VARIABLE = re.compile(r"\$\{([A-Z_]+)(?::-[^}]*)?\}")
# Beyond every bound, in each unit: the refusal says the bounds.
_TOO_MUCH = {"a duration such as": "999999999999d", "a size such as": "999999999999GiB"}
_HEAD = """\
# Configuration

Made by `./dev docs` of the models that read the files; what is changed here by hand is lost.

`config.yaml` is all but policies and plans; `policies/*.yaml` are those ([policies.md](policies.md) explains them).
`${VAR}` in a value is an environment variable, `${VAR:-default}` one with a default for when it is missing or blank;
`$$` is a dollar sign. The variables named here are those of the shipped `config.yaml`. What is required within a part
that may be left out is required where that part is there. `castgate check` says what the files come to, or every
mistake in them at once.
"""
_DURATIONS = (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1))
_SIZES = (("GiB", 1024**3), ("MiB", 1024**2), ("KiB", 1024), ("B", 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What config.yaml says of one key."""

    variable: str = ""
    purpose: str = ""


def document() -> str:
    """The whole file."""
    told = dict(_told((ROOT / "config.yaml").read_text()))
    parts = [_HEAD, "## config.yaml\n", _table(_top(told))]
    for name, field in Settings.model_fields.items():
        section = _section_of(field)
        if section is not None:
            purpose = told.get((name,), Told()).purpose or (section.__doc__ or "").partition("\n")[0].replace("``", "`")
            parts += [f"### {name}\n", f"{purpose}\n", _table(_rows(section, (name,), told))]
    parts += ["## policies/*.yaml\n", "### policies\n", "A list; each of its entries is one route's rules.\n"]
    parts += [_table(_rows(PolicySpec, (), {}))]
    parts += ["### plans\n", "By the plan's name.\n", _table(_rows(PlanSpec, (), {}))]
    return "\n".join(parts)


def _table(rows: Iterator[tuple[str, str, str, str, str]]) -> str:
    listed = list(rows)
    has_variables = any(variable for _, _, variable, _, _ in listed)
    heads = ["key", "default", *(["variable"] if has_variables else []), "what may stand there", "what it is for"]
    lines = [heads, ["---"] * len(heads)]
    for key, default, variable, words, purpose in listed:
        lines.append([f"`{key}`", default, *([variable] if has_variables else []), words, purpose])
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def _top(told: Mapping[tuple[str, ...], Told]) -> Iterator[tuple[str, str, str, str, str]]:
    for name, field in Settings.model_fields.items():
        if _section_of(field) is None:
            yield _row((field.alias or name,), field, told)


def _rows(
    section: type[Section], path: tuple[str, ...], told: Mapping[tuple[str, ...], Told], below: str = ""
) -> Iterator[tuple[str, str, str, str, str]]:
    """Its keys, and those of the sections in it under their whole names."""
    for name, field in section.model_fields.items():
        key = field.alias or name
        inner = _section_of(field)
        if inner is None:
            found = _row((*path, key), field, told)
            yield f"{below}{key}", *found[1:]
            continue
        if key == "sum":
            yield f"{below}{key}", "none", "", "a list of the parts above, each alone", field.description or ""
            continue
        if isinstance(field.default, WeightSpec):
            words = "an integer of 1 or more, or a mapping"
            yield f"{below}{key}", f"`{field.default.default}`", "", words, field.description or ""
            yield from _rows(inner, (*path, key), told, f"{below}{key}.")
            continue
        dots = "[]." if get_origin(_bare(field.annotation)) is tuple else ".<name>." if _is_mapping(field) else "."
        if field.description:
            yield (
                f"{below}{key}",
                "none",
                "",
                {".": "a mapping", "[].": "a list"}.get(dots, "by name"),
                field.description,
            )
        yield from _rows(inner, (*path, key), told, f"{below}{key}{dots}")


def _row(
    path: tuple[str, ...], field: FieldInfo, told: Mapping[tuple[str, ...], Told]
) -> tuple[str, str, str, str, str]:
    own = told.get(path, Told())
    variable = f"`{own.variable}`" if own.variable else ""
    return path[-1], _default(path[-1], field), variable, _words(field), field.description or own.purpose


# --- what the models say


def _bare(annotation: Any) -> Any:
    """Without ``Annotated`` and ``| None``."""
    while get_origin(annotation) in (Annotated, Union, types.UnionType):
        annotation = next(one for one in get_args(annotation) if one is not type(None))
    return annotation


def _is_mapping(field: FieldInfo) -> bool:
    return get_origin(_bare(field.annotation)) is dict


def _section_of(field: FieldInfo) -> type[Section] | None:
    """The section that stands there, alone, in a list, or by name."""
    found = _bare(field.annotation)
    if get_origin(found) is tuple:
        found = _bare(get_args(found)[0])
    elif get_origin(found) is dict:
        found = _bare(get_args(found)[1])
    return found if isinstance(found, type) and issubclass(found, Section) else None


def _default(key: str, field: FieldInfo) -> str:
    if field.is_required():
        return "**required**"
    value = field.default
    if value is PydanticUndefined:
        return "auto" if key == "workers" else "none"
    return _shown(value, field)


def _shown(value: Any, field: FieldInfo) -> str:
    words = _reading(field)
    if value is None or value in ("", (), SecretStr("")):
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if words.startswith("a duration"):
        return f"`{_in_units(round(value * 1000), _DURATIONS)}`"
    if words.startswith("a size"):
        return f"`{_in_units(value, _SIZES)}`"
    if words.startswith("one of monday"):
        return f"`{WEEKDAYS[value - 1]}`"
    if "cents" in words and isinstance(value, int):
        return f"`{cents_text(value)}`"
    if isinstance(value, float):
        return f"`{value:g}`"
    if isinstance(value, tuple | frozenset):
        return f"`[{', '.join(map(str, value))}]`"
    return "a statement for the cast service" if str(value).startswith(("SELECT", "UPDATE")) else f"`{value}`"


def _in_units(amount: int, units: tuple[tuple[str, int], ...]) -> str:
    return next(
        (f"{amount // size}{unit}" for unit, size in units if amount and amount % size == 0), f"0{units[-2][0]}"
    )


def _words(field: FieldInfo) -> str:
    """What may stand there, in the words of whoever refuses the rest."""
    words = _reading(field)
    annotation = _bare(field.annotation)
    if get_origin(annotation) is tuple and not words.startswith(("some of", "a list")) and "several" not in words:
        return f"a list: {words}" if words else "a list"
    return words


def _reading(field: FieldInfo) -> str:
    kinds = [one for one in field.metadata if isinstance(one, BeforeValidator)]
    annotation = field.annotation
    while not kinds and annotation is not None:
        if get_origin(annotation) is Annotated:
            kinds = [one for one in get_args(annotation)[1:] if isinstance(one, BeforeValidator)]
        arguments = get_args(annotation)
        annotation = arguments[0] if arguments else None
    for kind in kinds:
        words = (
            _refusal(kind, {"a": "mapping"}) if isinstance(kind, Kind) else _refusal(kind, "?") or _refusal(kind, {})
        )
        for beginning, much in _TOO_MUCH.items():
            if words.startswith(beginning):
                words = _refusal(kind, much)
        bounds = _bounds(kind)
        if bounds is not None and words.startswith("an integer"):
            words = f"an integer of {bounds[0]:,} to {bounds[1]:,}"
        return words
    return ""


def _refusal(kind: BeforeValidator, value: object) -> str:
    try:
        reader_of(kind)(value)
    except PydanticCustomError as error:
        return error.message().removeprefix("expected ").partition(", found ")[0]
    return ""


def _bounds(kind: BeforeValidator) -> tuple[int, int] | None:
    options = kind.schema.get("anyOf", ()) if isinstance(kind, Kind) else ()
    for option in options:
        inner = option.get("anyOf", [option])[0]
        if "minimum" in inner and "maximum" in inner:
            return inner["minimum"], inner["maximum"]
    return None


# --- what config.yaml says


def _told(text: str) -> Iterator[tuple[tuple[str, ...], Told]]:
    """By the path of each key: its variable and its comment, beside it or above."""
    path: list[tuple[int, str]] = []
    above: list[str] = []
    for line in text.splitlines():
        stripped = line.strip()
        if stripped.startswith("#"):
            above.append(stripped.lstrip("# "))
            continue
        match = _KEY.match(line)
        if match is None:
            above = []
            continue
        indent, key, rest = len(match[1]), match[2], match[3] or ""
        path = [(depth, name) for depth, name in path if depth < indent] + [(indent, key)]
        value, _, beside = rest.partition("#") if not rest.startswith(("'", '"')) else rest.partition(" #")
        variable = _VARIABLE.search(value)
        purpose = beside.strip() or " ".join(above)
        yield (
            tuple(name for _, name in path),
            Told(variable=variable[1] if variable else "", purpose=purpose),
        )
        above = []


def main(words: list[str]) -> int:
    """Writes the file; with ``--check`` says whether it is current."""
    text = document()
    if words == ["--check"]:
        return 0 if TARGET.read_text() == text else 1
    TARGET.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
