"""The hosted pages, as a browser without script sees them."""

import re
from html import unescape
from html.parser import HTMLParser

import pytest
import stripe

from tests.stripe_stub.receiver import Receiver
from tests.stripe_stub.running import RunningStub


class Page(HTMLParser):
    """The fields of the form and the buttons and links of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fields: dict[str, str] = {}
        self.buttons: dict[str, tuple[str, str]] = {}
        self.links: dict[str, str] = {}
        self.labels: set[str] = set()
        self.ids: set[str] = set()
        self.tags: list[str] = []
        self._open: dict[str, str] = {}
        self.feed(text)
        self.text = " ".join(unescape(re.sub(r"<style.*?</style>|<[^>]*>", " ", text, flags=re.DOTALL)).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.tags.append(tag)
        if tag == "input":
            self.fields[values["name"]] = values.get("value", "")
            if values.get("type") != "hidden":
                self.ids.add(values["id"])
        if tag == "label":
            self.labels.add(values["for"])
        self._open = values if tag in {"a", "button"} else self._open

    def handle_data(self, data: str) -> None:
        if "href" in self._open:
            self.links[data] = self._open["href"]
        elif "name" in self._open:
            self.buttons[data] = (self._open["name"], self._open["value"])
        self._open = {}


async def get(stub: RunningStub, url: str, status: int = 200) -> Page:
    async with stub.session.get(url) as answer:
        assert answer.status == status
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        return Page(await answer.text())


async def press(stub: RunningStub, url: str, page: Page, button: str) -> tuple[int, str]:
    """The status, and where it leads to or what it says."""
    name, value = page.buttons[button]
    async with stub.session.post(url, data={**page.fields, name: value}, allow_redirects=False) as answer:
        return answer.status, answer.headers.get("Location") or Page(await answer.text()).text


@pytest.fixture
def checkout_url(session: stripe.checkout.Session) -> str:
    assert session.url is not None
    return session.url


@pytest.fixture
async def portal_url(client: stripe.StripeClient, subscription: stripe.Subscription) -> str:
    portal = await client.v1.billing_portal.sessions.create_async(
        {"customer": str(subscription.customer), "return_url": "https://shop.example/account"}
    )
    assert (portal.object, portal.customer) == ("billing_portal.session", subscription.customer)
    return portal.url


async def test_the_checkout_page_says_what_is_bought(stub: RunningStub, checkout_url: str) -> None:
    page = await get(stub, checkout_url)
    assert "Subscribe to Pro" in page.text
    assert "$49.00 per month" in page.text
    assert (page.fields["card"], page.fields["email"]) == ("4242 4242 4242 4242", "ann@example.com")
    assert list(page.buttons) == ["Pay", "Pay with a card that is declined", "Pay by bank, confirmed later"]
    assert page.links["Cancel"] == "https://shop.example/pricing"


async def test_pages_need_nothing_from_elsewhere_and_label_their_fields(
    stub: RunningStub, checkout_url: str, portal_url: str
) -> None:
    for url in (checkout_url, portal_url):
        page = await get(stub, url)
        assert not {"script", "img", "iframe"} & set(page.tags)
        assert page.ids == page.labels


async def test_paying_leads_to_the_success_address_after_the_webhook(
    stub: RunningStub, checkout_url: str, session: stripe.checkout.Session, receiver: Receiver
) -> None:
    status, location = await press(stub, checkout_url, await get(stub, checkout_url), "Pay")
    assert (status, location) == (303, f"https://shop.example/thanks?session={session.id}")
    assert "checkout.session.completed" in receiver.types
    assert len(await stub.objects("subscription")) == 1


async def test_paying_twice_pays_once(stub: RunningStub, checkout_url: str) -> None:
    page = await get(stub, checkout_url)
    assert await press(stub, checkout_url, page, "Pay") == await press(stub, checkout_url, page, "Pay")
    assert len(await stub.objects("subscription")) == 1
    assert "This is paid" in (await get(stub, checkout_url)).text


async def test_a_declined_card_is_told_and_another_may_be_tried(stub: RunningStub, checkout_url: str) -> None:
    page = await get(stub, checkout_url)
    status, text = await press(stub, checkout_url, page, "Pay with a card that is declined")
    assert (status, "Your card was declined." in text) == (402, True)
    page.fields["card"] = "4000 0000 0000 0002"
    assert (await press(stub, checkout_url, page, "Pay"))[0] == 402
    page.fields["card"] = "5500 0000 0000 0004"
    status, text = await press(stub, checkout_url, page, "Pay")
    assert (status, "Only test cards" in text) == (402, True)
    assert await stub.objects("subscription") == []
    page.fields["card"] = "4242424242424242"
    assert (await press(stub, checkout_url, page, "Pay"))[0] == 303


async def test_paying_by_bank_leaves_it_unpaid(
    stub: RunningStub, checkout_url: str, session: stripe.checkout.Session, client: stripe.StripeClient
) -> None:
    assert (await press(stub, checkout_url, await get(stub, checkout_url), "Pay by bank, confirmed later"))[0] == 303
    paid = await client.v1.checkout.sessions.retrieve_async(session.id)
    assert (paid.status, paid.payment_status) == ("complete", "unpaid")


async def test_nobody_waits_for_webhooks_that_are_stopped(stub: RunningStub, checkout_url: str) -> None:
    await stub.control("PUT", "delivery", {"running": False})
    assert (await press(stub, checkout_url, await get(stub, checkout_url), "Pay"))[0] == 303


async def test_an_expired_page_takes_no_money(
    stub: RunningStub, checkout_url: str, session: stripe.checkout.Session, client: stripe.StripeClient
) -> None:
    page = await get(stub, checkout_url)
    await client.v1.checkout.sessions.expire_async(session.id)
    assert "expired" in (await get(stub, checkout_url, 410)).text
    assert (await press(stub, checkout_url, page, "Pay"))[0] == 410
    assert await stub.objects("subscription") == []


async def test_pages_that_are_not_there(stub: RunningStub) -> None:
    await get(stub, f"{stub.base_url}/c/pay/cs_test_none", 404)
    await get(stub, f"{stub.base_url}/p/session/live_none", 404)


async def test_what_others_wrote_is_shown_as_text(stub: RunningStub, client: stripe.StripeClient) -> None:
    session = await client.v1.checkout.sessions.create_async(
        {
            "mode": "subscription",
            "line_items": [{"price": "price_pro"}],
            "customer_email": '"><script>alert(1)</script>',
            "success_url": "https://shop.example/",
            "cancel_url": 'https://shop.example/"><script>',
        }
    )
    page = await get(stub, str(session.url))
    assert "script" not in page.tags
    assert page.fields["email"] == '"><script>alert(1)</script>'


async def test_the_portal_shows_the_subscription(stub: RunningStub, portal_url: str) -> None:
    page = await get(stub, portal_url)
    for words in ("Pro, $49.00 per month", "Status active", "•••• 4242", "Next payment succeeds", "Renews on"):
        assert words in page.text
    assert page.links["Go back"] == "https://shop.example/account"


async def press_in_portal(stub: RunningStub, url: str, button: str) -> Page:
    status, location = await press(stub, url, await get(stub, url), button)
    assert status == 303
    return await get(stub, f"{stub.base_url}{location}")


async def test_the_portal_changes_the_plan(
    stub: RunningStub, portal_url: str, client: stripe.StripeClient, subscription: stripe.Subscription
) -> None:
    page = await press_in_portal(stub, portal_url, "Change to Team, $99.00 per month")
    assert "The plan was changed." in page.text
    found = await client.v1.subscriptions.retrieve_async(subscription.id)
    assert found.items.data[0].price.id == "price_team"


async def test_the_portal_cancels_later_and_not_after_all(stub: RunningStub, portal_url: str) -> None:
    assert "Ends on" in (await press_in_portal(stub, portal_url, "Cancel at the end of the period")).text
    assert "Renews on" in (await press_in_portal(stub, portal_url, "Do not cancel")).text


async def test_the_portal_cancels_now(stub: RunningStub, portal_url: str, receiver: Receiver) -> None:
    assert "There is no subscription." in (await press_in_portal(stub, portal_url, "Cancel now")).text
    await stub.idle()
    assert receiver.types[-1] == "customer.subscription.deleted"


async def test_the_portal_makes_a_payment_fail_and_succeed(stub: RunningStub, portal_url: str) -> None:
    assert "Next payment fails" in (await press_in_portal(stub, portal_url, "Make the next payment fail")).text
    assert "Status past due" in (await press_in_portal(stub, portal_url, "End the period and bill the next")).text
    assert "Next payment succeeds" in (await press_in_portal(stub, portal_url, "Make the next payment succeed")).text
    assert "Status active" in (await press_in_portal(stub, portal_url, "Pay the open invoice")).text


async def test_the_portal_of_one_customer_touches_no_other_s_subscription(
    stub: RunningStub, client: stripe.StripeClient, subscription: stripe.Subscription
) -> None:
    other = await client.v1.customers.create_async({})
    url = (await client.v1.billing_portal.sessions.create_async({"customer": other.id})).url
    async with stub.session.post(url, data={"subscription": subscription.id, "do": "cancel"}) as answer:
        assert answer.status == 400
    assert (await client.v1.subscriptions.retrieve_async(subscription.id)).status == "active"


async def test_a_shop_without_a_page_of_its_own_has_one_here(stub: RunningStub) -> None:
    assert "you have paid" in (await get(stub, f"{stub.base_url}/shop/paid")).text
    assert "Back at the shop" in (await get(stub, f"{stub.base_url}/shop")).text
