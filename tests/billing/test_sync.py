"""What webhooks have missed is read from Stripe and repaired."""

import asyncio

import pytest

from gateway.billing_sync import AlreadySyncingError, sync, sync_at_start
from gateway.metrics import Metrics
from gateway.payments import PaymentsUnavailableError
from tests.billing.world import Scene
from tests.hosted.world import KEY


async def paid_unheard(scene: Scene) -> str:
    """A subscription of which no event was delivered."""
    await scene.stub.control("PUT", "delivery", {"lose": ["*"]})
    subscription = await scene.subscribe(KEY)
    assert (await scene.standing())["status"] == "none"
    return subscription


async def again(scene: Scene) -> None:
    """As if the last sync were long ago."""
    await scene.database.execute("UPDATE stripe_sync SET leased_until = now()")


async def test_lost_events_are_handled_and_the_next_cast_knows(scene: Scene) -> None:
    assert await scene.elsewhere.may_cast(scene.account_id)
    assert not await scene.elsewhere.may_cast(scene.account_id)
    subscription = await paid_unheard(scene)
    report = await sync(scene.here.billing)
    assert report.events_missed > 0
    standing = await scene.standing()
    assert (standing["status"], standing["plan"], standing["stripe_subscription_id"]) == ("active", "pro", subscription)
    assert await scene.elsewhere.may_cast(scene.account_id)
    await scene.stub.control("POST", f"subscriptions/{subscription}/cancel")
    await again(scene)
    await sync(scene.elsewhere.billing)
    assert (await scene.standing())["status"] == "canceled"


async def test_a_second_sync_finds_nothing_to_do(scene: Scene) -> None:
    await paid_unheard(scene)
    await sync(scene.here.billing)
    before = await scene.standing()
    await again(scene)
    report = await sync(scene.here.billing)
    assert (report.events_missed, report.subscriptions_repaired) == (0, 0)
    assert await scene.standing() == before


async def test_a_subscription_whose_events_are_gone_is_taken_over(scene: Scene) -> None:
    """Stripe keeps events for 30 days; here they are known, and the subscription is not."""
    await scene.subscribe(KEY)
    await scene.database.execute("DELETE FROM stripe_subscriptions")
    await scene.database.execute("UPDATE billing_accounts SET plan = NULL, status = 'none'")
    report = await sync(scene.here.billing)
    assert (report.events_missed, report.subscriptions_repaired) == (0, 1)
    assert ((await scene.standing())["status"], (await scene.standing())["plan"]) == ("active", "pro")


async def test_a_delivery_that_comes_after_the_sync_has_no_effect(scene: Scene) -> None:
    await scene.stub.control("PUT", "delivery", {"running": False})
    session_id = (await (await scene.here.post("/v1/billing/checkout", KEY)).json())["session_id"]
    paid = await scene.stub.control("POST", f"checkout/{session_id}/pay")
    await sync(scene.here.billing)
    before = await scene.standing()
    assert before["status"] == "active"
    await scene.stub.control("PUT", "delivery", {"running": True, "order": "shuffle", "concurrency": 8})
    await scene.stub.idle()
    assert await scene.standing() == before
    assert before["stripe_subscription_id"] == paid["subscription"]


async def test_one_of_a_fleet_that_starts_does_it(scene: Scene) -> None:
    await paid_unheard(scene)
    metrics = Metrics()
    await asyncio.gather(*(sync_at_start(gateway.billing, metrics) for gateway in (scene.here, scene.elsewhere) * 3))
    assert metrics.counter("castgate_billing_syncs_total", result="ok").value == 1
    assert metrics.counter("castgate_billing_syncs_total", result="error").value == 0
    metrics.close()
    assert (await scene.standing())["plan"] == "pro"
    with pytest.raises(AlreadySyncingError):
        await sync(scene.here.billing)


async def test_a_sync_that_fails_leaves_the_way_free(scene: Scene) -> None:
    await scene.stub.control("PUT", "faults", [{"mode": "html", "path": "/v1/subscriptions"}])
    with pytest.raises(PaymentsUnavailableError):
        await sync(scene.here.billing)
    await scene.stub.control("PUT", "faults", [])
    await sync(scene.here.billing)
