"""Events of both generations, and what is not one."""

from typing import Any

import pytest

from gateway.policy.stripe_events import HANDLED, INVOICE, SESSION, EventError, read_event


def event(kind: str, thing: dict[str, Any]) -> dict[str, Any]:
    return {"id": "evt_1", "object": "event", "type": kind, "created": 7, "data": {"object": thing}}


@pytest.mark.parametrize(
    "shape",
    [
        {"subscription": "sub_1"},
        {"subscription": {"id": "sub_1", "object": "subscription"}},
        {"parent": {"subscription_details": {"subscription": "sub_1"}}},
    ],
)
def test_an_invoice_names_its_subscription_in_either_place(shape: dict[str, Any]) -> None:
    read = read_event(event("invoice.payment_failed", {"id": "in_1", "customer": "cus_1", **shape}))
    assert (read.kind, read.subscription_id, read.customer_id, read.status) == (INVOICE, "sub_1", "cus_1", "past_due")


@pytest.mark.parametrize(
    "shape",
    [
        {"current_period_start": 5, "current_period_end": 9, "plan": {"id": "price_1"}},
        {"current_period_start": 5, "current_period_end": 9, "items": {"data": [{"plan": {"id": "price_1"}}]}},
        {"items": {"data": [{"price": {"id": "price_1"}, "current_period_start": 5, "current_period_end": 9}]}},
    ],
)
def test_period_and_price_are_read_from_either_place(shape: dict[str, Any]) -> None:
    thing = {"id": "sub_1", "status": "active", "customer": {"id": "cus_1"}, "created": 3, **shape}
    read = read_event(event("customer.subscription.updated", thing)).subscription
    assert read is not None
    assert (read.prices, read.period_start_s, read.period_end_s) == (("price_1",), 5, 9)
    assert (read.customer_id, read.started_s) == ("cus_1", 3)


def test_a_session_says_whose_it_is_in_its_metadata_or_as_its_reference() -> None:
    by_reference = read_event(event("checkout.session.completed", {"client_reference_id": "a"}))
    both = {"client_reference_id": "a", "metadata": {"account_id": "b"}}
    assert (by_reference.kind, by_reference.account_id) == (SESSION, "a")
    assert read_event(event("checkout.session.completed", both)).account_id == "b"


@pytest.mark.parametrize("odd", [None, 1, [], {}, "", "a\x00b", "\ud800", "x" * 256])
def test_an_account_that_no_store_could_hold_is_nobodys(odd: object) -> None:
    thing = {"client_reference_id": odd, "metadata": {"account_id": odd}, "customer": odd, "subscription": odd}
    assert read_event(event("checkout.session.completed", thing)).account_id is None


def test_a_type_that_is_not_handled_needs_no_object() -> None:
    read = read_event({"id": "evt_1", "object": "event", "type": "a.b", "created": 7})
    assert (read.kind, read.label) == (None, "other")


@pytest.mark.parametrize("value", [None, [], "event", {"object": "v2.core.event", "id": "evt_1", "type": "a.b"}])
def test_what_is_not_an_event_is_refused(value: object) -> None:
    with pytest.raises(EventError):
        read_event(value)


def test_the_types_of_the_operators_guide_are_those_that_are_handled() -> None:
    from pathlib import Path

    guide = (Path(__file__).parents[2] / "docs" / "billing.md").read_text()
    listed = guide.partition("Any API version will do.")[2].partition("```text")[2].partition("```")[0].split()
    assert sorted(listed) == sorted(HANDLED)
