"""Literals of pieces are those of the whole, and say what a plain reading of the events says."""

from collections.abc import Sequence
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from gateway.usage_columns import Columns, columns_of, full_columns_of, have_terms, term_columns, terms_in
from gateway.usage_events import Terms, UsageEvent

TEXTS = st.sampled_from(["", "a", "b", 'a"b', "back\\slash", "{,}", "NULL"])
NUMBERS = st.integers(0, 3)
TERMS = st.builds(Terms, st.none() | TEXTS, *[st.none() | NUMBERS] * 4, st.none() | TEXTS, st.none() | NUMBERS)
EVENTS = st.lists(
    st.builds(
        UsageEvent,
        st.sampled_from(["00", "01", "02"]),
        TEXTS,
        TEXTS,
        NUMBERS,
        NUMBERS,
        NUMBERS,
        st.sampled_from(["posted", "expired"]),
        st.none() | TEXTS,
        st.none() | TEXTS,
        st.none() | TERMS,
    ),
    min_size=1,
    max_size=12,
)
OWN = {"event_id", "cast_id", "request_id"}


def pieces_of(rows: Sequence[Any], cuts: set[int]) -> list[Sequence[Any]]:
    ends = sorted({cut % len(rows) for cut in cuts} - {0})
    return [rows[begin:end] for begin, end in zip([0, *ends], [*ends, len(rows)], strict=True)]


def element(value: object) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, int):
        return str(value)
    text = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'


def literal(values: Sequence[object]) -> str:
    return f"{{{','.join(map(element, values))}}}".replace('"00"', "00").replace('"01"', "01").replace('"02"', "02")


def short_literal(name: str, values: Sequence[object]) -> str:
    if len(set(values)) > 1 or (values[0] is not None and name in OWN):
        return literal(values)
    return "{}" if values[0] is None else literal(values[:1])


def read(literals: Sequence[str]) -> list[str]:
    """Quotes around ids make no difference to Postgres."""
    return [one.replace('"00"', "00").replace('"01"', "01").replace('"02"', "02") for one in literals]


@given(EVENTS, st.sets(st.integers(1, 11), max_size=4))
def test_columns_of_pieces_say_what_the_events_say(events: list[UsageEvent], cuts: set[int]) -> None:
    columns, terms = Columns(), term_columns()
    for piece in pieces_of(events, cuts):
        columns.add(piece)
        terms.add(terms_in(piece))
    fields = {name: [getattr(one, name) for one in events] for name in UsageEvent._fields[:-1]}
    assert read(columns.full()) == [literal(values) for values in fields.values()] == read(full_columns_of(events))
    assert read(columns.short()) == [short_literal(name, values) for name, values in fields.items()]
    told = [one.terms or Terms() for one in events]
    assert read(terms.full()) == [literal(column) for column in zip(*told, strict=True)]


@given(EVENTS)
def test_the_short_ones_are_in_order_of_id_and_terms_are_there_where_an_event_has_any(events: list[UsageEvent]) -> None:
    ordered = sorted(events, key=lambda one: one.event_id)
    assert read(columns_of(events)) == [
        short_literal(name, [getattr(one, name) for one in ordered]) for name in UsageEvent._fields[:-1]
    ]
    assert have_terms(events) == any(one.terms for one in events)


def test_no_events_are_empty_columns() -> None:
    assert columns_of([]) == full_columns_of([]) == ["{}"] * 9
    assert not have_terms([])
