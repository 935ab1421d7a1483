"""From free to paid and back, as an account's owner and its casts see it; the real library talks to the stand-in."""

import asyncio
from typing import Any

import pytest

from tests.billing.world import Scene
from tests.hosted.world import KEY, SESSION


async def test_paying_raises_the_limit_of_the_very_next_cast_on_every_replica_and_ending_lowers_it(
    scene: Scene,
) -> None:
    gateways = (scene.here, scene.elsewhere)
    assert await scene.here.may_cast(scene.account_id)
    assert not await scene.elsewhere.may_cast(scene.account_id)  # free: two cents a month, and they are held

    subscription = await scene.subscribe(KEY)
    standing = await scene.standing()
    assert (standing["status"], standing["plan"]) == ("active", "pro")
    assert standing["stripe_subscription_id"] == subscription
    for gateway in gateways:
        assert await gateway.may_cast(scene.account_id)

    await scene.stub.control("POST", f"subscriptions/{subscription}/cancel")
    await scene.stub.idle()
    standing = await scene.standing()
    assert (standing["status"], standing["plan"]) == ("canceled", None)
    for gateway in gateways:
        assert not await gateway.may_cast(scene.account_id)


async def test_an_upgrade_changes_the_plan_by_its_price(scene: Scene) -> None:
    subscription = await scene.subscribe(KEY)
    await scene.stub.control("POST", f"subscriptions/{subscription}/change_price", {"price": "price_team"})
    await scene.stub.idle()
    assert (await scene.standing())["plan"] == "team"


async def test_a_payment_that_fails_keeps_the_plan_for_the_days_of_grace(scene: Scene) -> None:
    subscription = await scene.subscribe(KEY)
    await scene.stub.control("POST", f"subscriptions/{subscription}/fail_payment")
    await scene.stub.idle()
    standing = await scene.standing()
    assert (standing["status"], standing["plan"]) == ("past_due", "pro")
    left = await scene.database.fetchrow("SELECT $1::timestamptz - now() AS days", standing["plan_until"])
    assert left is not None
    assert round(left["days"].total_seconds() / 86_400) == 7

    await scene.stub.control("POST", f"subscriptions/{subscription}/pay")
    await scene.stub.idle()
    standing = await scene.standing()
    assert (standing["status"], standing["plan_until"]) == ("active", None)


async def test_the_plan_ends_with_the_grace_without_any_event(scene: Scene) -> None:
    subscription = await scene.subscribe(KEY)
    await scene.stub.control("POST", f"subscriptions/{subscription}/fail_payment")
    await scene.stub.idle()
    await scene.database.execute(
        "UPDATE billing_accounts SET plan_until = now() + interval '300 ms' WHERE account_id = $1", scene.account_id
    )
    account = scene.here.replica.accounts.get(scene.account_id)
    await scene.here.replica.accounts.load([account])
    assert await scene.here.may_cast(scene.account_id)
    async with asyncio.timeout(5):
        while account.plan != "free":
            await asyncio.sleep(0.02)
    assert not await scene.here.may_cast(scene.account_id)
    await scene.here.replica.accounts.load([account])
    assert account.plan == "free"


async def test_a_bank_that_answers_later_gives_the_plan_when_it_has_paid(scene: Scene) -> None:
    answer = await scene.here.post("/v1/billing/checkout", KEY)
    session_id = (await answer.json())["session_id"]
    await scene.stub.control("POST", f"checkout/{session_id}/pay_later")
    await scene.stub.idle()
    assert (await scene.standing())["status"] == "incomplete"
    assert (await scene.standing())["plan"] is None
    await scene.stub.control("POST", f"checkout/{session_id}/settle_paid")
    await scene.stub.idle()
    assert ((await scene.standing())["status"], (await scene.standing())["plan"]) == ("active", "pro")


async def test_a_pause_takes_the_plan_away_and_its_end_gives_it_back(scene: Scene) -> None:
    subscription = await scene.subscribe(KEY)
    await scene.stub.control("POST", f"subscriptions/{subscription}/pause")
    await scene.stub.idle()
    assert ((await scene.standing())["status"], (await scene.standing())["plan"]) == ("paused", None)
    await scene.stub.control("POST", f"subscriptions/{subscription}/resume")
    await scene.stub.idle()
    assert ((await scene.standing())["status"], (await scene.standing())["plan"]) == ("active", "pro")


@pytest.mark.parametrize("what", ["refund", "dispute", "trial_will_end", "advance"])
async def test_what_is_for_people_to_look_at_leaves_the_plan(scene: Scene, what: str) -> None:
    subscription = await scene.subscribe(KEY)
    await scene.stub.control("POST", f"subscriptions/{subscription}/{what}")
    await scene.stub.idle()
    assert ((await scene.standing())["status"], (await scene.standing())["plan"]) == ("active", "pro")
    deliveries = (await scene.stub.control("GET", "deliveries"))["data"]
    assert {delivery["where"] for delivery in deliveries} == {"delivered"}


@pytest.mark.parametrize("version", ["2017-08-15", "2026-10-28.endive"])
async def test_events_of_both_generations_tell_the_same(scene: Scene, version: str) -> None:
    endpoints = await scene.stub.control("GET", "endpoints")
    endpoint = {"url": endpoints[0]["url"], "secrets": ["whsec_of_a_stand_in"], "api_version": version}
    await scene.stub.control("PUT", "endpoints", [endpoint])
    subscription = await scene.subscribe(KEY)
    assert (await scene.standing())["plan"] == "pro"
    row = await scene.database.fetchrow("SELECT * FROM stripe_subscriptions WHERE id = $1", subscription)
    assert row is not None
    assert row["prices"] == ["price_pro"]
    assert row["period_end_s"] > row["period_start_s"] > 0
    await scene.stub.control("POST", f"subscriptions/{subscription}/fail_payment")
    await scene.stub.idle()
    assert (await scene.standing())["status"] == "past_due"
    paid: list[Any] = await scene.database.fetch(
        "SELECT subscription_id FROM stripe_events WHERE type IN ('invoice.paid', 'invoice.payment_failed')"
    )
    assert {record["subscription_id"] for record in paid} == {subscription}


async def test_the_session_cookie_pays_too_but_not_from_another_sites_page(scene: Scene) -> None:
    cookie = {"Cookie": f"session={SESSION}"}
    answer = await scene.here.app.post("/v1/billing/checkout", json={}, headers=cookie)
    assert answer.status == 200
    forged = {**cookie, "Origin": "https://evil.example"}
    answer = await scene.here.app.post("/v1/billing/checkout", json={}, headers=forged)
    assert answer.status == 401
