"""``cost`` of a policy as operators write it, and the Cost that it compiles to. Its free tier: ``free_tiers``."""

from decimal import Decimal
from typing import Annotated, Literal

from pydantic import Field, model_validator

from gateway.config.free_tiers import FreeSpec
from gateway.config.models import Section, contradiction, present
from gateway.config.request_fields import NAME
from gateway.config.scalars import Kind, cents, choice, price, reader_of, statuses, text
from gateway.policy.costs import (
    BYTES_OF,
    EVENTS,
    IF_MISSING,
    BytesCost,
    DurationCost,
    HeaderCost,
    JsonCost,
    Part,
)
from gateway.policy.money import MICROCENTS_MAX, cents_text, price_from_cents
from gateway.policy.rules import CHARGE_WHEN, Cost

# What a call costs should be something that a person can work out.
PARTS_MAX = 8

Cents = Annotated[int, cents()]  # microcents, once read
OptionalCents = Annotated[int | None, cents()]
Price = Annotated[Decimal, price()]
Events = Literal["last", "sum"]
BytesOf = Literal["answer", "request", "both"]
IfMissing = Literal["hold", "free"]
ChargeWhen = Literal["success", "sent", "always"]
FieldName = Annotated[str, text("a header name", NAME)]
JsonPointer = Annotated[str, text("a JSON pointer such as /id", r"(?:/(?:[^~/]|~[01])*)+")]

_PRICE = Field(description='cents for one unit, as a decimal of up to 18 places: "0.00003"')


def _charge_when() -> Kind:
    read_word, read_statuses = reader_of(choice(*CHARGE_WHEN)), reader_of(statuses())
    schema = {"anyOf": [choice(*CHARGE_WHEN).schema, statuses().schema]}

    def read(value: object) -> object:
        return read_statuses(value) if isinstance(value, list | tuple | frozenset) else read_word(value)

    return Kind(read, schema=schema)


class FixedCost(Section):
    """Every call costs the same."""

    cents: Annotated[Cents, Field(description="cents for a call, of up to six decimals")]


class HeaderCostSpec(Section):
    """Units that a field of the answer's head tells; where it tells cents, a unit costs 1."""

    name: Annotated[FieldName, Field(description="the header field; an answer that has it twice does not tell")]
    cents_per_unit: Annotated[Price, _PRICE]


class JsonCostSpec(Section):
    """Units that an answer of JSON, or of server-sent events of JSON, tells."""

    pointer: Annotated[JsonPointer, Field(description="where in the answer, or in an event: /usage/total_tokens")]
    cents_per_unit: Annotated[Price, _PRICE]
    events: Annotated[
        Events, choice(*EVENTS), Field(description="of several events: the last that has it, or the sum of all")
    ] = "last"


class DurationCostSpec(Section):
    """Milliseconds from the call's being sent upstream to the end of its answer."""

    cents_per_ms: Annotated[Price, _PRICE]


class BytesCostSpec(Section):
    """Bytes of the bodies, as they were sent."""

    cents_per_byte: Annotated[Price, _PRICE]
    of: Annotated[BytesOf, choice(*BYTES_OF), Field(description="which body counts")] = "answer"


class OneCost(Section):
    """One way to work a cost out: exactly one of the keys."""

    fixed: Annotated[FixedCost | None, present()] = None
    header: Annotated[HeaderCostSpec | None, present()] = None
    json_: Annotated[JsonCostSpec | None, present()] = Field(default=None, alias="json")
    duration: Annotated[DurationCostSpec | None, present()] = None
    bytes_: Annotated[BytesCostSpec | None, present()] = Field(default=None, alias="bytes")

    def part(self) -> Part | None:
        """The measured part; None for a fixed cost."""
        if self.header:
            return HeaderCost(
                field=self.header.name.lower(), microcents_per_unit=price_from_cents(self.header.cents_per_unit)
            )
        if self.json_:
            return JsonCost(
                pointer=self.json_.pointer,
                microcents_per_unit=price_from_cents(self.json_.cents_per_unit),
                events=self.json_.events,
            )
        if self.duration:
            return DurationCost(microcents_per_ms=price_from_cents(self.duration.cents_per_ms))
        if self.bytes_:
            return BytesCost(microcents_per_byte=price_from_cents(self.bytes_.cents_per_byte), of=self.bytes_.of)
        return None


_WAYS = ("fixed", "header", "json", "duration", "bytes")


def _ways(section: OneCost) -> list[str]:
    values = (section.fixed, section.header, section.json_, section.duration, section.bytes_)
    return [name for name, value in zip(_WAYS, values, strict=True) if value is not None]


