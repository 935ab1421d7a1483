"""What is known of accounts' billing, and how Stripe's events change it.

An event is handled in one transaction: its id is inserted (a second delivery waits for the first and then finds it
there), the account's row is locked, the subscription is written, and what all of the account's subscriptions come to is
worked out anew. Whether the event is newer than what is known is decided under that lock, so two events of an account
that arrive at once have the same effect as one after the other, on however many gateways.

Where only Stripe can tell which of two is the newer, it is asked between two transactions, never within one. The
row's revision says whether somebody was faster meanwhile; then Stripe is asked again, since an older reading must not
replace a newer one. While Stripe cannot be asked, the event's own word counts.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

import asyncpg
import structlog

from gateway.database import QUERIES
from gateway.payments import PaymentsRefusedError, PaymentsUnavailableError
from gateway.policy.stripe_events import INVOICE, MONEY, SESSION, SUBSCRIPTION, Event, EventError, read_subscription
from gateway.policy.subscriptions import (
    FINAL,
    NEWER,
    OLDER,
    Known,
    Standing,
    Subscription,
    place,
    standing_of,
    status_of,
)

if TYPE_CHECKING:
    from gateway.database import Database, PoolConnection
    from gateway.payments import Payments
    from gateway.policy.rules import Rules

# What became of an event; labels of the metric.
APPLIED = "applied"
DUPLICATE = "duplicate"
STALE = "stale"  # older than what is known
RECORDED = "recorded"  # noted, and nothing follows from it
UNMATCHED = "unmatched"  # of no account that we know

# Stripe is asked again where others were faster; events of one subscription go one by one in a process, so it takes as
# many gateways that handle the same subscription at once to get there.
READINGS_MAX = 10
# Stripe waits about ten seconds for a webhook's answer.
READING_TIMEOUT_S = 3.0
# After a failed reading events go by their own word for so long, rather than each wait for Stripe.
READING_PAUSE_S = 5.0
# Of the pool's connections; the ledger, seeding and identification must always find one.
TRANSACTIONS_MAX = 2
DAY_S = 86_400

_log = structlog.get_logger()


class BusyError(Exception):
    """The event could not be settled because others of the same subscription kept coming; it should be sent again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reading:
    """A subscription as Stripe showed it when the row had ``revision``; None: Stripe could not be asked."""

    revision: int
    subscription: Subscription | None


class _ReadingWantedError(Exception):
    """Stripe must be asked before this event can be settled."""

    def __init__(self, revision: int) -> None:
        super().__init__()
        self.revision = revision


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outcome:
    result: str
    account_id: str | None = None
    version: int = 0


