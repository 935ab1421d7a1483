"""``/v1/billing_portal/sessions``; the page itself is `portal_page.py`."""

import secrets

from stripe_stub.api import Call
from stripe_stub.errors import ApiError, no_such
from stripe_stub.state import Json, State, new_id, now_s

CREATE_FIELDS = frozenset({"configuration", "customer", "flow_data", "locale", "on_behalf_of", "return_url"})
OPEN_S = 3600  # a link is good for a while; Stripe's for five minutes until used, then an hour

_CONFIGURATION = "bpc_1CastgateStandIn"


class Portal:
    def __init__(self, state: State, public_url: str | None) -> None:
        self._state = state
        self._public_url = public_url

    def create(self, call: Call) -> Json:
        identifier = call.parameters.needed("customer")
        customer = self._state.get("customer", identifier, param="customer")
        if customer.get("deleted"):
            raise no_such("customer", identifier, param="customer")
        token = f"live_{secrets.token_urlsafe(24)}"
        return self._state.add(
            {
                "id": new_id("bps"),
                "object": "billing_portal.session",
                "configuration": call.parameters.text("configuration") or _CONFIGURATION,
                "created": now_s(),
                "customer": customer["id"],
                "flow": None,
                "livemode": False,
                "locale": call.parameters.text("locale"),
                "on_behalf_of": None,
                "return_url": call.parameters.address("return_url"),
                "url": f"{self._public_url or call.origin}/p/session/{token}",
                "_token": token,
            }
        )

    def of_token(self, token: str) -> Json:
        """The open session with this secret in its address."""
        for session in self._state.newest_first("billing_portal.session"):
            if secrets.compare_digest(session["_token"].encode(), token.encode()):
                if session["created"] + OPEN_S < now_s():
                    break
                return session
        raise ApiError(404, "invalid_request_error", "This link has expired; ask for a new one.")
