import pytest
import stripe

from tests.stripe_stub.receiver import Receiver
from tests.stripe_stub.running import RunningStub


async def test_a_customer_is_made_and_found_again(client: stripe.StripeClient) -> None:
    made = await client.v1.customers.create_async(
        {"email": "ann@example.com", "name": "Ann", "metadata": {"account": "42"}}
    )
    found = await client.v1.customers.retrieve_async(made.id)
    assert found.to_dict() == made.to_dict()
    assert (found.object, found.livemode, found.email) == ("customer", False, "ann@example.com")
    assert found.to_dict()["metadata"] == {"account": "42"}


async def test_an_update_changes_only_what_it_names(client: stripe.StripeClient, customer: stripe.Customer) -> None:
    changed = await client.v1.customers.update_async(customer.id, {"name": "Ann", "metadata": {"plan": "pro"}})
    assert (changed.name, changed.email) == ("Ann", "ann@example.com")
    assert changed.to_dict()["metadata"] == {"account": "42", "plan": "pro"}


async def test_a_blank_metadata_value_takes_the_key_away(
    client: stripe.StripeClient, customer: stripe.Customer
) -> None:
    changed = await client.v1.customers.update_async(customer.id, {"metadata": {"account": ""}})
    assert changed.to_dict()["metadata"] == {}


async def test_customers_are_listed_newest_first_by_email(client: stripe.StripeClient) -> None:
    emails = ["ann@example.com", "bob@example.com", "ann@example.com"]
    made = [await client.v1.customers.create_async({"email": email}) for email in emails]
    found = await client.v1.customers.list_async({"email": "ann@example.com"})
    assert [row.id for row in found.data] == [made[2].id, made[0].id]
    assert not found.has_more


async def test_pages_follow_one_another(client: stripe.StripeClient) -> None:
    made = [(await client.v1.customers.create_async({})).id for _ in range(7)]
    first = await client.v1.customers.list_async({"limit": 3})
    assert first.has_more
    assert [row.id async for row in first.auto_paging_iter()] == made[::-1]
    before = await client.v1.customers.list_async({"limit": 2, "ending_before": made[3]})
    assert ([row.id for row in before.data], before.has_more) == ([made[5], made[4]], True)


async def test_customers_are_searched_by_metadata(client: stripe.StripeClient, customer: stripe.Customer) -> None:
    await client.v1.customers.create_async({"metadata": {"account": "43"}})
    found = await client.v1.customers.search_async({"query": "metadata['account']:'42' AND email~'example'"})
    assert [row.id for row in found.data] == [customer.id]


async def test_a_query_that_is_none_is_refused(client: stripe.StripeClient) -> None:
    with pytest.raises(stripe.InvalidRequestError, match="unable to parse"):
        await client.v1.customers.search_async({"query": "account = 42"})


async def test_a_customer_that_is_not_there_is_a_404(client: stripe.StripeClient) -> None:
    with pytest.raises(stripe.InvalidRequestError, match="No such customer: 'cus_none'") as caught:
        await client.v1.customers.retrieve_async("cus_none")
    assert (caught.value.http_status, caught.value.code, caught.value.param) == (404, "resource_missing", "id")


async def test_a_deleted_customer_leaves_a_mark(client: stripe.StripeClient, customer: stripe.Customer) -> None:
    assert (await client.v1.customers.delete_async(customer.id)).deleted
    assert (await client.v1.customers.retrieve_async(customer.id)).deleted
    assert (await client.v1.customers.list_async()).data == []
    with pytest.raises(stripe.InvalidRequestError):
        await client.v1.customers.update_async(customer.id, {"name": "Ann"})


async def test_events_tell_of_customers(
    client: stripe.StripeClient, customer: stripe.Customer, stub: RunningStub, receiver: Receiver
) -> None:
    await client.v1.customers.update_async(customer.id, {"name": "Ann"})
    await client.v1.customers.update_async(customer.id, {"name": "Ann"})
    await stub.idle()
    assert receiver.types == ["customer.created", "customer.updated"]
    assert receiver.got[1].event["data"]["previous_attributes"] == {"name": None}
