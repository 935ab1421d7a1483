"""Deliveries in any order, however often and at once, through two gateways, come to what in-order ones come to."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from itertools import count
from typing import Any

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.billing import Billing
from gateway.breaker import Breaker
from gateway.database import Database
from gateway.metrics import Metrics
from gateway.policy.stripe_events import Event, read_event
from gateway.policy.subscriptions import STATUSES
from tests.billing.world import RULES, FakePayments, Json, add_row, event_of, subscription_of
from tests.hosted.world import migrate

EVENTS = 20
DELIVERIES = 100
SEEDS = 200
AT_ONCE = 8
LIVE = [name for name, status in STATUSES.items() if not status.ended]
_numbers = count(1)


class Fleet:
    """Billing of two gateways over one database, and what they were told to tell."""

    def __init__(self, one: Billing, two: Billing, payments: FakePayments, sql: "asyncpg.Connection[Any]") -> None:
        self.gateways = (one, two)
        self.payments = payments
        self.sql = sql

    async def standing(self, account_id: str) -> tuple[object, ...]:
        """What an account's billing comes to, without the names that differ from run to run."""
        row = await self.sql.fetchrow(
            "SELECT status, plan, plan_until, stripe_subscription_id FROM billing_accounts WHERE account_id = $1",
            account_id,
        )
        return () if row is None else (*row[:3], row[3].partition("-")[0])


@pytest.fixture
async def fleet(database_url: str) -> AsyncIterator[Fleet]:
    async with AsyncExitStack() as stack:
        sql: asyncpg.Connection[Any] = await asyncpg.connect(database_url)
        stack.push_async_callback(sql.close)
        await migrate(sql)
        metrics, payments = Metrics(), FakePayments()
        stack.callback(metrics.close)

        def gateway() -> Billing:
            database = Database(
                database_url,
                breaker=Breaker(clock=asyncio.get_running_loop().time, failures_max=1000),
                metrics=metrics,
                acquire_timeout_s=20.0,
                statement_timeout_s=20.0,
            )
            stack.push_async_callback(database.close)

            async def tell(account_id: str, version: int) -> None:
                return None

            return Billing(database=database, payments=payments, rules=lambda: RULES, tell=tell, grace_days=7)  # type: ignore[arg-type]

        yield Fleet(gateway(), gateway(), payments, sql)


def history(source: random.Random, run: str, *, ties: bool) -> tuple[list[Event], dict[str, Json]]:
    """Twenty events of one account's subscriptions in the order in which they happen, and how these are in the end."""
    account_id, customer = f"account-{run}", f"cus-{run}"
    events: list[Event] = []
    now: dict[str, Json] = {}
    created_s, number = 1_000_000, 0
    current = ""
    while len(events) < EVENTS:
        created_s += source.choice([0, 0, 1, 5, 90_000]) if ties else source.choice([1, 5, 90_000])
        begins = not current
        if begins:
            number += 1
            current = f"sub{number}-{run}"
        status = "incomplete" if begins else source.choice([*LIVE, "active", "past_due", "canceled"])
        price = source.choice(["price_pro", "price_team", "price_of_no_plan"])
        thing = subscription_of(
            current,
            status,
            price=price,
            customer=customer,
            account_id=account_id,
            started_s=1000 + number,
            old_shape=source.random() < 0.5,
        )
        kind = "created" if begins else "deleted" if status == "canceled" else "updated"
        if not begins and status != "canceled" and source.random() < 0.25:
            # An invoice and a session tell of a subscription that is as the last event said.
            hint = {"id": "in_1", "object": "invoice", "subscription": current, "customer": customer}
            value = event_of(f"evt{len(events)}-{run}", source.choice(HINTS), created_s, hint)
        else:
            now[current] = thing
            value = event_of(f"evt{len(events)}-{run}", f"customer.subscription.{kind}", created_s, thing)
            if status == "canceled":
                current = ""
        events.append(read_event(value))
    return events, now


HINTS = ("invoice.paid", "invoice.payment_failed", "checkout.session.completed", "charge.refunded")


async def in_order(fleet: Fleet, seed: int, *, ties: bool) -> tuple[object, ...]:
    run = f"{next(_numbers)}"
    events, fleet.payments.now = history(random.Random(seed), run, ties=ties)
    await add_row(fleet.sql, f"account-{run}", f"cus-{run}")
    for event in events:
        await fleet.gateways[0].apply(event)
    return await fleet.standing(f"account-{run}")


async def anyhow(fleet: Fleet, seed: int, *, ties: bool) -> tuple[object, ...]:
    run = f"{next(_numbers)}"
    events, fleet.payments.now = history(random.Random(seed), run, ties=ties)
    source = random.Random(seed + 1)
    await add_row(fleet.sql, f"account-{run}", f"cus-{run}")
    deliveries = events + source.choices(events, k=DELIVERIES - EVENTS)
    source.shuffle(deliveries)
    while deliveries:
        some, deliveries = deliveries[:AT_ONCE], deliveries[AT_ONCE:]
        await asyncio.gather(*(source.choice(fleet.gateways).apply(event) for event in some))
    recorded = await fleet.sql.fetchval("SELECT count(*) FROM stripe_events WHERE account_id = $1", f"account-{run}")
    assert recorded == EVENTS
    return await fleet.standing(f"account-{run}")


@pytest.mark.timeout(400)
async def test_100_deliveries_of_20_events_come_to_what_in_order_ones_do(fleet: Fleet) -> None:
    """Events of one second among them: Stripe can be asked."""
    await for_many_seeds(fleet, ties=True, away=False)


@pytest.mark.timeout(400)
async def test_so_they_do_while_stripe_cannot_be_asked(fleet: Fleet) -> None:
    await for_many_seeds(fleet, ties=False, away=True)


async def for_many_seeds(fleet: Fleet, *, ties: bool, away: bool) -> None:
    """Hypothesis drives from a thread, since its examples are not coroutines; they run on this loop."""
    fleet.payments.away = away
    loop = asyncio.get_running_loop()

    @settings(
        max_examples=SEEDS,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(seed=st.integers(0, 2**32))
    def check(seed: int) -> None:
        async def compare() -> None:
            assert await anyhow(fleet, seed, ties=ties) == await in_order(fleet, seed, ties=ties)

        asyncio.run_coroutine_threadsafe(compare(), loop).result()

    await asyncio.to_thread(check)


async def test_a_reading_that_somebody_was_faster_than_is_not_written(fleet: Fleet) -> None:
    """Two events of one second, at two gateways: the one that read first commits last, and must not undo the other."""
    here, elsewhere = fleet.gateways
    old = subscription_of("sub-x", "active", account_id="a")
    new = subscription_of("sub-x", "unpaid", account_id="a")
    fleet.payments.now = {"sub-x": old}
    await here.apply(read_event(event_of("evt1", "customer.subscription.updated", 10, old)))
    has_read, may_go_on = asyncio.Event(), asyncio.Event()
    ask = fleet.payments.subscription

    async def slow(subscription_id: str) -> Json:
        answer = await ask(subscription_id)
        has_read.set()
        await may_go_on.wait()
        return answer

    fleet.payments.subscription = slow  # type: ignore[method-assign]
    late = asyncio.gather(here.apply(read_event(event_of("evt2", "customer.subscription.updated", 10, old))))
    await has_read.wait()
    fleet.payments.subscription = ask  # type: ignore[method-assign]
    fleet.payments.now = {"sub-x": new}
    await elsewhere.apply(read_event(event_of("evt3", "customer.subscription.updated", 10, new)))
    may_go_on.set()
    await late
    assert (await fleet.standing("a"))[0] == "unpaid"
