"""Fields that the gateway adds to answers of the service behind, such as what a call's limits have left.

They come behind all of the answer's own, in one piece, and the answer is otherwise passed on as it is. Where the
service itself sends a field of the same group, its own stay and the gateway's are left out of that answer: two fields
of one name are read as neither by most clients, and a service that refuses by a limit of its own knows better than a
gateway that let the call pass.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Added(NamedTuple):
    """A group of fields that say something together."""

    names: frozenset[bytes]  # in lower case
    lines: bytes  # each ending in CRLF


def added_beside(added: Sequence[Added], names: frozenset[bytes]) -> bytes:
    """The lines to add to a head that has fields of these ``names``, in lower case."""
    return b"".join([group.lines for group in added if not group.names & names])


def names_of(lines: Iterable[bytes]) -> frozenset[bytes]:
    """The names of field lines, in lower case."""
    return frozenset([line.partition(b":")[0].lower() for line in lines])
