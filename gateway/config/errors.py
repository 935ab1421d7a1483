"""What is wrong with a configuration: every mistake at once, each with its place, its key and what was expected."""

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

# A file that is broken all over need not fill the screen; the first mistakes are the ones that get corrected.
PROBLEMS_SHOWN_MAX = 100
# Enough to recognise a value by.
FOUND_LENGTH_MAX = 60

# Variables and texts that are likely to be, or to hold, a credential: named in messages, never shown.
_SECRET_NAME = re.compile(r"SECRET|KEY|TOKEN|PASS|CREDENTIAL|AUTH", re.IGNORECASE)
_SECRET_TEXT = re.compile(r"@|password=|\b(?:sk|rk|whsec)_", re.IGNORECASE)
_NUMBER = re.compile(r"-?[0-9]{1,20}(?:\.[0-9]{1,20})?")

KeyPath = tuple[str | int, ...]


@dataclass(frozen=True, slots=True, order=True, kw_only=True)
class Position:
    """A place in a file. Lines and columns count from 1, columns in characters; 0 is the file as a whole."""

    file: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}" if self.line else self.file


@dataclass(frozen=True, slots=True, order=True, kw_only=True)
class Problem:
    """One mistake. Its text never holds a secret."""

    position: Position
    key: str = ""
    message: str

    def __str__(self) -> str:
        return f"{self.position}: {self.key}: {self.message}" if self.key else f"{self.position}: {self.message}"


class ConfigError(Exception):
    """A configuration that was refused; the text has one line for each mistake, in the order of files and lines."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(sorted(set(problems)))
        lines = [str(problem) for problem in self.problems[:PROBLEMS_SHOWN_MAX]]
        if len(self.problems) > PROBLEMS_SHOWN_MAX:
            lines.append(f"and {len(self.problems) - PROBLEMS_SHOWN_MAX} more")
        super().__init__("\n".join(lines))


def key_text(path: KeyPath) -> str:
    """``("policies", 0, "rate_limits")`` as an operator reads it: ``policies[0].rate_limits``."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            text += ("." if text else "") + (shown(step) or '""')
    return text


def shown(text: str) -> str:
    """Text from a file or variable as messages repeat it: clipped, and on one line whatever is in it."""
    clipped = text if len(text) <= FOUND_LENGTH_MAX else f"{text[:FOUND_LENGTH_MAX]}…"
    if clipped.isprintable():
        return clipped
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in clipped)


def found(value: object) -> str:
    """A value as messages show it: clipped, with the variable it came from, and without anything that may be secret."""
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    text = str(value)
    names: tuple[str, ...] = getattr(value, "variables", ())  # yaml_nodes.Scalar's
    origin = f" (from {', '.join(f'${{{name}}}' for name in names)})" if names else ""
    if _SECRET_TEXT.search(text) or any(_SECRET_NAME.search(name) for name in names):
        return f"a value that is not shown{origin}"
    return f"{text}{origin}" if _NUMBER.fullmatch(text) else f'"{shown(text)}"{origin}'


def closest(word: str, known: Sequence[str]) -> list[str]:
    """The known word that ``word`` is probably meant to be, if any comes close."""
    return difflib.get_close_matches(word, known, n=1, cutoff=0.7)


def near_miss(word: str, known: Sequence[str]) -> str:
    """``, did you mean "…"?``, or nothing where no known word comes close."""
    close = closest(word, known)
    return f', did you mean "{close[0]}"?' if close else ""
