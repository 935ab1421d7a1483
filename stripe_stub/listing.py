"""Lists as Stripe gives them: newest first, pages by cursor, ``created`` bounds."""

import re
from collections.abc import Callable, Iterable
from itertools import islice

from stripe_stub.errors import invalid
from stripe_stub.forms import Parameters
from stripe_stub.state import Json

LIMIT_DEFAULT, LIMIT_MAX = 10, 100
PAGING = frozenset({"limit", "starting_after", "ending_before"})

_CLAUSE = re.compile(r"""\s*(?:metadata\[["']([^"']*)["']\]|([a-z_]+))\s*(:|~)\s*["']([^"']*)["']\s*""")


def page(url: str, things: Iterable[Json], parameters: Parameters) -> Json:
    """One page of `things`, which are newest first and filtered already."""
    limit = parameters.whole("limit", low=1, high=LIMIT_MAX) or LIMIT_DEFAULT
    after, before = parameters.text("starting_after"), parameters.text("ending_before")
    if after and before:
        raise invalid("You can't specify both `starting_after` and `ending_before`.", param="ending_before")
    rows = list(things)
    if after:
        rows = rows[_position(rows, after, "starting_after") + 1 :]
    elif before:
        rows = rows[: _position(rows, before, "ending_before")]
        return _list(url, rows[-limit:], has_more=len(rows) > limit)
    return _list(url, rows[:limit], has_more=len(rows) > limit)


def whole_list(url: str, rows: list[Json]) -> Json:
    """A list inside an object."""
    return {**_list(url, rows, has_more=False), "total_count": len(rows)}


def created_within(parameters: Parameters) -> Callable[[Json], bool]:
    """The filter ``created=…`` or ``created[gte]=…``."""
    if "created" not in parameters:
        return lambda _: True
    if parameters.is_text("created"):
        exactly = parameters.whole("created")
        return lambda thing: thing["created"] == exactly
    bounds = parameters.nested("created")
    bounds.refuse_unknown({"gt", "gte", "lt", "lte"})
    above, least = bounds.whole("gt"), bounds.whole("gte")
    below, most = bounds.whole("lt"), bounds.whole("lte")
    return lambda thing: (
        (above is None or thing["created"] > above)
        and (least is None or thing["created"] >= least)
        and (below is None or thing["created"] < below)
        and (most is None or thing["created"] <= most)
    )


def search(url: str, things: Iterable[Json], parameters: Parameters) -> Json:
    """``query=metadata['account']:'42' AND email:'a@b.c'``: clauses joined by AND, no paging beyond the first page."""
    query = parameters.needed("query")
    clauses = []
    for part in re.split(r"\s+AND\s+", query, flags=re.IGNORECASE):
        found = _CLAUSE.fullmatch(part)
        if found is None:
            raise invalid(f"We were unable to parse your search query: {part}", param="query")
        clauses.append(found.groups())

    def matches(thing: Json) -> bool:
        for key, field, operator, wanted in clauses:
            value = thing["metadata"].get(key) if key is not None else thing.get(field)
            if not isinstance(value, str):
                return False
            if not (wanted.lower() in value.lower() if operator == "~" else wanted.lower() == value.lower()):
                return False
        return True

    limit = parameters.whole("limit", low=1, high=LIMIT_MAX) or LIMIT_DEFAULT
    rows = list(islice(filter(matches, things), limit + 1))
    return {**_list(url, rows[:limit], has_more=len(rows) > limit), "object": "search_result", "next_page": None}


def _position(rows: list[Json], identifier: str, param: str) -> int:
    for position, row in enumerate(rows):
        if row["id"] == identifier:
            return position
    raise invalid(f"No such object: '{identifier}'", code="resource_missing", param=param)


def _list(url: str, rows: list[Json], *, has_more: bool) -> Json:
    return {"object": "list", "url": url, "has_more": has_more, "data": rows}
