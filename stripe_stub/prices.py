"""``/v1/products`` and ``/v1/prices``, and the prices there are from the start."""

from dataclasses import dataclass

from stripe_stub.api import Call
from stripe_stub.errors import invalid, missing_parameter
from stripe_stub.forms import Parameters
from stripe_stub.journal import Journal
from stripe_stub.listing import PAGING, created_within, page
from stripe_stub.state import Json, State, new_id, now_s

INTERVALS = ("day", "week", "month", "year")
AMOUNT_MAX = 99_999_999  # cents; Stripe's own

PRODUCT_FIELDS = frozenset({"active", "default_price_data", "description", "id", "images", "metadata", "name", "url"})
PRODUCT_LIST_FIELDS = PAGING | {"active", "created", "ids"}
PRICE_FIELDS = frozenset(
    [
        "active",
        "billing_scheme",
        "currency",
        "lookup_key",
        "metadata",
        "nickname",
        "product",
        "product_data",
        "recurring",
        "tax_behavior",
        "unit_amount",
        "unit_amount_decimal",
    ]
)
PRICE_LIST_FIELDS = PAGING | {"active", "created", "currency", "lookup_keys", "product", "type"}


@dataclass(frozen=True, kw_only=True, slots=True)
class SeededPrice:
    """A monthly price that is there from the start: ``price_pro=4900``, or ``price_pro=4900:Pro`` with a name."""

    id: str
    amount_cents: int
    name: str

    @classmethod
    def parse(cls, text: str) -> "SeededPrice":
        """Raises ValueError for what is not of this form."""
        identifier, _, rest = text.partition("=")
        amount, _, name = rest.partition(":")
        if not identifier or not (amount.isascii() and amount.isdigit()) or int(amount) > AMOUNT_MAX:
            raise ValueError(f"{text!r} is not ID=CENTS or ID=CENTS:NAME")
        return cls(id=identifier, amount_cents=int(amount), name=name or _name_from(identifier))


class Prices:
    def __init__(self, state: State, journal: Journal) -> None:
        self._state = state
        self._journal = journal

    def seed(self, price: SeededPrice) -> None:
        """Make the price unless it is there with this amount; no event tells of it."""
        there = self._state.find("price", price.id)
        if there is not None and there["unit_amount"] == price.amount_cents:
            return
        product = self._state.add(_product(f"prod_{price.id.removeprefix('price_')}", price.name))
        recurring = {"interval": "month", "interval_count": 1}
        self._state.add(_price(price.id, product["id"], price.amount_cents, "usd", recurring))

    def create_product(self, call: Call) -> Json:
        parameters = call.parameters
        product = _product(parameters.text("id") or new_id("prod"), parameters.needed("name"))
        product["description"] = parameters.text("description")
        product["metadata"] = parameters.metadata()
        if self._state.find("product", product["id"]):
            raise invalid(f"Product already exists: {product['id']}", code="resource_already_exists", param="id")
        self._state.add(product)
        self._journal.record("product.created", product)
        return product

    def retrieve_product(self, call: Call) -> Json:
        return self._state.get("product", call.path["id"])

    def list_products(self, call: Call) -> Json:
        active, within = call.parameters.flag("active"), created_within(call.parameters)
        ids = call.parameters.texts("ids")
        rows = (
            row
            for row in self._state.newest_first("product")
            if within(row) and active in {None, row["active"]} and (not ids or row["id"] in ids)
        )
        return page(call.url, rows, call.parameters)

    def create(self, call: Call) -> Json:
        parameters = call.parameters
        currency = parameters.needed("currency")
        amount = parameters.whole("unit_amount", high=AMOUNT_MAX)
        if amount is None:
            raise missing_parameter("unit_amount")
        recurring = _recurring(parameters.nested("recurring")) if "recurring" in parameters else None
        metadata = parameters.metadata()
        if "product_data" in parameters:
            product = self._state.add(_product(new_id("prod"), parameters.nested("product_data").needed("name")))
        else:
            product = self._state.get("product", parameters.needed("product"), param="product")
        price = _price(new_id("price"), product["id"], amount, currency.lower(), recurring)
        price |= {
            "lookup_key": parameters.text("lookup_key"),
            "nickname": parameters.text("nickname"),
            "metadata": metadata,
        }
        self._state.add(price)
        self._journal.record("price.created", price)
        return price

    def retrieve(self, call: Call) -> Json:
        return self._state.get("price", call.path["id"])

    def list(self, call: Call) -> Json:
        parameters = call.parameters
        wanted = {
            "active": parameters.flag("active"),
            "product": parameters.text("product"),
            "currency": parameters.text("currency"),
            "type": parameters.choice("type", ("one_time", "recurring")),
        }
        lookup_keys, within = parameters.texts("lookup_keys"), created_within(parameters)
        rows = (
            row
            for row in self._state.newest_first("price")
            if within(row)
            and all(value in {None, row[name]} for name, value in wanted.items())
            and (not lookup_keys or row["lookup_key"] in lookup_keys)
        )
        return page(call.url, rows, parameters)


def plan_of(price: Json) -> Json:
    """The older name for a price, still on every subscription item."""
    return {
        "id": price["id"],
        "object": "plan",
        "active": price["active"],
        "amount": price["unit_amount"],
        "amount_decimal": price["unit_amount_decimal"],
        "billing_scheme": "per_unit",
        "created": price["created"],
        "currency": price["currency"],
        "interval": price["recurring"]["interval"],
        "interval_count": price["recurring"]["interval_count"],
        "livemode": False,
        "metadata": price["metadata"],
        "nickname": price["nickname"],
        "product": price["product"],
        "usage_type": "licensed",
    }


def _recurring(parameters: Parameters) -> Json:
    interval = parameters.choice("interval", INTERVALS)
    if interval is None:
        raise missing_parameter("recurring[interval]")
    return {"interval": interval, "interval_count": parameters.whole("interval_count", low=1, high=52) or 1}


def _product(identifier: str, name: str) -> Json:
    now = now_s()
    return {
        "id": identifier,
        "object": "product",
        "active": True,
        "created": now,
        "default_price": None,
        "description": None,
        "images": [],
        "livemode": False,
        "marketing_features": [],
        "metadata": {},
        "name": name,
        "tax_code": None,
        "type": "service",
        "updated": now,
        "url": None,
    }


def _price(identifier: str, product: str, amount_cents: int, currency: str, recurring: Json | None) -> Json:
    if recurring is not None:
        recurring = {**recurring, "meter": None, "trial_period_days": None, "usage_type": "licensed"}
    return {
        "id": identifier,
        "object": "price",
        "active": True,
        "billing_scheme": "per_unit",
        "created": now_s(),
        "currency": currency,
        "custom_unit_amount": None,
        "livemode": False,
        "lookup_key": None,
        "metadata": {},
        "nickname": None,
        "product": product,
        "recurring": recurring,
        "tax_behavior": "unspecified",
        "tiers_mode": None,
        "transform_quantity": None,
        "type": "one_time" if recurring is None else "recurring",
        "unit_amount": amount_cents,
        "unit_amount_decimal": str(amount_cents),
    }


def _name_from(identifier: str) -> str:
    return identifier.removeprefix("price_").replace("_", " ").title()
