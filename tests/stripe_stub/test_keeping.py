"""What outlives a restart."""

import json
from pathlib import Path

import pytest
import stripe

from stripe_stub.app import Settings, build_app
from tests.stripe_stub.receiver import Receiver
from tests.stripe_stub.running import client_of, endpoint, stub_here

ONCE: stripe.RequestOptions = {"idempotency_key": "once"}


async def test_objects_and_idempotent_answers_outlive_a_restart(tmp_path: Path) -> None:
    data = tmp_path / "made by itself" / "stripe.json"
    async with stub_here(data=data) as stub, client_of(stub.base_url) as client:
        made = await client.v1.customers.create_async({"name": "Ann"}, ONCE)
        await stub.control("PUT", f"customers/{made.id}/card", {"card": "good"})
    async with stub_here(data=data) as stub, client_of(stub.base_url) as client:
        assert (await client.v1.customers.create_async({"name": "Ann"}, ONCE)).id == made.id
        subscription = await client.v1.subscriptions.create_async(
            {"customer": made.id, "items": [{"price": "price_pro"}]}
        )
        assert subscription.status == "active"
        assert len(await stub.objects("price")) == 2


async def test_webhooks_that_wait_outlive_a_restart(tmp_path: Path, free_port: int, receiver: Receiver) -> None:
    data = tmp_path / "stripe.json"
    away = endpoint(f"http://127.0.0.1:{free_port}/")
    async with stub_here(data=data, endpoints=(away,)) as stub:
        await stub.control("PUT", "delivery", {"running": False})
        event = await stub.control("POST", "events", {"type": "test.event", "object": {"id": "x"}})
    async with stub_here(data=data, endpoints=(endpoint(receiver.url),)) as stub:
        await stub.idle()
    assert receiver.ids == [event["id"]]


async def test_no_key_is_written(tmp_path: Path) -> None:
    data = tmp_path / "stripe.json"
    async with stub_here(data=data) as stub, client_of(stub.base_url, key="sk_test_secret_of_somebody") as client:
        await client.v1.customers.create_async({})
    assert "secret_of_somebody" not in data.read_text()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"objects": [1], "idempotency_keys": [], "deliveries": []}'])
async def test_a_file_that_is_another_s_is_refused(tmp_path: Path, text: str) -> None:
    data = tmp_path / "stripe.json"
    data.write_text(text)
    with pytest.raises(ValueError, match="is not a file of this stand-in"):
        build_app(Settings(data=data))
    assert data.read_text() == text


async def test_what_is_kept_is_json(tmp_path: Path) -> None:
    data = tmp_path / "stripe.json"
    async with stub_here(data=data):
        pass
    assert json.loads(data.read_text()).keys() == {"objects", "idempotency_keys", "deliveries"}
