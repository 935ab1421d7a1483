"""``/v1/subscriptions``."""

from stripe_stub.api import Call
from stripe_stub.errors import invalid, missing_parameter
from stripe_stub.forms import Parameters
from stripe_stub.journal import Journal
from stripe_stub.lifecycle import ENDED, UPDATED, Lifecycle, Order
from stripe_stub.listing import PAGING, created_within, page, search
from stripe_stub.state import Json, State

STATUSES = (
    "active",
    "all",
    "canceled",
    "ended",
    "incomplete",
    "incomplete_expired",
    "past_due",
    "paused",
    "trialing",
    "unpaid",
)
CREATE_FIELDS = frozenset(
    {"customer", "items", "metadata", "trial_period_days", "trial_settings", "payment_behavior", "proration_behavior"}
)
LIST_FIELDS = PAGING | {"created", "customer", "price", "status"}
UPDATE_FIELDS = frozenset(
    {
        "cancel_at_period_end",
        "default_payment_method",
        "description",
        "items",
        "metadata",
        "pause_collection",
        "payment_behavior",
        "proration_behavior",
        "trial_end",
    }
)
CANCEL_FIELDS = frozenset({"cancellation_details", "invoice_now", "prorate"})
PAUSE_FIELDS = frozenset({"bill_for", "invoicing_behavior", "type"})
RESUME_FIELDS = frozenset({"billing_cycle_anchor", "proration_behavior", "proration_date"})
TRIAL_DAYS_MAX = 730


class Subscriptions:
    def __init__(self, state: State, journal: Journal, lifecycle: Lifecycle) -> None:
        self._state = state
        self._journal = journal
        self._lifecycle = lifecycle

    def create(self, call: Call) -> Json:
        parameters = call.parameters
        customer = self._state.get("customer", parameters.needed("customer"), param="customer")
        return self._lifecycle.start(
            Order(
                customer=customer,
                items=ordered_items(self._state, parameters, "items"),
                metadata=parameters.metadata(),
                trial_days=parameters.whole("trial_period_days", high=TRIAL_DAYS_MAX) or 0,
                without_card_at_trial_end=trial_end_behavior(parameters),
            )
        )

    def retrieve(self, call: Call) -> Json:
        return self._state.get("subscription", call.path["id"])

    def list(self, call: Call) -> Json:
        """Without `status`, all but those that are canceled."""
        parameters = call.parameters
        status = parameters.choice("status", STATUSES)
        customer, price = parameters.text("customer"), parameters.text("price")
        within = created_within(parameters)

        def wanted(row: Json) -> bool:
            if status is None:
                shown = row["status"] != "canceled"
            elif status == "ended":
                shown = row["status"] in ENDED
            else:
                shown = status in {"all", row["status"]}
            prices = {item["price"]["id"] for item in row["items"]["data"]}
            return shown and customer in {None, row["customer"]} and (price is None or price in prices) and within(row)

        return page(call.url, filter(wanted, self._state.newest_first("subscription")), parameters)

    def search(self, call: Call) -> Json:
        return search(call.url, self._state.newest_first("subscription"), call.parameters)

    def update(self, call: Call) -> Json:
        parameters = call.parameters
        subscription = self._state.get("subscription", call.path["id"])
        metadata = parameters.metadata(old=subscription["metadata"])
        cancel = parameters.flag("cancel_at_period_end")
        change = self._price_change(subscription, parameters)
        if parameters.text("trial_end") not in {None, "now"}:
            raise invalid("This stand-in ends trials only `now`.", param="trial_end")
        behavior = parameters.nested("pause_collection").text("behavior")
        if subscription["status"] in ENDED and set(parameters.names()) - {"metadata", "expand"}:
            raise invalid(
                "A canceled subscription can only update its cancellation_details and metadata.",
                code="resource_missing",
            )
        if change is not None:
            self._lifecycle.change_price(subscription, *change)
        if cancel is not None:
            self._lifecycle.cancel_at_period_end(subscription, cancel)
        with self._journal.change(subscription, UPDATED):
            subscription["metadata"] = metadata
            if "description" in parameters:
                subscription["description"] = parameters.text("description")
            if "default_payment_method" in parameters:
                subscription["default_payment_method"] = parameters.text("default_payment_method")
            if "pause_collection" in parameters:
                subscription["pause_collection"] = (
                    {"behavior": behavior, "resumes_at": None} if behavior is not None else None
                )
        if parameters.text("trial_end") == "now" and subscription["status"] == "trialing":
            self._lifecycle.advance(subscription)
        return subscription

    def cancel(self, call: Call) -> Json:
        subscription = self._state.get("subscription", call.path["id"])
        details = call.parameters.nested("cancellation_details")
        feedback, comment = details.text("feedback"), details.text("comment")
        self._lifecycle.cancel(subscription)
        subscription["cancellation_details"] |= {"feedback": feedback, "comment": comment}
        return subscription

    def pause(self, call: Call) -> Json:
        subscription = self._state.get("subscription", call.path["id"])
        self._lifecycle.pause(subscription)
        return subscription

    def resume(self, call: Call) -> Json:
        subscription = self._state.get("subscription", call.path["id"])
        self._lifecycle.resume(subscription)
        return subscription

    def _price_change(self, subscription: Json, parameters: Parameters) -> tuple[Json, int] | None:
        rows = parameters.rows("items")
        if not rows:
            return None
        if len(rows) > 1:
            raise invalid("This stand-in changes one item at a time.", param="items")
        row, item = rows[0], subscription["items"]["data"][0]
        if row.text("id") != item["id"]:
            raise invalid(
                f"No such subscription item: '{row.text('id')}'; adding a second item is left out of this stand-in.",
                code="resource_missing",
                param=row.path("id"),
            )
        price_id = row.text("price")
        price = item["price"] if price_id is None else usable_price(self._state, price_id, row.path("price"))
        return price, row.whole("quantity", low=1) or item["quantity"]


def ordered_items(state: State, parameters: Parameters, name: str) -> "list[tuple[Json, int]]":
    rows = parameters.rows(name)
    if not rows:
        raise missing_parameter(name)
    return [
        (usable_price(state, row.needed("price"), row.path("price")), row.whole("quantity", low=1) or 1) for row in rows
    ]


def usable_price(state: State, identifier: str, param: str) -> Json:
    """A price that a subscription can be had for."""
    price = state.get("price", identifier, param=param)
    if not price["active"]:
        raise invalid(f"The price specified is inactive: {identifier}.", code="price_inactive", param=param)
    if price["recurring"] is None:
        raise invalid(
            "The price specified is set to `type=one_time` but this field only accepts prices with `type=recurring`.",
            param=param,
        )
    return price


def trial_end_behavior(parameters: Parameters) -> str:
    behavior = parameters.nested("trial_settings").nested("end_behavior")
    return behavior.choice("missing_payment_method", ("create_invoice", "pause", "cancel")) or "create_invoice"