class Billing:
    """Billing of one process. ``tell`` makes an account's facts version known to every replica."""

    def __init__(
        self,
        *,
        database: Database,
        payments: Payments,
        rules: Callable[[], Rules],
        tell: Callable[[str, int], Awaitable[object]],
        grace_days: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.database = database
        self.payments = payments
        self._rules = rules
        self._tell = tell
        self._grace_s = grace_days * DAY_S
        self._clock = clock
        self._no_reading_until_s = float("-inf")
        self._room = asyncio.Semaphore(TRANSACTIONS_MAX)
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def apply(self, event: Event) -> str:
        """Handle ``event``, once whoever sends it how often; returns one of the results above.

        Its effect is committed, and known to every replica, when this returns. Raises StoreError while Postgres is
        away, BusyError: nothing has happened then.
        """
        turn = self._turns.setdefault(event.subscription_id or event.id, asyncio.Lock())
        async with turn:
            outcome = await self._settle(
                lambda connection, reading: self._handle(connection, event, reading), event.subscription_id
            )
        if event.kind == MONEY:
            _log.warning("stripe_money_event", type=event.type, event_id=event.id, account=outcome.account_id)
        return await self._told(outcome)

    async def refresh(self, subscription_id: str, account_id: str | None) -> str:
        """Take a subscription over as Stripe shows it now; ``account_id`` is whose its metadata say it is."""
        turn = self._turns.setdefault(subscription_id, asyncio.Lock())
        async with turn:
            outcome = await self._settle(
                lambda connection, reading: self._take_over(connection, subscription_id, account_id, reading),
                subscription_id,
            )
        return await self._told(outcome)

    async def _told(self, outcome: _Outcome) -> str:
        # A duplicate too: the first delivery's process may have died between its commit and this.
        if outcome.account_id is not None and outcome.version > 0:
            await self._tell(outcome.account_id, outcome.version)
        return outcome.result

    async def _settle(
        self,
        act: Callable[[PoolConnection, _Reading | None], Awaitable[_Outcome]],
        subscription_id: str | None,
    ) -> _Outcome:
        reading: _Reading | None = None
        for _ in range(READINGS_MAX):
            try:
                async with self._room, self.database.transaction() as connection:
                    # A row that another gateway holds for long is no sign that Postgres is away.
                    await connection.execute(QUERIES["billing_lock_timeout"])
                    return await act(connection, reading)
            except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError) as error:
                raise BusyError(str(error)) from error
            except _ReadingWantedError as wanted:
                assert subscription_id is not None
                reading = _Reading(revision=wanted.revision, subscription=await self._read(subscription_id))
        raise BusyError(f"subscription {subscription_id} kept changing")

    async def _read(self, subscription_id: str) -> Subscription | None:
        if self._clock() < self._no_reading_until_s:
            return None
        try:
            async with asyncio.timeout(READING_TIMEOUT_S):
                return read_subscription(await self.payments.subscription(subscription_id))
        except (PaymentsUnavailableError, TimeoutError) as error:
            self._no_reading_until_s = self._clock() + READING_PAUSE_S
            _log.warning(
                "stripe_reading_failed", subscription=subscription_id, reason=str(error) or "no answer in time"
            )
        except (PaymentsRefusedError, EventError) as error:
            _log.warning("stripe_reading_failed", subscription=subscription_id, reason=str(error))
        return None

    async def _handle(self, connection: PoolConnection, event: Event, reading: _Reading | None) -> _Outcome:
        account_id = None
        if event.kind is not None:
            account_id = await connection.fetchval(
                QUERIES["stripe_account"], event.subscription_id, event.customer_id, event.account_id
            )
        inserted = await connection.fetchval(
            QUERIES["stripe_event_insert"],
            event.id,
            event.type,
            event.created_s,
            account_id,
            event.subscription_id,
            event.status,
        )
        if inserted is None:
            known = await connection.fetchrow(QUERIES["stripe_event_account"], event.id)
            if known is None:
                return _Outcome(result=DUPLICATE)
            return _Outcome(result=DUPLICATE, account_id=known["account_id"], version=known["facts_version"])
        if event.kind is None:
            return _Outcome(result=RECORDED)
        if account_id is None:
            _log.warning("stripe_event_unmatched", type=event.type, event_id=event.id)
            return _Outcome(result=UNMATCHED)
        account = await connection.fetchrow(QUERIES["billing_account_lock"], account_id)
        assert account is not None
        known_ones = await _subscriptions_of(connection, account_id)
        before = next((one for one in known_ones if one.subscription.id == event.subscription_id), None)
        result, after, created_s = _changed(event, before, reading)
        if after is not None:
            await _write(connection, account_id, after, created_s)
        if event.customer_id is not None and account["stripe_customer_id"] is None:
            await connection.execute(QUERIES["billing_customer_link"], account_id, event.customer_id)
        version = await self._work_out(connection, account, account_id, event.customer_id)
        return _Outcome(result=result, account_id=account_id, version=version)

    async def _take_over(
        self, connection: PoolConnection, subscription_id: str, claimed_id: str | None, reading: _Reading | None
    ) -> _Outcome:
        customer_id = reading.subscription.customer_id if reading and reading.subscription else None
        account_id = await connection.fetchval(QUERIES["stripe_account"], subscription_id, customer_id, claimed_id)
        if account_id is None and reading is not None:
            return _Outcome(result=UNMATCHED)
        account = await connection.fetchrow(QUERIES["billing_account_lock"], account_id) if account_id else None
        known_ones = await _subscriptions_of(connection, account_id) if account_id else []
        before = next((one for one in known_ones if one.subscription.id == subscription_id), None)
        revision = before.revision if before else 0
        if reading is None or (reading.subscription is not None and reading.revision != revision):
            raise _ReadingWantedError(revision)
        if reading.subscription is None:
            raise PaymentsUnavailableError("a subscription could not be read")
        assert account is not None
        await _write(connection, account_id, reading.subscription, before.event_created_s if before else 0)
        version = await self._work_out(connection, account, account_id, customer_id)
        return _Outcome(result=APPLIED, account_id=account_id, version=version)

    async def _work_out(
        self, connection: PoolConnection, account: asyncpg.Record, account_id: str, customer_id: str | None
    ) -> int:
        """Plan and status from all that is known now; the account's facts version."""
        known = await _subscriptions_of(connection, account_id)
        if not known:  # a plan that somebody gave by hand stays
            return int(account["facts_version"])
        plans = {plan.stripe_price: plan.name for plan in self._rules().plans.values() if plan.stripe_price}
        standing = standing_of(known, plans, self._grace_s)
        _report(account_id, account, standing, known)
        version = await connection.fetchval(
            QUERIES["billing_account_write"],
            account_id,
            customer_id,
            standing.subscription_id,
            standing.plan,
            standing.status,
            standing.plan_until_s,
        )
        return int(version)


