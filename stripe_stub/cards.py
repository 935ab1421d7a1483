"""The cards there are: Stripe's test numbers and what they do. No other number is taken, so nobody leaves a real one.

A customer's card is noted on the customer as `_card`, a name of this table. https://docs.stripe.com/testing
"""

from dataclasses import dataclass
from typing import Literal

from stripe_stub.errors import ApiError, invalid
from stripe_stub.state import Json

CardName = Literal["good", "declined", "fails_later"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    name: CardName
    number: str
    payment_method: str  # its name in the API
    first_charge_succeeds: bool
    later_charges_succeed: bool

    @property
    def last4(self) -> str:
        return self.number[-4:]


CARDS: dict[str, Card] = {
    card.name: card
    for card in (
        Card(
            name="good",
            number="4242424242424242",
            payment_method="pm_card_visa",
            first_charge_succeeds=True,
            later_charges_succeed=True,
        ),
        Card(
            name="declined",
            number="4000000000000002",
            payment_method="pm_card_visa_chargeDeclined",
            first_charge_succeeds=False,
            later_charges_succeed=False,
        ),
        Card(
            name="fails_later",
            number="4000000000000341",
            payment_method="pm_card_chargeCustomerFail",
            first_charge_succeeds=True,
            later_charges_succeed=False,
        ),
    )
}


def card_of_number(text: str) -> Card:
    digits = "".join(text.split())
    for card in CARDS.values():
        if card.number == digits:
            return card
    raise ApiError(
        402, "card_error", "Only test cards are taken here, such as 4242 4242 4242 4242.", code="incorrect_number"
    )


def card_of_payment_method(name: str, param: str) -> Card:
    for card in CARDS.values():
        if card.payment_method == name:
            return card
    raise invalid(f"No such PaymentMethod: '{name}'", code="resource_missing", param=param)


def card_of(customer: Json) -> Card | None:
    name = customer.get("_card")
    return CARDS[name] if name is not None else None


def give_card(customer: Json, card: Card) -> None:
    customer["_card"] = card.name
    customer["invoice_settings"]["default_payment_method"] = card.payment_method
