"""Asking for a page to pay on, and for the portal; and what is answered while Stripe is away."""

import asyncio
import json
import time
from typing import Any

import pytest
from aiohttp import ClientResponse

from tests.billing.world import Scene, deliver, event_of, subscription_of
from tests.hosted.world import KEY, add_account
from tests.stripe_stub.running import KEY as STRIPE_KEY
from tests.stripe_stub.running import SECRET

CHECKOUT, PORTAL = "/v1/billing/checkout", "/v1/billing/portal"


async def problem(answer: ClientResponse) -> tuple[int, str, str]:
    body = await answer.json()
    return answer.status, body["error"], body.get("details", [{"field": ""}])[0]["field"]


async def test_a_checkout_says_whose_it_is_in_every_place_that_stripe_keeps(scene: Scene) -> None:
    answer = await scene.here.post(CHECKOUT, KEY, {"plan": "team"})
    body = await answer.json()
    assert (answer.status, set(body)) == (200, {"url", "session_id"})
    [session] = await scene.stub.objects("checkout.session")
    [customer] = await scene.stub.objects("customer")
    assert session["id"] == body["session_id"]
    assert session["client_reference_id"] == scene.account_id
    assert session["metadata"] == {"account_id": scene.account_id, "plan": "team"}
    assert session["customer"] == customer["id"]
    assert customer["metadata"] == {"account_id": scene.account_id}
    assert session["success_url"] == "https://shop.example/thanks?session={CHECKOUT_SESSION_ID}"
    assert session["cancel_url"] == "https://shop.example/pricing"
    [asked] = [row for row in await requests(scene) if row["path"] == "/v1/checkout/sessions"]
    assert asked["parameters"]["line_items"][0]["price"] == "price_team"
    assert asked["parameters"]["subscription_data"]["metadata"]["account_id"] == scene.account_id
    assert asked["headers"]["Stripe-Version"] == "2026-10-28.endive"
    assert "X-Stripe-Client-Telemetry" not in asked["headers"]


async def requests(scene: Scene) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = (await scene.stub.control("GET", "requests"))["data"]
    return rows


async def test_without_a_body_the_first_paid_plan_is_meant(scene: Scene) -> None:
    answer = await scene.here.app.post(CHECKOUT, headers={"Authorization": f"Bearer {KEY}"})
    assert answer.status == 200
    [session] = await scene.stub.objects("checkout.session")
    assert session["metadata"]["plan"] == "pro"


@pytest.mark.parametrize(
    ("body", "answered"),
    [
        ({"plan": "gold"}, (404, "not_found", "plan")),
        ({"plan": "free"}, (422, "unprocessable", "plan")),
        ({"plan": ""}, (400, "invalid_request", "plan")),
        ({"plan": 1}, (400, "invalid_request", "plan")),
        ({"price": "price_x"}, (400, "invalid_request", "price")),
        ({"customer": "cus_x"}, (400, "invalid_request", "customer")),
        ([], (400, "invalid_request", "body")),
        ({"success_url": "https://evil.example/"}, (422, "unprocessable", "success_url")),
        ({"cancel_url": "https://app.example.evil.example/"}, (422, "unprocessable", "cancel_url")),
        ({"success_url": "http://app.example/"}, (422, "unprocessable", "success_url")),
        ({"success_url": "https://app.example:8443/"}, (422, "unprocessable", "success_url")),
        ({"success_url": "https://app.example@evil.example/"}, (400, "invalid_request", "success_url")),
        ({"success_url": "javascript:alert(1)"}, (400, "invalid_request", "success_url")),
    ],
)
async def test_what_cannot_be_bought_or_led_back_to_is_refused(
    scene: Scene, body: object, answered: tuple[int, str, str]
) -> None:
    answer = await scene.here.post(CHECKOUT, KEY, body)
    assert await problem(answer) == answered
    assert await scene.stub.objects("checkout.session") == []


async def test_a_request_may_lead_back_to_an_allowed_site(scene: Scene) -> None:
    urls = {"success_url": "https://app.example/paid?x=1", "cancel_url": "http://localhost:3000/pricing"}
    assert (await scene.here.post(CHECKOUT, KEY, urls)).status == 200
    [session] = await scene.stub.objects("checkout.session")
    assert {name: session[name] for name in urls} == urls


async def test_two_first_checkouts_at_once_make_one_customer(scene: Scene) -> None:
    await scene.stub.control("PUT", "faults", [{"mode": "slow", "path": "/v1/customers", "delay_s": 0.2}])
    gateways = (scene.here, scene.elsewhere) * 4
    answers = await asyncio.gather(*(gateway.post(CHECKOUT, KEY) for gateway in gateways))
    assert 200 in {answer.status for answer in answers}
    assert {answer.status for answer in answers} <= {200, 503}  # some waited for the first to be made, in vain
    assert len(await scene.stub.objects("customer")) == 1
    again = await asyncio.gather(*(gateway.post(CHECKOUT, KEY) for gateway in gateways))
    assert {answer.status for answer in again} == {200}
    assert len(await scene.stub.objects("customer")) == 1


async def test_a_second_subscription_is_refused_even_before_the_first_ones_webhook(scene: Scene) -> None:
    await scene.stub.control("PUT", "delivery", {"running": False})
    session_id = (await (await scene.here.post(CHECKOUT, KEY)).json())["session_id"]
    await scene.stub.control("POST", f"checkout/{session_id}/pay")
    answer = await scene.elsewhere.post(CHECKOUT, KEY)
    body = await answer.json()
    assert (answer.status, body["error"]) == (409, "conflict")
    assert body["portal_url"].startswith(f"{scene.stub.base_url}/p/session/")
    portal = await (await scene.here.post(PORTAL, KEY)).json()
    assert portal["url"].startswith(f"{scene.stub.base_url}/p/session/")