def _changed(event: Event, before: Known | None, reading: _Reading | None) -> tuple[str, Subscription | None, int]:
    """What becomes of the event, what is to be written (None: nothing), and as of when.

    Raises _ReadingWantedError where that depends on how the subscription is at Stripe.
    """
    if event.subscription_id is None or event.kind not in (SUBSCRIPTION, SESSION, INVOICE):
        return RECORDED, None, 0
    revision = before.revision if before else 0
    newest_s = max(event.created_s, before.event_created_s if before else 0)
    told = event.subscription
    # A session or an invoice only hints that the subscription may have changed: Stripe is asked unless more is known.
    where = place(told.status if told else "", event.created_s, before)
    if where in (OLDER, FINAL):
        return STALE, None, 0
    if where == NEWER and told is not None:
        return APPLIED, told, newest_s if status_of(told.status).ended else event.created_s
    if reading is None or (reading.subscription is not None and reading.revision != revision):
        raise _ReadingWantedError(revision)
    if reading.subscription is not None:
        return APPLIED, reading.subscription, newest_s
    if told is not None:
        # Of two in one second, "created" is the first.
        is_first = event.type == "customer.subscription.created"
        return (STALE, None, 0) if is_first else (APPLIED, told, newest_s)
    return RECORDED, None, 0


async def _subscriptions_of(connection: PoolConnection, account_id: str) -> Sequence[Known]:
    return [
        Known(
            subscription=Subscription(
                id=row["id"],
                customer_id=row["customer_id"],
                status=row["status"],
                prices=tuple(row["prices"]),
                started_s=row["started_s"],
                period_start_s=row["period_start_s"],
                period_end_s=row["period_end_s"],
                cancels=row["cancels"],
            ),
            event_created_s=row["event_created_s"],
            revision=row["revision"],
            past_due_s=row["past_due_s"],
        )
        for row in await connection.fetch(QUERIES["stripe_subscriptions_of"], account_id)
    ]


async def _write(connection: PoolConnection, account_id: str, subscription: Subscription, event_created_s: int) -> None:
    await connection.execute(
        QUERIES["stripe_subscription_write"],
        subscription.id,
        account_id,
        subscription.customer_id,
        subscription.status,
        list(subscription.prices),
        subscription.started_s,
        subscription.period_start_s,
        subscription.period_end_s,
        subscription.cancels,
        event_created_s,
    )


def _report(account_id: str, account: asyncpg.Record, standing: Standing, known: Sequence[Known]) -> None:
    """A line for a change, and a warning for what a person should look at."""
    paying = [one.subscription.id for one in known if status_of(one.subscription.status).open]
    if len(paying) > 1:
        _log.warning("account_has_several_subscriptions", account=account_id, subscriptions=paying)
    if standing.plan is None and status_of(standing.status).plan != "default":
        _log.error("subscription_of_no_plan", account=account_id, subscription=standing.subscription_id)
    if (account["status"], account["plan"]) != (standing.status, standing.plan):
        _log.info("account_billing_changed", account=account_id, status=standing.status, plan=standing.plan)
