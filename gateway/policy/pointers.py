"""JSON pointers (RFC 6901): where in a document a value stands."""

from functools import lru_cache
from typing import Any


class Absent:
    """What stands where nothing does: not even null."""


ABSENT = Absent()


@lru_cache(maxsize=1024)
def names_of(pointer: str) -> tuple[str, ...]:
    """The reference tokens of a pointer such as ``/usage/total_tokens``."""
    return tuple(token.replace("~1", "/").replace("~0", "~") for token in pointer.split("/")[1:])


def value_at(document: Any, pointer: str) -> Any:
    """The value at ``pointer``; ABSENT where the document has none there."""
    value = document
    for name in names_of(pointer):
        if isinstance(value, dict):
            value = value.get(name, ABSENT)
        elif isinstance(value, list) and name.isascii() and name.isdecimal() and int(name) < len(value):
            value = value[int(name)]
        else:
            return ABSENT
    return value
