"""``/v1/customers``."""

from collections.abc import Iterator

from stripe_stub.api import Call
from stripe_stub.cards import card_of_payment_method, give_card
from stripe_stub.errors import no_such
from stripe_stub.forms import Parameters
from stripe_stub.journal import Journal
from stripe_stub.listing import PAGING, created_within, page, search
from stripe_stub.state import Json, State, new_id, now_s

_TEXTS = ("description", "email", "name", "phone")
FIELDS = frozenset({*_TEXTS, "address", "invoice_settings", "metadata", "payment_method", "preferred_locales", "tax"})
LIST_FIELDS = PAGING | {"created", "email"}
SEARCH_FIELDS = frozenset({"query", "limit", "page"})


class Customers:
    def __init__(self, state: State, journal: Journal) -> None:
        self._state = state
        self._journal = journal

    def create(self, call: Call) -> Json:
        customer = self.new()
        _set(customer, call.parameters)
        self._state.add(customer)
        self._journal.record("customer.created", customer)
        return customer

    def retrieve(self, call: Call) -> Json:
        customer = self._state.get("customer", call.path["id"])
        return _tombstone(customer["id"]) if customer.get("deleted") else customer

    def update(self, call: Call) -> Json:
        customer = self._present(call.path["id"])
        with self._journal.change(customer, "customer.updated"):
            _set(customer, call.parameters)
        return customer

    def delete(self, call: Call) -> Json:
        """The customer's subscriptions must be cancelled first here; Stripe cancels them."""
        customer = self._present(call.path["id"])
        customer["deleted"] = True
        self._journal.record("customer.deleted", customer)
        return _tombstone(customer["id"])

    def list(self, call: Call) -> Json:
        email = call.parameters.text("email")
        within = created_within(call.parameters)
        rows = (row for row in self._all() if within(row) and email in {None, row["email"]})
        return page(call.url, rows, call.parameters)

    def search(self, call: Call) -> Json:
        return search(call.url, self._all(), call.parameters)

    def new(self, email: str | None = None) -> Json:
        """A customer that is not recorded yet."""
        return {
            "id": new_id("cus"),
            "object": "customer",
            "address": None,
            "balance": 0,
            "created": now_s(),
            "currency": None,
            "default_source": None,
            "delinquent": False,
            "description": None,
            "discount": None,
            "email": email,
            "invoice_prefix": new_id("x")[2:10].upper(),
            "invoice_settings": {
                "custom_fields": None,
                "default_payment_method": None,
                "footer": None,
                "rendering_options": None,
            },
            "livemode": False,
            "metadata": {},
            "name": None,
            "next_invoice_sequence": 1,
            "phone": None,
            "preferred_locales": [],
            "shipping": None,
            "tax_exempt": "none",
            "test_clock": None,
            "_card": None,
        }

    def _all(self) -> Iterator[Json]:
        return (row for row in self._state.newest_first("customer") if not row.get("deleted"))

    def _present(self, identifier: str) -> Json:
        customer = self._state.get("customer", identifier)
        if customer.get("deleted"):
            raise no_such("customer", identifier)
        return customer


def _set(customer: Json, parameters: Parameters) -> None:
    metadata = parameters.metadata(old=customer["metadata"])
    values = {name: parameters.text(name) for name in _TEXTS if name in parameters}
    settings = parameters.nested("invoice_settings")
    method = settings.text("default_payment_method") or parameters.text("payment_method")
    if method is not None:
        give_card(customer, card_of_payment_method(method, "payment_method"))
    customer.update(values, metadata=metadata)
    for name in ("address", "tax"):
        if name in parameters:
            customer[name] = parameters.mapping(name) or None
    if "preferred_locales" in parameters:
        customer["preferred_locales"] = parameters.texts("preferred_locales")


def _tombstone(identifier: str) -> Json:
    return {"id": identifier, "object": "customer", "deleted": True}
