"""``expand[]``: ids in an answer replaced by the objects they stand for, along paths such as ``data.customer``."""

from collections.abc import Callable, Sequence

from stripe_stub.errors import ApiError, invalid
from stripe_stub.state import Json

DEPTH_MAX = 4  # Stripe's own

_LISTS_LEFT_OUT = {"checkout.session": {"line_items"}, "invoice": {"payments"}}


def expand(answer: Json, paths: Sequence[str], find: Callable[[str], Json | None]) -> None:
    """Changes `answer`. `find` gives an object as it is to be shown, or None."""
    for path in paths:
        steps = path.split(".")
        if len(steps) > DEPTH_MAX:
            raise invalid(f"You cannot expand more than {DEPTH_MAX} levels of a property: {path}", param="expand")
        _expand(answer, steps, path, find)


def _expand(at: Json, steps: Sequence[str], path: str, find: Callable[[str], Json | None]) -> None:
    name, *rest = steps
    if name not in at:
        raise _cannot(path)
    value = at[name]
    if isinstance(value, str):
        value = find(value)
        if value is None:
            raise _cannot(path)
        at[name] = value
    if isinstance(value, list):
        for inner in value:
            if rest:
                _expand(inner, rest, path, find)
    elif isinstance(value, dict) and rest:
        _expand(value, rest, path, find)
    elif value is not None and not isinstance(value, dict):
        raise _cannot(path)


def leave_out(answer: Json, paths: Sequence[str]) -> None:
    """Takes away the lists that Stripe shows only where they are asked for, unless they are."""
    things = answer["data"] if answer.get("object") in {"list", "search_result"} else [answer]
    asked = {path.removeprefix("data.").split(".")[0] for path in paths}
    for thing in things:
        for name in _LISTS_LEFT_OUT.get(thing.get("object", ""), set()) - asked:
            thing.pop(name, None)


def _cannot(path: str) -> ApiError:
    return invalid(f"This property cannot be expanded ({path}).", param="expand")
