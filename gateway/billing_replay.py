"""One of Stripe's events, handled again: fetched from Stripe by its id, and by the same way as if it came by webhook.

One that was never handled takes effect. One that was has had its effect, and what it said may be old by now: instead,
the subscription that it is about is read from Stripe and taken over as it is. Doing it again, or beside webhooks,
changes nothing that is right.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway.billing import DUPLICATE
from gateway.database import QUERIES
from gateway.payments import PaymentsRefusedError
from gateway.policy.stripe_events import EventError, read_event

if TYPE_CHECKING:
    import asyncpg

    from gateway.billing import Billing
    from gateway.policy.stripe_events import Event


class NoEventError(Exception):
    """Neither Stripe nor we have an event of this id from which anything could follow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """What came of it. ``result`` is one of billing's; ``subscription``: how reading it again ended, where it was."""

    event_id: str
    type: str
    result: str
    subscription_id: str | None
    subscription: str | None
    account_id: str | None
    before: str | None  # where the account's billing stood, in JSON
    after: str | None


async def replay(billing: Billing, event_id: str) -> Replayed:
    """Handle the event again. Raises NoEventError, EventError, and billing_sync's FAULTS."""
    event = await _fetched(billing, event_id)
    known = await billing.database.fetchrow(QUERIES["stripe_event_known"], event_id)
    if event is None and known is None:
        raise NoEventError(f"Stripe has no event {event_id}; it keeps them for 30 days")
    before = await _standing(billing, await _account_of(billing, event, known))
    result = DUPLICATE if event is None else await billing.apply(event)
    subscription_id = event.subscription_id if event is not None else known["subscription_id"] if known else None
    if event is None and subscription_id is None:
        raise NoEventError(f"Stripe has no event {event_id} any more, and it is about no subscription")
    read_again = None
    if result == DUPLICATE and subscription_id is not None:
        read_again = await billing.refresh(subscription_id, event.account_id if event is not None else None)
        await billing.database.execute(QUERIES["stripe_event_owner"], event_id)
    after = await billing.database.fetchrow(QUERIES["stripe_event_known"], event_id)
    return Replayed(
        event_id=event_id,
        type=after["type"] if after else "",
        result=result,
        subscription_id=subscription_id,
        subscription=read_again,
        account_id=after["account_id"] if after else None,
        before=before,
        after=await _standing(billing, after["account_id"] if after else None),
    )


async def _account_of(billing: Billing, event: Event | None, known: asyncpg.Record | None) -> str | None:
    """Whose it is, as far as that is known before."""
    if event is None or event.kind is None:
        return known["account_id"] if known else None
    ids = event.subscription_id, event.customer_id, event.account_id
    row = await billing.database.fetchrow(QUERIES["stripe_account"], *ids)
    return row["account_id"] if row else None


async def _standing(billing: Billing, account_id: str | None) -> str | None:
    row = await billing.database.fetchrow(QUERIES["audit_billing"], account_id) if account_id else None
    return row["facts"] if row else None


async def _fetched(billing: Billing, event_id: str) -> Event | None:
    """As Stripe has it; None where it has it no longer."""
    try:
        event = read_event(await billing.payments.event(event_id))
    except PaymentsRefusedError as error:
        if error.is_missing:
            return None
        raise
    if event.id != event_id:
        raise EventError("id", f"the event {event_id}")
    return event
