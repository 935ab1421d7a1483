"""One of Stripe's events, handled again by an operator: through the real library, and with no effect twice."""

from collections.abc import Callable
from typing import Any

import pytest
from aiohttp.test_utils import TestClient

from tests.billing.conftest import scene as scene  # noqa: PLC0414  a fixture
from tests.billing.conftest import settings_of
from tests.billing.world import Scene
from tests.console.world import TOKEN, WRITE, sign_in
from tests.hosted.world import KEY

Client = TestClient[Any, Any]


@pytest.fixture
def account_id(scene: Scene) -> str:
    return scene.account_id


@pytest.fixture
async def client(scene: Scene, serve: Callable[..., Any]) -> Client:
    billing = settings_of("postgresql://h/d", "redis://h", scene.stub.base_url).billing.model_dump(by_alias=True)
    secrets = {name: billing[name].get_secret_value() for name in ("stripe_secret_key", "stripe_webhook_secret")}
    made: Client = await serve(TOKEN, billing={"stripe_api_base": scene.stub.base_url, **secrets})
    assert await sign_in(made) == 303
    return made


async def replayed(client: Client, event_id: str, status: int = 200) -> dict[str, Any]:
    answer = await client.post(f"/console/webhooks/{event_id}/replay", headers=WRITE)
    assert answer.status == status, await answer.text()
    told: dict[str, Any] = await answer.json()
    return told


async def event_of(scene: Scene, kind: str) -> str:
    """The newest event of that type, as Stripe has it."""
    [event, *_] = [one async for one in scene.here.billing.payments.events_since(0, [kind], 1)]
    return str(event["id"])


async def test_an_event_that_never_came_takes_effect(scene: Scene, client: Client) -> None:
    await scene.stub.control("PUT", "delivery", {"lose": ["*"]})
    subscription = await scene.subscribe(KEY)
    event_id = await event_of(scene, "customer.subscription.created")
    assert (await scene.standing())["status"] == "none"
    told = await replayed(client, event_id)
    assert (told["result"], told["account"], told["subscription"]) == ("applied", scene.account_id, subscription)
    await replayed(client, await event_of(scene, "customer.subscription.updated"))
    standing = await scene.standing()
    assert (standing["status"], standing["plan"], standing["stripe_subscription_id"]) == ("active", "pro", subscription)
    assert await scene.elsewhere.may_cast(scene.account_id)  # every gateway was told
    log = await (await client.get("/console/webhooks")).json()
    assert event_id in [one["id"] for one in log]
    last, first = (await (await client.get(f"/audit?account={scene.account_id}")).json())["entries"]
    assert (first["action"], first["after"]["event"], first["after"]["ended"]) == ("event_replayed", event_id, "well")
    assert first["before"]["status"] == "none"
    assert (last["after"]["plan"], last["after"]["status"]) == ("pro", "active")


async def test_of_an_event_that_was_handled_the_subscription_is_read_again(scene: Scene, client: Client) -> None:
    subscription = await scene.subscribe(KEY)
    event_id = await event_of(scene, "customer.subscription.updated")
    right = await scene.standing()
    # What somebody broke by hand, and what a webhook has missed.
    await scene.database.execute("UPDATE billing_accounts SET plan = NULL, status = 'none'")
    told = await replayed(client, event_id)
    assert (told["result"], told["subscription_read"]) == ("duplicate", "applied")
    standing = await scene.standing()
    assert {**standing, "facts_version": 0} == {**right, "facts_version": 0}
    await scene.stub.control("PUT", "delivery", {"lose": ["*"]})
    await scene.stub.control("POST", f"subscriptions/{subscription}/cancel")
    await replayed(client, event_id)  # says "active" and is old: what counts is how it is now
    assert (await scene.standing())["status"] == "canceled"
    before = await scene.standing()
    for _ in range(2):
        await replayed(client, event_id)
    assert {**await scene.standing(), "facts_version": 0} == {**before, "facts_version": 0}
    rows = await scene.database.fetch("SELECT count(*) FROM stripe_events WHERE id = $1", event_id)
    assert rows[0]["count"] == 1


async def test_an_event_of_nobody_finds_its_account_once_it_is_known(scene: Scene, client: Client) -> None:
    await scene.subscribe(KEY)
    event_id = await event_of(scene, "customer.subscription.updated")
    await scene.database.execute("UPDATE stripe_events SET account_id = NULL")
    assert (await replayed(client, event_id))["account"] == scene.account_id


async def test_what_stripe_has_no_longer_is_read_by_its_subscription_where_that_is_known(
    scene: Scene, client: Client
) -> None:
    subscription = await scene.subscribe(KEY)
    await scene.database.execute(
        "INSERT INTO stripe_events (id, type, created_s, account_id, subscription_id, status)"
        " VALUES ('evt_old', 'customer.subscription.updated', 1, $1, $2, 'past_due'),"
        " ('evt_refund', 'charge.refunded', 1, $1, NULL, NULL)",
        scene.account_id,
        subscription,
    )
    told = await replayed(client, "evt_old")
    assert (told["result"], told["subscription_read"]) == ("duplicate", "applied")
    assert (await scene.standing())["status"] == "active"
    assert "evt_refund" in (await replayed(client, "evt_refund", 404))["message"]
    assert "evt_nothing" in (await replayed(client, "evt_nothing", 404))["message"]
    assert (await replayed(client, "in_1", 404))["error"] == "not_found"
    entries = (await (await client.get("/audit")).json())["entries"]
    assert [one["after"]["ended"].partition(":")[0] for one in entries] == ["failed", "failed", "well"]


async def test_while_stripe_is_away_nothing_happens_and_it_is_said(scene: Scene, client: Client) -> None:
    await scene.subscribe(KEY)
    event_id = await event_of(scene, "customer.subscription.updated")
    before = await scene.standing()
    await scene.stub.control("PUT", "faults", [{"mode": "html", "path": "/v1/events"}])
    assert (await replayed(client, event_id, 503))["error"] == "billing_unavailable"
    assert await scene.standing() == before


async def test_it_is_for_operators_from_our_own_page(scene: Scene, client: Client) -> None:
    answer = await client.post("/console/webhooks/evt_1/replay")
    assert answer.status == 403
    assert (await client.post("/console/sign-out", headers=WRITE)).status == 204
    await replayed(client, "evt_1", 401)
