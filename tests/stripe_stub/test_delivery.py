"""Delivery: at least once, with the switches that make it worse."""

import asyncio
import time
from collections import Counter
from itertools import count
from types import SimpleNamespace

import pytest
import stripe

import stripe_stub.delivery
from tests.stripe_stub.receiver import Receiver
from tests.stripe_stub.running import SECRET, RunningStub, endpoint, stub_here


async def make_events(stub: RunningStub, count: int) -> list[str]:
    made = [await stub.control("POST", "events", {"type": "test.event", "object": {"n": n}}) for n in range(count)]
    return [event["id"] for event in made]


async def test_events_come_one_by_one_in_order(stub: RunningStub, receiver: Receiver) -> None:
    ids = await make_events(stub, 10)
    await stub.idle()
    assert receiver.ids == ids
    assert receiver.most_at_once == 1


@pytest.mark.parametrize("status", [300, 302, 400, 410, 500, 503])
async def test_what_is_not_2xx_is_tried_again(stub: RunningStub, receiver: Receiver, status: int) -> None:
    receiver.statuses = [status, status, 204]
    (event,) = await make_events(stub, 1)
    await stub.idle()
    (delivery,) = (await stub.control("GET", f"deliveries?event={event}"))["data"]
    assert (delivery["where"], [attempt["status"] for attempt in delivery["attempts"]]) == (
        "delivered",
        [status, status, 204],
    )
    waits_s = [attempt["at_s"] for attempt in delivery["attempts"]]
    assert waits_s[1] - waits_s[0] >= 0.02
    assert waits_s[2] - waits_s[1] >= 0.04
    assert len({webhook.body for webhook in receiver.got}) == 1


async def test_an_event_that_waits_for_its_next_attempt_holds_up_no_other(
    stub: RunningStub, receiver: Receiver
) -> None:
    await stub.control("PUT", "delivery", {"running": False, "retry_first_s": 0.3})
    receiver.statuses = [500]
    ids = await make_events(stub, 3)
    await stub.control("PUT", "delivery", {"running": True})
    await stub.idle()
    assert receiver.ids == [ids[0], ids[1], ids[2], ids[0]]