async def test_after_the_end_of_a_subscription_another_may_begin(scene: Scene) -> None:
    subscription = await scene.subscribe(KEY)
    await scene.stub.control("POST", f"subscriptions/{subscription}/cancel")
    await scene.stub.idle()
    assert await scene.subscribe(KEY, "team") != subscription
    assert (await scene.standing())["plan"] == "team"
    assert len(await scene.stub.objects("customer")) == 1


async def test_the_portal_is_for_those_who_once_went_to_a_checkout(scene: Scene) -> None:
    assert await problem(await scene.here.post(PORTAL, KEY)) == (404, "not_found", "")
    await scene.here.post(CHECKOUT, KEY)
    assert (await scene.here.post(PORTAL, KEY, {"return_url": "https://app.example/"})).status == 200


async def test_a_customer_that_stripe_no_longer_has_is_made_anew(scene: Scene) -> None:
    await scene.here.post(CHECKOUT, KEY)
    await scene.stub.control("POST", "reset")
    answer = await scene.here.post(CHECKOUT, KEY)
    assert answer.status == 200, await answer.text()
    [customer] = await scene.stub.objects("customer")
    assert (await scene.standing())["stripe_customer_id"] == customer["id"]


async def test_an_idempotency_key_gives_the_same_page_and_is_each_accounts_own(scene: Scene) -> None:
    async with scene.database.connection() as connection:
        await add_account(connection, "ck_test_another", None)
    key = {"Idempotency-Key": "order-1"}
    first = await (await scene.here.post(CHECKOUT, KEY, headers=key)).json()
    second = await (await scene.elsewhere.post(CHECKOUT, KEY, headers=key)).json()
    assert first == second
    other = await (await scene.here.post(CHECKOUT, "ck_test_another", headers=key)).json()
    assert other["session_id"] != first["session_id"]
    answer = await scene.here.post(CHECKOUT, KEY, {"plan": "team"}, headers=key)
    assert await problem(answer) == (422, "unprocessable", "Idempotency-Key")
    answer = await scene.here.post(CHECKOUT, KEY, headers={"Idempotency-Key": "x" * 256})
    assert await problem(answer) == (400, "invalid_request", "Idempotency-Key")


@pytest.mark.parametrize("mode", ["hang", "close", "html", "limited", "error"])
async def test_while_stripe_is_away_checkout_is_503_in_time_and_calls_go_on(scene: Scene, mode: str) -> None:
    await scene.stub.control("PUT", "faults", [{"mode": mode}])
    started = time.monotonic()
    waiting = asyncio.gather(*(scene.here.post(CHECKOUT, KEY) for _ in range(3)))
    casts_ms = []
    for _ in range(5):
        asked = time.monotonic()
        await scene.here.may_cast("somebody")
        casts_ms.append((time.monotonic() - asked) * 1000)
    answers = await waiting
    assert time.monotonic() - started < 5
    for answer in answers:
        assert (answer.status, (await answer.json())["error"]) == (503, "billing_unavailable")
        assert int(answer.headers["Retry-After"]) > 0
    assert max(casts_ms) < 1000
    await scene.stub.control("PUT", "faults", [])
    assert (await scene.here.post(CHECKOUT, KEY)).status == 200


async def test_what_stripe_refuses_is_told_to_the_log_and_not_to_the_client(
    scene: Scene, capfd: pytest.CaptureFixture[str]
) -> None:
    await scene.here.post(CHECKOUT, KEY)
    [price] = [row for row in await scene.stub.objects("price") if row["id"] == "price_pro"]
    assert price["active"]
    scene.here.billing.payments._v1._requestor._options.api_key = "pk_canary_of_a_wrong_key"  # type: ignore[attr-defined]
    answer = await scene.here.post(CHECKOUT, KEY)
    text = await answer.text()
    assert (answer.status, json.loads(text)["error"]) == (503, "billing_unavailable")
    logged = capfd.readouterr()
    assert "stripe_refused" in logged.out + logged.err
    for where in (text, logged.out, logged.err):
        assert "canary" not in where
        assert STRIPE_KEY not in where


@pytest.mark.parametrize("mode", ["hang", "html"])
async def test_while_stripe_cannot_be_asked_an_events_own_word_counts(scene: Scene, mode: str) -> None:
    await scene.stub.control("PUT", "faults", [{"mode": mode}])
    active = subscription_of("sub_1", "active", account_id="a")
    first = subscription_of("sub_1", "incomplete", account_id="a")
    kind = "customer.subscription"
    for event in (event_of("evt_2", f"{kind}.updated", 50, active), event_of("evt_1", f"{kind}.created", 50, first)):
        assert (await deliver(scene.here, event, SECRET)).status == 200
    assert (await scene.standing("a"))["status"] == "active"


async def test_the_document_has_the_billing_endpoints_and_the_keys_of_a_409(scene: Scene) -> None:
    document = await (await scene.here.app.get("/v1/openapi.json")).json()
    assert {CHECKOUT, PORTAL, "/webhooks/stripe"} <= set(document["paths"])
    assert "portal_url" in document["components"]["schemas"]["Error"]["properties"]
