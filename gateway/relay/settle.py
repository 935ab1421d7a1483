"""The last step of the request path: what a call comes to, and what becomes of its hold."""

from fractions import Fraction
from time import monotonic
from typing import TYPE_CHECKING

from gateway.ledger import UsageEvent
from gateway.policy.rules import Policy
from gateway.relay.call import DONE
from gateway.relay.capture import identifier_in
from gateway.relay.counters import wall_clock_ms
from gateway.usage_events import terms_at

if TYPE_CHECKING:
    from gateway.relay.exchange import Exchange

# Makes a named tuple of all its fields, in half of the time that calling its class takes.
_event_of = tuple.__new__


def settle(exchange: "Exchange", status: int) -> None:
    """Posts or voids the call's hold, once. ``status`` is the upstream's, or one of rules.NEVER_…"""
    if exchange.abandoned:
        leave_abandoned(exchange)
    policy = exchange.policy
    if policy is None:
        return
    relay = exchange.relay
    ending = relay.endings.get((policy.name, status))
    if ending is None or ending.policy is not policy:
        ending = relay.endings.found(policy, status)
    if ending.counted is not None:
        duration_s = relay.now() - exchange.started_s
        ending.counted.observe(duration_s)
        if duration_s >= ending.noted_from_s:
            exchange.noteworthy(status, "client_gone" if exchange.abandoned or exchange.state == DONE else "answered")
    account = exchange.account
    if account is None:
        _unidentified_answered(exchange, status)
        return
    if not exchange.metered:
        return
    charge, free_units = ending.charge_microcents, 0
    if charge is None:
        void(exchange)
        return
    hold, free = exchange.hold, policy.cost.free
    exchange.hold = None
    exchange.metered = False
    if free is not None or exchange.meter is not None:
        charge, free_units = _measured(exchange, policy, charge)
    if hold is None:
        # When it began: whether an idempotency key still counted, and which window it is in, was asked then.
        event_id = relay.new_event_id()
        occurred_ms = wall_clock_ms() - round((relay.now() - exchange.started_s) * 1000)
    else:
        event_id, occurred_ms = hold.hold_id, hold.admitted_ms
        relay.admission.finished(hold, charge, free_units)
    pointer = policy.cast_id_pointer
    cast_id = identifier_in(exchange.captured, pointer) if exchange.captured and pointer is not None else None
    # What was sent, nearly always the hold's own; where nothing was, what came.
    if exchange.request_id and hold is not None and exchange.request.request_id is None:
        request_id = event_id
    else:
        request_id = (exchange.request_id or exchange.request.request_id or b"").decode("latin-1")
    terms = None if free is None and not exchange.key else terms_at(policy, occurred_ms, free_units, exchange.key)
    name, status = policy.name, ending.upstream_status
    event = event_id, account.account_id, name, occurred_ms, charge, status, "posted", cast_id, request_id, terms
    exchange.charge(_event_of(UsageEvent, event))


def void(exchange: "Exchange") -> None:
    """Gives the hold back, where there is one: nothing is charged."""
    hold, exchange.hold = exchange.hold, None
    exchange.metered = False
    if hold is not None:
        exchange.relay.admission.void(hold)


def _measured(exchange: "Exchange", policy: Policy, charge: int) -> tuple[int, int]:
    """What was seen of the call comes to, and counts in a free tier; ``charge`` is the price of one without a measure.

    More than was held is charged all the same, and counted.
    """
    cost = policy.cost
    units: list[Fraction | int | None] = []
    if exchange.meter is not None:
        units = exchange.meter.units(monotonic())
        charge = cost.measured_microcents(units)
        exchange.relay.counters.measured(
            policy.name, is_missing=None in units, is_over_hold=charge > cost.hold_microcents
        )
    return charge, 0 if cost.free is None else cost.free_units(cost.free, units, charge)


def _unidentified_answered(exchange: "Exchange", status: int) -> None:
    """Phase 1 let somebody in whom we do not know: what the cache believes of these credentials is wrong."""
    credentials = exchange.request.credentials
    if 200 <= status < 300 and credentials is not None:
        exchange.relay.identify.forget(credentials)
        exchange.relay.counters.unidentified_success.add()


def leave_abandoned(exchange: "Exchange") -> None:
    """The answer that its client did not wait for is over."""
    if exchange.abandoned and exchange in exchange.relay.abandoned:
        exchange.relay.abandoned.remove(exchange)
        exchange.relay.in_flight -= 1
