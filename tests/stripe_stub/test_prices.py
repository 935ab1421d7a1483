import pytest
import stripe

from stripe_stub.prices import SeededPrice
from tests.stripe_stub.running import PRICES, RunningStub, client_of, stub_here


def test_a_seeded_price_is_written_in_one_word() -> None:
    assert SeededPrice.parse("price_pro=4900") == SeededPrice(id="price_pro", amount_cents=4900, name="Pro")
    assert SeededPrice.parse("price_x=0:All you can eat").name == "All you can eat"


@pytest.mark.parametrize("text", ["", "price_pro", "price_pro=", "=4900", "price_pro=49.00", "price_pro=-1"])
def test_what_is_no_seeded_price_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="ID=CENTS"):
        SeededPrice.parse(text)


async def test_seeded_prices_are_there(client: stripe.StripeClient) -> None:
    price = await client.v1.prices.retrieve_async("price_pro", {"expand": ["product"]})
    assert (price.unit_amount, price.currency, price.type) == (4900, "usd", "recurring")
    assert isinstance(price.product, stripe.Product)
    assert price.product.name == "Pro"
    assert [row.id for row in (await client.v1.prices.list_async({"active": True})).data] == ["price_team", "price_pro"]


async def test_a_seeded_price_of_another_amount_takes_the_place_of_the_old() -> None:
    async with stub_here(prices=(*PRICES, SeededPrice(id="price_pro", amount_cents=5900, name="Pro"))) as stub:
        assert [row["unit_amount"] for row in await stub.objects("price")] == [9900, 5900]


async def test_prices_and_products_are_made(client: stripe.StripeClient) -> None:
    product = await client.v1.products.create_async({"name": "Max"})
    price = await client.v1.prices.create_async(
        {
            "product": product.id,
            "currency": "eur",
            "unit_amount": 100,
            "recurring": {"interval": "year"},
            "lookup_key": "max",
        }
    )
    assert [row.id for row in (await client.v1.prices.list_async({"lookup_keys": ["max"]})).data] == [price.id]
    assert (await client.v1.products.retrieve_async(product.id)).name == "Max"
    assert (await client.v1.products.list_async({"ids": [product.id]})).data[0].id == product.id


@pytest.mark.parametrize(
    ("parameters", "param"),
    [
        ({"unit_amount": 1, "product": "prod_pro"}, "currency"),
        ({"currency": "usd", "product": "prod_pro"}, "unit_amount"),
        ({"currency": "usd", "unit_amount": 1}, "product"),
        ({"currency": "usd", "unit_amount": 1, "product": "prod_none"}, "product"),
    ],
)
async def test_a_price_without_what_it_needs_is_refused(parameters: dict[str, object], param: str) -> None:
    async with stub_here() as stub, client_of(stub.base_url) as client:
        with pytest.raises(stripe.InvalidRequestError) as caught:
            await client.v1.prices.create_async(parameters)  # type: ignore[arg-type]
        assert (caught.value.http_status, caught.value.param) == (400, param)
        assert len(await _prices(stub)) == 2


async def _prices(stub: RunningStub) -> list[dict[str, object]]:
    return await stub.objects("price")
