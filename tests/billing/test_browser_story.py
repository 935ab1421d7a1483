"""From free to pro and back, by browser and keyboard: the gateway, the stand-in for Stripe, Chromium."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import asyncpg
import pytest
from playwright.async_api import ConsoleMessage, Page, Request, async_playwright, expect

from tests.gateways import migrated, running_gateway
from tests.stripe_stub.running import stub_process as stripe_process
from tests.upstream_stub.running import Account, create_account, stub_process

CHROMIUM = next((path for path in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if path), None)
# The only tests that need a package of the system; .ci/run installs it.
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; `apt-get install chromium` installs it")

FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
SECRET = "whsec_of_a_browser_story"
TABS_MAX = 20
# A cast costs 250 cents: the plan free (500) has two of them, the plan pro (50,000) many more. Two a minute go anyway.
COST_CENTS = "250"


@dataclass(kw_only=True)
class World:
    """A gateway that takes payments, one account of it, and a browser's page."""

    base_url: str
    stripe_url: str
    database_url: str
    account: Account
    session: aiohttp.ClientSession
    page: Page
    complaints: list[str] = field(default_factory=list)
    origins: set[str] = field(default_factory=set)

    async def ask(self, method: str, path: str) -> tuple[int, dict[str, Any]]:
        headers = {"Authorization": f"Bearer {self.account.api_key}"}
        body = {"input": "lumos"} if path == "/v1/cast" else None
        async with self.session.request(method, f"{self.base_url}{path}", headers=headers, json=body) as answer:
            return answer.status, await answer.json()

    async def cast(self) -> int:
        return (await self.ask("POST", "/v1/cast"))[0]

    async def status(self) -> str:
        """As Postgres has it."""
        connection = await asyncpg.connect(self.database_url)
        try:
            return str(
                await connection.fetchval(
                    "SELECT status FROM billing_accounts WHERE account_id = $1", self.account.user_id
                )
            )
        finally:
            await connection.close()

    async def plan(self) -> str:
        return str((await self.ask("GET", "/v1/budgets"))[1]["plan"])

    async def webhooks_are_through(self) -> None:
        async with self.session.post(f"{self.stripe_url}/_stub/delivery/wait") as answer:
            assert await answer.json() == {"idle": True}

    async def press(self, button: str) -> None:
        """With the keyboard alone: Tab to the button, which shows that it has the focus, and Enter."""
        wanted = self.page.get_by_role("button", name=button, exact=True)
        for _ in range(TABS_MAX):
            await self.page.keyboard.press("Tab")
            if await wanted.evaluate("button => button === document.activeElement"):
                assert await wanted.evaluate("button => getComputedStyle(button).outlineStyle") == "solid"
                await self.page.keyboard.press("Enter")
                return
        raise AssertionError(f"no way to {button!r} with the Tab key")

    def watch(self) -> None:
        """Notes what the browser complains of, and whom it asks."""

        def note_console(message: ConsoleMessage) -> None:
            if message.type in {"error", "warning"}:
                self.complaints.append(message.text)

        def note_request(request: Request) -> None:
            parts = urlsplit(request.url)
            if parts.scheme != "data":
                self.origins.add(f"{parts.scheme}://{parts.netloc}")

        self.page.on("console", note_console)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("requestfailed", lambda request: self.complaints.append(f"{request.url}: {request.failure}"))
        self.page.on("request", note_request)


@asynccontextmanager
async def browser_page(folder: Path) -> AsyncIterator[Page]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS, downloads_path=folder)
        try:
            yield await browser.new_page()
        finally:
            await browser.close()


@pytest.fixture
async def world(database_url: str, redis_url: str, tmp_path: Path) -> AsyncIterator[World]:
    async with stripe_process("--price", "price_pro=4900:Pro") as stripe_url, aiohttp.ClientSession() as session:
        variables = {
            "STRIPE_SECRET_KEY": "sk_test_of_a_browser_story",
            "STRIPE_WEBHOOK_SECRET": SECRET,
            "STRIPE_API_BASE": stripe_url,
            "STRIPE_PRICE_PRO": "price_pro",
            "BILLING_SUCCESS_URL": f"{stripe_url}/shop/paid",
            "BILLING_CANCEL_URL": f"{stripe_url}/shop",
            "COST_PER_CAST_CENTS": COST_CENTS,
            "RATE_LIMIT_PER_MINUTE": "2",
        }
        stores = {"database_url": database_url, "redis_url": redis_url}
        with stub_process(**stores, rate_limit_per_minute=0) as upstream:
            await asyncio.to_thread(migrated, database_url)
            account = await create_account(database_url)
            with running_gateway(**stores, upstream_url=upstream.base_url, environ=variables) as gateway:
                endpoints = [{"url": f"{gateway.base_url}/webhooks/stripe", "secrets": [SECRET]}]
                async with session.put(f"{stripe_url}/_stub/endpoints", json=endpoints) as answer:
                    assert answer.status == 200
                async with browser_page(tmp_path) as page:
                    world = World(
                        base_url=gateway.base_url,
                        stripe_url=stripe_url,
                        database_url=database_url,
                        account=account,
                        session=session,
                        page=page,
                    )
                    world.watch()
                    yield world


async def test_checkout_pay_use_the_plan_cancel_and_be_free_again(world: World) -> None:
    page = world.page
    assert [await world.cast() for _ in range(3)] == [200, 200, 402]

    status, checkout = await world.ask("POST", "/v1/billing/checkout")
    assert status == 200, checkout
    await page.goto(checkout["url"])
    await expect(page.get_by_role("heading", name="Subscribe to Pro")).to_be_visible()
    await expect(page.locator("#amount")).to_contain_text("$49.00")
    await world.press("Pay")
    await expect(page.get_by_role("status")).to_have_text("Thank you, you have paid.")
    assert page.url == f"{world.stripe_url}/shop/paid"

    # Paying leads back once the webhook was answered, so from here on the plan holds.
    assert await world.cast() == 200  # past two a minute, too
    assert (await world.status(), await world.plan()) == ("active", "pro")

    status, portal = await world.ask("POST", "/v1/billing/portal")
    assert status == 200, portal
    await page.goto(portal["url"])
    await expect(page.get_by_text("Pro, $49.00 per month")).to_be_visible()
    await world.press("Cancel now")
    await expect(page.get_by_role("status")).to_have_text("The subscription was cancelled.")
    await world.webhooks_are_through()
    assert await world.cast() == 402
    assert (await world.status(), await world.plan()) == ("canceled", "free")

    assert world.complaints == []
    assert world.origins == {world.stripe_url}


async def test_who_changes_their_mind_is_led_back_and_nothing_is_paid(world: World) -> None:
    _, checkout = await world.ask("POST", "/v1/billing/checkout")
    await world.page.goto(checkout["url"])
    await world.page.get_by_role("link", name="Cancel").press("Enter")
    await expect(world.page.get_by_role("heading", name="Back at the shop")).to_be_visible()
    await expect(world.page.get_by_role("status")).not_to_be_attached()
    assert await world.plan() == "free"
    assert world.complaints == []


async def test_pages_fit_a_phone_and_can_be_enlarged(world: World) -> None:
    _, checkout = await world.ask("POST", "/v1/billing/checkout")
    await world.page.set_viewport_size({"width": 320, "height": 640})
    await world.page.goto(checkout["url"])
    assert await world.page.evaluate("document.documentElement.scrollWidth") == 320
    await world.page.evaluate("document.documentElement.style.fontSize = '32px'")
    assert await world.page.evaluate("document.documentElement.scrollWidth") == 320