class SumItem(OneCost):
    """One of the costs that are added up."""

    @model_validator(mode="after")
    def _is_one_cost(self) -> "SumItem":
        ways = _ways(self)
        if len(ways) != 1:
            raise contradiction((), f"expected exactly one of {', '.join(_WAYS)}, found {' and '.join(ways) or 'none'}")
        return self


class CostSpec(OneCost):
    """What a call costs, and when it is charged. One of fixed, header, json, duration, bytes and sum; none: nothing."""

    sum_: tuple[SumItem, ...] = Field(default=(), alias="sum", description="several costs, added up")
    minimum_cents: Annotated[OptionalCents, Field(description="a charged call never costs less")] = None
    maximum_cents: Annotated[OptionalCents, Field(description="a charged call never costs more")] = None
    hold_cents: Annotated[
        OptionalCents,
        Field(description="taken before the call for the most that it may cost; maximum_cents where it is left out"),
    ] = None
    if_missing: Annotated[
        IfMissing,
        choice(*IF_MISSING),
        Field(
            description="an answer that does not tell its cost: hold charges what was held, free only the other parts"
        ),
    ] = "hold"
    free: Annotated[
        FreeSpec | None,
        present(),
        Field(description="the first units of a period cost nothing, the others their price"),
    ] = None
    charge_when: Annotated[
        ChargeWhen | frozenset[int],
        _charge_when(),
        Field(description="success: 2xx and 3xx; sent: whatever the answer; always; or a list of statuses"),
    ] = "success"

    @model_validator(mode="after")
    def _is_of_one_piece(self) -> "CostSpec":
        ways = [*_ways(self), *(["sum"] if self.sum_ else [])]
        if len(ways) > 1:
            raise contradiction((), f"expected one of {', '.join(_WAYS)}, sum, found {' and '.join(ways)}")
        if len(self.sum_) > PARTS_MAX:
            raise contradiction(("sum",), f"expected at most {PARTS_MAX} costs, found {len(self.sum_)}")
        if self.free is not None:
            if not ways:
                raise contradiction(("free",), f"expected a cost beside it: one of {', '.join(_WAYS)}, sum")
            self.free.check(None if self.sum_ else self.part())
        low, high, hold = self.minimum_cents, self.maximum_cents, self.hold_cents
        if low is not None and high is not None and low > high:
            raise contradiction(
                ("minimum_cents",), f"expected at most maximum_cents ({cents_text(high)}), found {cents_text(low)}"
            )
        if not self._parts():
            for key, value in (("minimum_cents", low), ("maximum_cents", high), ("hold_cents", hold)):
                if value is not None:
                    raise contradiction((key,), "expected none for a cost that is the same for every call")
            return self
        most = hold if hold is not None else high
        if most is None:
            raise contradiction(
                (), f'missing key "hold_cents" or "maximum_cents" (the cost {ways[0]} is not known before)'
            )
        key = "hold_cents" if hold is not None else "maximum_cents"
        if most == 0:
            raise contradiction(
                (key,), "expected more than 0 cents to hold for a cost that is not known before, found 0"
            )
        if high is not None and most > high:
            raise contradiction(
                (key,), f"expected at most maximum_cents ({cents_text(high)}), found {cents_text(most)}"
            )
        if low is not None and most < low:
            raise contradiction(
                (key,), f"expected at least minimum_cents ({cents_text(low)}), found {cents_text(most)}"
            )
        return self

    def _parts(self) -> tuple[Part, ...]:
        return tuple(part for one in (self, *self.sum_) if (part := one.part()) is not None)

    def compiled(self) -> Cost:
        parts = self._parts()
        fixed = sum(one.fixed.cents for one in (self, *self.sum_) if one.fixed)
        if not parts:
            return Cost(
                fixed_microcents=fixed,
                charge_when=self.charge_when,
                free=None if self.free is None else self.free.compiled(None, fixed, fixed),
            )
        maximum = self.maximum_cents if self.maximum_cents is not None else MICROCENTS_MAX
        hold = self.hold_cents if self.hold_cents is not None else maximum
        return Cost(
            fixed_microcents=fixed,
            parts=parts,
            minimum_microcents=self.minimum_cents or 0,
            maximum_microcents=maximum,
            if_missing=self.if_missing,
            charge_when=self.charge_when,
            hold_microcents=hold,
            free=None if self.free is None else self.free.compiled(None if self.sum_ else parts[0], hold, maximum),
        )
