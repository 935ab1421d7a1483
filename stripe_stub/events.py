"""``/v1/events``: all that happened, whether or not anybody was told."""

from fnmatch import fnmatchcase

from stripe_stub.api import Call
from stripe_stub.delivery import Deliveries
from stripe_stub.errors import invalid
from stripe_stub.journal import shown
from stripe_stub.listing import PAGING, created_within, page
from stripe_stub.state import Json, State

LIST_FIELDS = PAGING | {"created", "delivery_success", "type", "types"}


class Events:
    """Events are shown in the form that the account's version had when they were made, as Stripe does."""

    def __init__(self, state: State, deliveries: Deliveries) -> None:
        self._state = state
        self._deliveries = deliveries

    def retrieve(self, call: Call) -> Json:
        return self._shown(self._state.get("event", call.path["id"]))

    def list(self, call: Call) -> Json:
        parameters = call.parameters
        one, several = parameters.text("type"), parameters.texts("types")
        if one and several:
            raise invalid("You may only specify one of these parameters: type, types.", param="types")
        delivered = parameters.flag("delivery_success")
        within = created_within(parameters)
        patterns = [one] if one else several

        def wanted(row: Json) -> bool:
            return (
                within(row)
                and (not patterns or any(fnmatchcase(row["type"], pattern) for pattern in patterns))
                and (delivered is None or delivered == (self._deliveries.pending_of(row["id"]) == 0))
            )

        answer = page(call.url, filter(wanted, self._state.newest_first("event")), parameters)
        answer["data"] = [self._shown(row) for row in answer["data"]]
        return answer

    def _shown(self, event: Json) -> Json:
        return {**shown(event, event["api_version"]), "pending_webhooks": self._deliveries.pending_of(event["id"])}
