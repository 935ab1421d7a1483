"""Heads that were not met before, or under other rules: what the request is, before it is anything on its way."""

from typing import TYPE_CHECKING

from gateway.policy.routes import Ambiguous
from gateway.relay import conformance, refusals

if TYPE_CHECKING:
    from gateway.policy.answers import Answer
    from gateway.policy.rules import Policy
    from gateway.relay.exchange import Exchange


def is_call(exchange: "Exchange") -> bool:
    """Whether the request goes on to the service behind; if not it is refused, or goes another way from here.

    What is found is kept with the request, for the next one with the same head.
    """
    relay, request = exchange.relay, exchange.request
    request.varying = None  # it knows a line by its place, and what is found here may move lines
    refusal = request.refusal or refusals.of_head(request, relay.limits)
    if refusal is None:
        if request.target.partition(b"?")[0] in relay.hosted_paths:
            relay.counters.request("hosted")
            if not exchange.refuse_large_body():
                exchange.forward(relay.hosted_pool)
            return False
        match = conformance.match(request, relay.routes)
        if isinstance(match, Ambiguous):
            refusal = refusals.ambiguous_target(request, match)
        else:
            refusal = None if match is None else _refusal_of_credentials(exchange, match)
            request.policy = match
    if refusal is None:
        request.matched_by = relay.routes
        return True
    relay.counters.request("refused")
    exchange.refuse(refusal)
    return False


def _refusal_of_credentials(exchange: "Exchange", policy: "Policy") -> "Answer | None":
    request, identify = exchange.request, exchange.relay.identify
    if request.has_two_credentials:
        return refusals.two_credentials(policy)
    shown = request.authorization, request.api_key, request.cookie
    doubt = identify.doubt_about(*shown)
    request.credentials, request.met = identify.credentials_from(*shown), None
    return None if doubt is None else refusals.doubtful_credentials(doubt)
