"""``/v1/billing/meter_events``: taken and kept, not billed. https://docs.stripe.com/api/billing/meter-event"""

import re

from stripe_stub.api import Call
from stripe_stub.errors import invalid, missing_parameter
from stripe_stub.state import Json, State, new_id, now_s

FIELDS = frozenset({"event_name", "identifier", "payload", "timestamp"})
OLDEST_S = 35 * 24 * 3600
FUTURE_S = 5 * 60
UNIQUE_S = 24 * 3600  # an identifier is taken only once in so long


class Meters:
    def __init__(self, state: State) -> None:
        self._state = state

    def create(self, call: Call) -> Json:
        parameters, now = call.parameters, now_s()
        name, payload = parameters.needed("event_name"), parameters.mapping("payload")
        for key in ("stripe_customer_id", "value"):
            if not payload.get(key):
                raise missing_parameter(f"payload[{key}]")
        if not re.fullmatch(r"\d{1,15}(\.\d{1,12})?", payload["value"], re.ASCII):
            raise invalid("The meter event's value must be a number from 0 on.", code="meter_event_invalid_value")
        timestamp = parameters.whole("timestamp")
        if timestamp is None:
            timestamp = now
        if timestamp < now - OLDEST_S:
            raise invalid("The timestamp must be within the past 35 calendar days.", code="timestamp_too_far_in_past")
        if timestamp > now + FUTURE_S:
            raise invalid("The timestamp is more than 5 minutes in the future.", code="timestamp_in_future")
        identifier = parameters.text("identifier", chars_max=100) or new_id("identifier")
        for earlier in self._state.newest_first("billing.meter_event"):
            if earlier["created"] < now - UNIQUE_S:
                break
            if earlier["identifier"] == identifier:
                raise invalid(f"An event already exists with identifier {identifier}.", param="identifier")
        return self._state.add(
            {
                "id": new_id("mtr_event"),
                "object": "billing.meter_event",
                "created": now,
                "event_name": name,
                "identifier": identifier,
                "livemode": False,
                "payload": payload,
                "timestamp": timestamp,
            }
        )
