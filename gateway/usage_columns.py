"""Usage events as parameters of the ledger's statements: the values of each field as one array literal.

As sequences the driver would look at every element several times, which costs more than writing the literal.
"""

from collections.abc import Iterable, Sequence
from operator import itemgetter
from typing import cast

from gateway.usage_events import Terms, UsageEvent

_FIELDS = UsageEvent._fields[:-1]
_TEXT_FIELDS = frozenset(("account_id", "policy", "outcome", "cast_id", "request_id", "free_kind", "key"))
_OWN_FIELDS = frozenset(("event_id", "cast_id", "request_id"))  # of each event; the last two may be of none
_NO_TERMS = Terms()
_id_of = itemgetter(UsageEvent._fields.index("event_id"))
_terms_of = itemgetter(UsageEvent._fields.index("terms"))


class Columns:
    """The fields of rows that are added piece by piece."""

    __slots__ = ("_counts", "_names", "_parts")

    def __init__(self, names: Sequence[str] = _FIELDS) -> None:
        self._names = names
        self._counts: list[int] = []
        # Of each field for each piece: what all rows say and no text, or anything and what they say.
        self._parts: list[list[tuple[object, str | None]]] = [[] for _ in names]

    def add(self, rows: Sequence[tuple[object, ...]]) -> None:
        """At least one row; what they have beyond the names is left out."""
        self._counts.append(len(rows))
        columns: Iterable[tuple[object, ...]] = zip(*rows, strict=True)
        for name, parts, column in zip(self._names, self._parts, columns, strict=False):
            first = column[0]
            if column[-1] == first and column.count(first) == len(column):
                parts.append((first, None))
            else:
                parts.append((first, _texts(column) if name in _TEXT_FIELDS else _integers(column)))

    def full(self) -> list[str]:
        """Literals that say what they say of each row."""
        return [self._literal(parts) for parts in self._parts]

    def short(self) -> list[str]:
        """The same, but what all rows have in common only once, and no value at all not even that."""
        if not self._counts:
            return self.full()
        literals = []
        for name, parts in zip(self._names, self._parts, strict=True):
            first = parts[0][0]
            if parts.count((first, None)) < len(parts) or (first is not None and name in _OWN_FIELDS):
                literals.append(self._literal(parts))
            else:
                literals.append("{}" if first is None else f"{{{_element(first)}}}")
        return literals

    def _literal(self, parts: Sequence[tuple[object, str | None]]) -> str:
        texts = [
            ",".join([_element(value)] * count) if text is None else text
            for count, (value, text) in zip(self._counts, parts, strict=True)
        ]
        return f"{{{','.join(texts)}}}"


def by_id(events: Sequence[UsageEvent]) -> list[UsageEvent]:
    """In the order that keeps two writers of the same events from waiting for each other."""
    return sorted(events, key=_id_of)


def have_terms(events: Sequence[UsageEvent]) -> bool:
    """Whether any has."""
    return any(map(_terms_of, events))


def term_columns() -> Columns:
    """To be given rows of ``terms_in``."""
    return Columns(Terms._fields)


def terms_in(events: Sequence[UsageEvent]) -> list[Terms]:
    """The terms of each."""
    return [event.terms or _NO_TERMS for event in events]


def columns_of(events: Sequence[UsageEvent]) -> list[str]:
    """``events`` as the first parameters of record_usage."""
    columns = Columns()
    if events:
        columns.add(by_id(events))
    return columns.short()


def full_columns_of(events: Sequence[UsageEvent]) -> list[str]:
    """``events`` as the first parameters of record_usage_on_terms."""
    columns = Columns()
    if events:
        columns.add(events)
    return columns.full()


def _integers(column: tuple[object, ...]) -> str:
    if None in column:
        return ",".join(map(_element, column))
    return ",".join(map(str, column))


def _texts(column: tuple[object, ...]) -> str:
    """Elements of an array of texts. Nearly all are ids, which need nothing but their quotes: joined at once."""
    if None not in column:
        text = '","'.join(cast("tuple[str, ...]", column))
        if "\\" not in text and text.count('"') == 2 * (len(column) - 1):
            return f'"{text}"'
    return ",".join(map(_quoted, column))


def _element(value: object) -> str:
    return str(value) if isinstance(value, int) else _quoted(value)


def _quoted(value: object) -> str:
    """An element of an array literal (Postgres, 8.15.6); None is NULL."""
    if value is None:
        return "NULL"
    text = cast("str", value)
    if '"' in text or "\\" in text:
        text = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'