async def test_nothing_is_forgotten_that_comes_due_while_the_clock_is_read(
    stub: RunningStub, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    readings = count(time.time(), 0.01)  # a machine so busy that 10 ms pass from one reading to the next
    monkeypatch.setattr(stripe_stub.delivery, "time", SimpleNamespace(time=lambda: next(readings)))
    receiver.statuses = [500] * 40
    await stub.control("PUT", "delivery", {"retry_first_s": 0.015, "retry_factor": 1.0, "attempts_max": 41})
    (event,) = await make_events(stub, 1)
    await stub.idle()
    assert receiver.ids == [event] * 41


async def test_attempts_are_given_up_some_day(stub: RunningStub, receiver: Receiver) -> None:
    receiver.statuses = [500] * 5
    (event,) = await make_events(stub, 1)
    await stub.idle()
    (delivery,) = (await stub.control("GET", f"deliveries?event={event}"))["data"]
    assert (delivery["where"], len(delivery["attempts"])) == ("given_up", 5)


async def test_an_endpoint_that_is_away_is_tried_again(free_port: int) -> None:
    async with stub_here(endpoints=(endpoint(f"http://127.0.0.1:{free_port}/"),)) as stub:
        (event,) = await make_events(stub, 1)
        await stub.idle()
        (delivery,) = (await stub.control("GET", f"deliveries?event={event}"))["data"]
        assert {attempt["status"] for attempt in delivery["attempts"]} == {None}
        assert "ClientConnector" in delivery["attempts"][0]["error"]


async def test_an_answer_that_does_not_come_is_a_failure(stub: RunningStub, receiver: Receiver) -> None:
    await stub.control("PUT", "delivery", {"timeout_s": 0.05, "attempts_max": 1})
    receiver.hold = asyncio.Barrier(2)
    (event,) = await make_events(stub, 1)
    await stub.idle()
    (delivery,) = (await stub.control("GET", f"deliveries?event={event}"))["data"]
    assert (delivery["where"], delivery["attempts"][0]["status"]) == ("given_up", None)
    await receiver.hold.abort()


async def test_several_endpoints_do_not_wait_for_one_another(free_port: int, receiver: Receiver) -> None:
    away = endpoint(f"http://127.0.0.1:{free_port}/")
    here = endpoint(receiver.url, id="we_2")
    async with stub_here(endpoints=(away, here)) as stub:
        ids = await make_events(stub, 3)
        await stub.idle()
        assert receiver.ids == ids
        assert Counter(row["where"] for row in (await stub.control("GET", "deliveries"))["data"]) == {
            "delivered": 3,
            "given_up": 3,
        }


async def test_duplicates(stub: RunningStub, receiver: Receiver) -> None:
    await stub.control("PUT", "delivery", {"duplicates": 2})
    ids = await make_events(stub, 3)
    await stub.idle()
    assert Counter(receiver.ids) == dict.fromkeys(ids, 3)


async def test_stopped_events_wait_and_come_in_the_order_asked_for(stub: RunningStub, receiver: Receiver) -> None:
    await stub.control("PUT", "delivery", {"running": False, "order": "reverse"})
    ids = await make_events(stub, 5)
    assert await stub.control("POST", "delivery/wait", {"timeout_s": 0.05}) == {"idle": False}
    assert receiver.got == []
    await stub.control("PUT", "delivery", {"running": True})
    await stub.idle()
    assert receiver.ids == ids[::-1]


async def test_a_seed_shuffles_the_same_way_again(stub: RunningStub, receiver: Receiver) -> None:
    orders = []
    for seed in (1, 2, 1):
        await stub.control("PUT", "delivery", {"running": False, "order": "shuffle", "seed": 99})
        await stub.control("PUT", "delivery", {"seed": seed})
        ids = await make_events(stub, 8)
        receiver.got.clear()
        await stub.control("PUT", "delivery", {"running": True})
        await stub.idle()
        orders.append([ids.index(event) for event in receiver.ids])
    assert orders[0] == orders[2] != orders[1]
    assert sorted(orders[0]) == list(range(8))


async def test_jitter_reorders_what_comes_one_after_another(stub: RunningStub, receiver: Receiver) -> None:
    await stub.control("PUT", "delivery", {"jitter_s": 0.2, "seed": 3})
    ids = await make_events(stub, 8)
    await stub.idle()
    assert sorted(receiver.ids) == sorted(ids)
    assert receiver.ids != ids


async def test_a_delay_makes_all_late(stub: RunningStub, receiver: Receiver) -> None:
    await stub.control("PUT", "delivery", {"delay_s": 0.1})
    started_s = time.time()
    await make_events(stub, 1)
    await stub.idle()
    assert time.time() - started_s >= 0.1


async def test_what_is_lost_is_in_the_list_of_events_only(
    stub: RunningStub, client: stripe.StripeClient, receiver: Receiver
) -> None:
    await stub.control("PUT", "delivery", {"lose": ["test.*"]})
    (event,) = await make_events(stub, 1)
    await stub.idle()
    assert receiver.got == []
    assert (await client.v1.events.retrieve_async(event)).pending_webhooks == 1
    (delivery,) = (await stub.control("GET", f"deliveries?event={event}"))["data"]
    assert delivery["where"] == "lost"


async def test_concurrent_deliveries_are_under_way_together(stub: RunningStub, receiver: Receiver) -> None:
    await stub.control("PUT", "delivery", {"running": False, "concurrency": 8, "duplicates": 1})
    await make_events(stub, 4)
    receiver.hold = asyncio.Barrier(8)  # nobody is answered until all eight are there
    await stub.control("PUT", "delivery", {"running": True})
    await stub.idle()
    assert receiver.most_at_once == 8


async def test_an_event_is_sent_again_on_request_whatever_the_switches_say(
    stub: RunningStub, receiver: Receiver
) -> None:
    await stub.control("PUT", "delivery", {"lose": ["*"], "running": False})
    (event,) = await make_events(stub, 1)
    receiver.hold = asyncio.Barrier(5)
    sent = (await stub.control("POST", f"events/{event}/deliver", {"times": 5}))["data"]
    assert [delivery["where"] for delivery in sent] == ["delivered"] * 5
    assert receiver.ids == [event] * 5


async def test_an_event_of_any_shape_is_delivered(stub: RunningStub, receiver: Receiver) -> None:
    odd = {"type": "moon.eclipsed", "id": "evt_same", "created": 1, "object": {"object": "moon", "full": True}}
    await stub.control("POST", "events", odd)
    await stub.idle()
    event = receiver.got[0].event
    assert (event["id"], event["created"], event["data"]["object"]) == ("evt_same", 1, {"object": "moon", "full": True})
    assert stripe.WebhookSignature.verify_header(receiver.got[0].body, receiver.got[0].signature, SECRET, 300)


@pytest.mark.parametrize(
    "values", [{"order": "odd"}, {"duplicates": -1}, {"running": 1}, {"lose": "all"}, {"delay_s": "1"}, {"x": 1}]
)
async def test_what_is_no_switch_is_refused(stub: RunningStub, values: dict[str, object]) -> None:
    async with stub.session.put(f"{stub.base_url}/_stub/delivery", json=values) as answer:
        assert answer.status == 400
