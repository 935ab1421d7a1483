"""How much a call takes from a rate limit: a number of the policy's, or what a field of the request tells.

What a client tells is its own word. Told nothing, a call weighs the default; told anything but one whole number from 1
to the maximum, it weighs the maximum, so that nobody gets away cheaper by a word that the service behind may read in
another way.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class HeaderWeight:
    """The whole number in a field of the request's head."""

    field: str  # in lower case
    default: int
    maximum: int

    def of(self, values: Sequence[bytes]) -> int:
        """The weight that these values of the field tell; there is one for each line of that name."""
        if not values:
            return self.default
        text = values[0].strip()
        # ASCII digits only, and no more of them than any weight has.
        if len(values) > 1 or not text.isdigit() or len(text) > len(str(self.maximum)):
            return self.maximum
        weight = int(text)
        return weight if 0 < weight <= self.maximum else self.maximum


Weight = int | HeaderWeight


def usual_weight(weight: Weight) -> int:
    """Of a call that says nothing about it."""
    return weight if isinstance(weight, int) else weight.default


def weights_told(weights: Iterable[Weight], lines: Iterable[bytes]) -> tuple[int, ...]:
    """What a call with these field lines weighs, limit by limit."""
    values: dict[bytes, list[bytes]] = {}
    for line in lines:
        name, _, value = line.partition(b":")
        values.setdefault(_as_read(name), []).append(value)
    return tuple(
        weight if isinstance(weight, int) else weight.of(values.get(_as_read(weight.field.encode()), ()))
        for weight in weights
    )


def _as_read(name: bytes) -> bytes:
    """As the laxest servers read a field's name, which take an underscore for a hyphen."""
    return name.lower().replace(b"_", b"-")
