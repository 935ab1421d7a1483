"""Reading again from Stripe what webhooks may have missed: events that never arrived, then every subscription.

First the events, in the order in which they happened and by the same way as if they had been delivered: so that each is
known, and a late delivery of it has no effect. Then each subscription that differs from what is stored is taken over.
Running it again, or beside webhooks, changes nothing that is right.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import asyncpg
import structlog

from gateway.billing import APPLIED, DAY_S, Billing, BusyError
from gateway.database import QUERIES, StoreError
from gateway.payments import PAGE_SIZE, Json, PaymentsRefusedError, PaymentsUnavailableError
from gateway.policy.stripe_events import HANDLED, EventError, account_of, read_event, read_subscription

if TYPE_CHECKING:
    from gateway.metrics import Metrics

# Stripe keeps events for 30 days, and tries to deliver one for three.
EVENTS_KEPT_S = 30 * DAY_S
DELIVERY_S = 3 * DAY_S
EVENTS_PAGES_MAX = 200  # 20,000 events
SUBSCRIPTIONS_PAGES_MAX = 1000  # 100,000 subscriptions
SYNC_TIMEOUT_S = 900.0
# A fleet that starts, or a worker that is replaced, does not do again what was just done.
NOT_AGAIN_S = 60.0
# Attempts at the start of a worker: Stripe or Postgres may come up after us.
ATTEMPTS_MAX = 5
ATTEMPT_PAUSE_S = 5.0

FAULTS = (StoreError, BusyError, PaymentsUnavailableError, PaymentsRefusedError, asyncpg.PostgresError, TimeoutError)
_log = structlog.get_logger()


class AlreadySyncingError(Exception):
    """Somebody else is at it, or has just done it."""


@dataclass(slots=True, kw_only=True)
class Report:
    """What a sync has found."""

    events_seen: int = 0
    events_missed: int = 0  # and handled now
    subscriptions_seen: int = 0
    subscriptions_repaired: int = 0
    skipped: int = 0  # what could not be read, or is of nobody we know


async def sync(billing: Billing, *, now_s: Callable[[], float] = time.time) -> Report:
    """Read everything again, within SYNC_TIMEOUT_S. Raises AlreadySyncingError, and FAULTS."""
    database = billing.database
    if await database.fetchrow(QUERIES["stripe_sync_lease"], SYNC_TIMEOUT_S) is None:
        raise AlreadySyncingError
    kept_s = 0.0
    try:
        async with asyncio.timeout(SYNC_TIMEOUT_S):
            report = Report()
            await _missed_events(billing, report, now_s())
            await _subscriptions(billing, report)
        kept_s = NOT_AGAIN_S
        return report
    finally:
        with suppress(StoreError, asyncpg.PostgresError):  # then the lease ends by itself
            await database.execute(QUERIES["stripe_sync_done"], kept_s)


async def sync_at_start(billing: Billing, metrics: Metrics) -> None:
    """For a worker that begins: one of the fleet reads everything again, off everybody's path."""
    for attempt in range(ATTEMPTS_MAX):
        try:
            report = await sync(billing)
        except AlreadySyncingError:
            return
        except FAULTS as error:
            metrics.counter("castgate_billing_syncs_total", result="error").add()
            _log.warning("billing_sync_failed", attempt=attempt + 1, error=str(error) or "no end in time")
            await asyncio.sleep(ATTEMPT_PAUSE_S * 2**attempt)
        else:
            metrics.counter("castgate_billing_syncs_total", result="ok").add()
            _log.info(
                "billing_synced",
                events_missed=report.events_missed,
                subscriptions_seen=report.subscriptions_seen,
                subscriptions_repaired=report.subscriptions_repaired,
                skipped=report.skipped,
            )
            return


async def _missed_events(billing: Billing, report: Report, now_s: float) -> None:
    newest = await billing.database.fetchrow(QUERIES["stripe_newest_event"])
    newest_s = newest[0] if newest and newest[0] is not None else 0
    since_s = max(int(now_s) - EVENTS_KEPT_S, newest_s - DELIVERY_S)
    missed: list[Json] = []
    page: list[Json] = []

    async def sort_out() -> None:
        ids = [str(row.get("id")) for row in page]
        records = await billing.database.fetch(QUERIES["stripe_events_unknown"], ids)
        unknown = {record["id"] for record in records}
        missed.extend(row for row in page if row.get("id") in unknown)
        page.clear()

    async for row in billing.payments.events_since(since_s, sorted(HANDLED), EVENTS_PAGES_MAX):
        report.events_seen += 1
        page.append(row)
        if len(page) == PAGE_SIZE:
            await sort_out()
    await sort_out()
    for row in reversed(missed):  # they come newest first
        try:
            event = read_event(row)
        except EventError as error:
            report.skipped += 1
            _log.warning("stripe_event_unreadable", event_id=row.get("id"), error=str(error))
            continue
        await billing.apply(event)
        report.events_missed += 1


async def _subscriptions(billing: Billing, report: Report) -> None:
    page: list[Json] = []

    async def compare() -> None:
        ids = [str(row.get("id")) for row in page]
        known = {
            record["id"]: (record["status"], tuple(record["prices"]))
            for record in await billing.database.fetch(QUERIES["stripe_known_subscriptions"], ids)
        }
        for row in page:
            report.subscriptions_seen += 1
            try:
                found = read_subscription(row)
            except EventError:
                report.skipped += 1
                continue
            if known.get(found.id) == (found.status, found.prices):
                continue
            result = await billing.refresh(found.id, account_of(row))
            if result == APPLIED:
                report.subscriptions_repaired += 1
            else:
                report.skipped += 1
        page.clear()

    async for row in billing.payments.all_subscriptions(SUBSCRIPTIONS_PAGES_MAX):
        page.append(row)
        if len(page) == PAGE_SIZE:
            await compare()
    await compare()
