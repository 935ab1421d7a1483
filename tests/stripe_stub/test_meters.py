import time

import pytest
import stripe


async def test_a_meter_event_is_taken_once(client: stripe.StripeClient) -> None:
    now = int(time.time())
    event = await client.v1.billing.meter_events.create_async(
        {
            "event_name": "casts",
            "identifier": "cast-1",
            "timestamp": now,
            "payload": {"stripe_customer_id": "cus_1", "value": "25"},
        }
    )
    assert (event.object, event.identifier, event.timestamp) == ("billing.meter_event", "cast-1", now)
    assert event.to_dict()["payload"] == {"stripe_customer_id": "cus_1", "value": "25"}
    with pytest.raises(stripe.InvalidRequestError, match="already exists with identifier cast-1"):
        await client.v1.billing.meter_events.create_async(
            {"event_name": "casts", "identifier": "cast-1", "payload": {"stripe_customer_id": "cus_1", "value": "1"}}
        )


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"payload": {"value": "1"}}, "parameter_missing"),
        ({"payload": {"stripe_customer_id": "cus_1", "value": "many"}}, "meter_event_invalid_value"),
        ({"timestamp": int(time.time()) - 36 * 24 * 3600}, "timestamp_too_far_in_past"),
        ({"timestamp": int(time.time()) + 3600}, "timestamp_in_future"),
    ],
)
async def test_a_meter_event_that_cannot_be_is_refused(
    client: stripe.StripeClient, change: dict[str, object], code: str
) -> None:
    good = {"event_name": "casts", "payload": {"stripe_customer_id": "cus_1", "value": "1"}}
    with pytest.raises(stripe.InvalidRequestError) as caught:
        await client.v1.billing.meter_events.create_async({**good, **change})  # type: ignore[typeddict-item]
    assert caught.value.code == code
