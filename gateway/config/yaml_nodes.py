"""YAML as a tree that remembers where everything stood.

Built from libyaml's events rather than its objects: nothing is resolved to a type, so ``0.1`` stays the text "0.1"
until somebody asks for cents, and what a configuration has no use for (anchors, tags, several documents) is refused
by place.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from gateway.config.errors import KeyPath, Position, Problem, key_text, shown
from gateway.config.interpolation import InterpolationError, Variables

# 5,000 policies are about 1.2 MB; beyond this somebody has pointed at the wrong file.
FILE_BYTES_MAX = 8 * 1024 * 1024
# The deepest key there is stands 6 deep.
DEPTH_MAX = 20
# Plain scalars that YAML reads as no value at all.
_NOTHING = ("", "~", "null", "Null", "NULL")

# What YAML 1.1 (section 4.1.1) does not allow; libyaml gives no place for it that could be shown.
_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

# The C parser is ten times as fast; PyYAML built without it still works, with other words for broken YAML.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Scalar(str):
    """The text of one value, after interpolation.

    ``variables`` are the environment variables whose values are in it. ``unusable`` says that a problem was reported
    already, and whatever else is wrong with it is a consequence.
    """

    __slots__ = ("unusable", "variables")
    variables: tuple[str, ...]
    unusable: bool

    def __new__(cls, text: str, *, variables: tuple[str, ...] = (), unusable: bool = False) -> "Scalar":
        scalar = super().__new__(cls, text)
        scalar.variables = variables
        scalar.unusable = unusable
        return scalar


@dataclass(slots=True)
class Document:
    """One file: its values as dicts, lists, Scalars and None, and the place of each value and key."""

    file: str
    text: str = ""
    data: object = None
    problems: list[Problem] = field(default_factory=list)
    is_readable: bool = True  # False: there is a problem with the file itself, and no data
    # Line and column, from 0, of each value and key.
    values: dict[KeyPath, tuple[int, int]] = field(default_factory=dict)
    keys: dict[KeyPath, tuple[int, int]] = field(default_factory=dict)

    def position(self, path: KeyPath) -> Position:
        """Where the value at ``path`` stands, or the nearest value around it that is there."""
        for length in range(len(path), -1, -1):
            if path[:length] in self.values:
                return self.position_at(self.values[path[:length]])
        return Position(file=self.file)

    def unreadable(self, message: str, line: int = 0, column: int = 0) -> None:
        """Notes what is wrong with the file itself."""
        self.is_readable = False
        self.problems.append(Problem(position=Position(file=self.file, line=line, column=column), message=message))

    def key_position(self, path: KeyPath) -> Position:
        """Where the key at ``path`` stands; the value's place for items of lists."""
        return self.position_at(self.keys[path]) if path in self.keys else self.position(path)

    def position_at(self, place: tuple[int, int]) -> Position:
        return Position(file=self.file, line=place[0] + 1, column=place[1] + 1)

    def refuse(self, path: KeyPath, message: str, *, at_key: bool = False) -> None:
        """Notes a mistake at the value (or the key) of ``path``."""
        position = self.key_position(path) if at_key else self.position(path)
        self.problems.append(Problem(position=position, key=key_text(path), message=message))


class _BrokenError(Exception):
    """The rest of the file cannot be read."""

    def __init__(self, line: int, column: int, message: str) -> None:
        super().__init__(message)
        self.line, self.column = line, column


def read_document(file: str, content: bytes, variables: Variables) -> Document:
    """The document in ``content``, its mistakes noted in ``problems``; ``file`` is what messages call it.

    An empty file is an empty mapping.
    """
    document = Document(file)
    if len(content) > FILE_BYTES_MAX:
        document.unreadable(f"expected at most {FILE_BYTES_MAX} bytes, found {len(content)}")
        return document
    try:
        document.text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line_start = content.rfind(b"\n", 0, error.start) + 1
        column = len(content[line_start : error.start].decode()) + 1
        document.unreadable("not UTF-8 text", content.count(b"\n", 0, error.start) + 1, column)
        return document
    try:
        _Builder(document, variables).build()
    except _BrokenError as error:
        document.unreadable(str(error), error.line, error.column)
    return document


class _Builder:
    def __init__(self, document: Document, variables: Variables) -> None:
        self._document = document
        self._variables = variables
        self._events = _events(document.text)

    def build(self) -> None:
        self._document.data = {}
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent):
                if self._document.position(()).line:
                    raise _broken_at(event, "expected one YAML document, found a second")
                self._document.data = self._value(next(self._events), ())
        if self._document.data is None:
            self._document.data = {}

    def _value(self, event: Any, path: KeyPath) -> object:
        self._document.values[path] = _place(event)
        if len(path) > DEPTH_MAX:
            raise _broken_at(event, f"expected at most {DEPTH_MAX} levels")
        if isinstance(event, yaml.AliasEvent):
            self._document.refuse(
                path, f"expected a value, found the YAML alias *{shown(str(event.anchor))}: write the value out"
            )
            return _unusable()
        if event.anchor is not None:
            self._document.refuse(path, f"YAML anchors are not supported, found &{shown(event.anchor)}")
        if event.tag is not None:
            self._document.refuse(path, f"YAML tags are not supported, found {shown(event.tag)}")
        if isinstance(event, yaml.MappingStartEvent):
            return self._mapping(path)
        if isinstance(event, yaml.SequenceStartEvent):
            return self._sequence(path)
        return self._scalar(event, path)

    def _mapping(self, path: KeyPath) -> dict[str, object]:
        entries: dict[str, object] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            if not isinstance(event, yaml.ScalarEvent):
                raise _broken_at(event, "expected a key, found a value of several parts")
            at = (*path, event.value)
            if event.value in entries:
                first = self._document.key_position(at)
                position = self._document.position_at(_place(event))
                message = f"duplicate key, first at line {first.line}"
                self._document.problems.append(Problem(position=position, key=key_text(at), message=message))
                _Builder._skip(self._events)
                continue
            self._document.keys[at] = _place(event)
            entries[event.value] = self._value(next(self._events), at)
        return entries

    def _sequence(self, path: KeyPath) -> list[object]:
        items: list[object] = []
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            items.append(self._value(event, (*path, len(items))))
        return items

    def _scalar(self, event: Any, path: KeyPath) -> Scalar | None:
        is_plain = event.implicit[0]
        if is_plain and event.value in _NOTHING:
            return None
        try:
            text, names = self._variables.interpolate(event.value)
        except InterpolationError as error:
            self._document.refuse(path, str(error))
            return _unusable()
        return Scalar(text, variables=names)

    @staticmethod
    def _skip(events: Iterator[Any]) -> None:
        """Passes over one value."""
        depth = 0
        for event in events:
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
            if depth == 0:
                return


def _unusable() -> Scalar:
    return Scalar("", unusable=True)


def _events(text: str) -> Iterator[Any]:
    if (stray := _UNPRINTABLE.search(text)) is not None:
        line = text.count("\n", 0, stray.start()) + 1
        column = stray.start() - text.rfind("\n", 0, stray.start())
        raise _BrokenError(line, column, f"not valid YAML: the character U+{ord(stray[0]):04X}")
    try:
        yield from yaml.parse(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (0, 0)
        raise _BrokenError(line, column, f"not valid YAML: {error.problem}") from None


def _place(event: Any) -> tuple[int, int]:
    mark = event.start_mark
    return mark.line, mark.column


def _broken_at(event: Any, message: str) -> _BrokenError:
    return _BrokenError(event.start_mark.line + 1, event.start_mark.column + 1, message)
