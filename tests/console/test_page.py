"""The console's page in Chromium: sign in, watch, find an account, set a budget that the next cast honours."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest
from playwright.async_api import Page, expect

from tests.billing.test_browser_story import CHROMIUM, SECRET, browser_page
from tests.gateways import RunningGateway, migrated, running_gateway
from tests.stripe_stub.running import stub_process as stripe_process
from tests.upstream_stub.running import Account, create_account, stub_process

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; `apt-get install chromium` installs it"),
    pytest.mark.timeout(150),
]
TOKEN = "0123456789-of-the-operators"
AXE = files("axe_playwright_python").joinpath("axe.min.js")
GRAVE = ("serious", "critical")


@dataclass(kw_only=True)
class World:
    gateway: RunningGateway
    account: Account
    page: Page
    session: aiohttp.ClientSession
    complaints: list[str] = field(default_factory=list)
    origins: set[str] = field(default_factory=set)

    async def cast(self) -> int:
        headers = {"Authorization": f"Bearer {self.account.api_key}"}
        url = f"{self.gateway.base_url}/v1/cast"
        async with self.session.post(url, headers=headers, json={"input": "lumos"}) as answer:
            return answer.status

    async def subscribe(self) -> None:
        """Pays at the stand-in for Stripe, which tells the gateway; the plan has room for many more casts."""
        headers = {"Authorization": f"Bearer {self.account.api_key}"}
        async with self.session.post(f"{self.gateway.base_url}/v1/billing/checkout", headers=headers) as answer:
            url = (await answer.json())["url"]
        form = {"how": "pay", "email": "person@example.com", "card": "4242 4242 4242 4242"}
        async with self.session.post(url, data=form, allow_redirects=False) as answer:
            assert answer.status < 400

    def watch(self) -> None:
        self.page.on(
            "console", lambda said: self.complaints.append(said.text) if said.type in ("error", "warning") else None
        )
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on(
            "request", lambda request: self.origins.add("{0.scheme}://{0.netloc}".format(urlsplit(request.url)))
        )

    async def obstacles(self) -> list[str]:
        """What axe-core finds that keeps somebody out, in light and in dark."""
        found: list[str] = []
        for scheme in ("light", "dark"):
            await self.page.emulate_media(color_scheme=scheme, reduced_motion="reduce")  # type: ignore[arg-type]
            await self.page.evaluate(AXE.read_text("utf-8"))
            result: dict[str, Any] = await self.page.evaluate("axe.run()")
            found += [
                f"{scheme}: {one['id']}: {one['nodes'][0]['html'][:150]}"
                for one in result["violations"]
                if one["impact"] in GRAVE
            ]
        return found


@pytest.fixture
async def world(database_url: str, redis_url: str, tmp_path: Path) -> AsyncIterator[World]:
    stores = {"database_url": database_url, "redis_url": redis_url}
    async with stripe_process("--price", "price_pro=4900:Pro") as stripe_url, aiohttp.ClientSession() as session:
        with stub_process(**stores, rate_limit_per_minute=0) as stub:
            await asyncio.to_thread(migrated, database_url)
            account = await create_account(database_url)
            environ = {
                "ADMIN_TOKEN": TOKEN,
                "STRIPE_SECRET_KEY": "sk_test_of_the_console",
                "STRIPE_WEBHOOK_SECRET": SECRET,
                "STRIPE_API_BASE": stripe_url,
                "STRIPE_PRICE_PRO": "price_pro",
                "BILLING_SUCCESS_URL": f"{stripe_url}/shop/paid",
                "BILLING_CANCEL_URL": f"{stripe_url}/shop",
            }
            with running_gateway(**stores, upstream_url=stub.base_url, environ=environ) as gateway:
                endpoints = [{"url": f"{gateway.base_url}/webhooks/stripe", "secrets": [SECRET]}]
                async with session.put(f"{stripe_url}/_stub/endpoints", json=endpoints) as answer:
                    assert answer.status == 200
                async with browser_page(tmp_path) as page:
                    yield World(gateway=gateway, account=account, page=page, session=session)


async def test_an_operator_signs_in_watches_finds_an_account_and_sets_its_budget(world: World) -> None:
    page, admin_url = world.page, world.gateway.admin_url
    await page.goto(f"{admin_url}/console")
    await page.get_by_label("Admin token").fill("a-wrong-token-of-some-length")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("alert")).to_have_text("This is not the token.")
    assert await world.obstacles() == []
    await page.get_by_label("Admin token").fill(TOKEN)
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("heading", name="Calls a second")).to_be_visible()
    world.watch()  # until here the browser itself complains of a 401

    # Live: what is cast is seen.
    assert [await world.cast() for _ in range(5)] == [200] * 5
    await expect(page.locator("#facts")).to_contain_text("Charged, written5")
    await expect(page.locator("#rungs [aria-current]")).to_contain_text("Redis and Postgres answer")
    await expect(page.locator("#chart .is-passed")).to_be_attached()
    assert await world.obstacles() == []

    # By keyboard alone to the account.
    await page.keyboard.press("/")
    await page.keyboard.type(world.account.user_id[:8])
    await expect(page.locator("#found a")).to_have_text(world.account.user_id)
    await page.keyboard.press("ArrowDown")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("heading", name=world.account.user_id)).to_be_visible()
    calls = page.get_by_role("region", name="Newest charged calls")
    await expect(calls.get_by_role("row")).to_have_count(1 + 5)
    await expect(page.get_by_role("region", name="Holds")).to_contain_text("Nothing is held, by Redis.")
    assert await world.obstacles() == []

    # What is set counts for the next cast; what is removed does not.
    await page.get_by_label("Cents at most").fill("5")
    await page.get_by_role("button", name="Set budget").press("Enter")
    await expect(page.locator("#account > .told")).to_have_text("The daily budget is 5 cents, from the next call on.")
    assert await world.cast() == 402
    await page.get_by_role("button", name="Remove").press("Enter")
    await expect(page.locator("#account > .told")).to_have_text("The daily budget is gone.")
    assert await world.cast() == 200

    # What a call would come to; and all of it is in the audit.
    await page.get_by_role("button", name="Explain").press("Enter")
    await expect(page.get_by_text("admitted: every budget and limit passes")).to_be_visible()
    audit = page.get_by_role("region", name="Audit").get_by_role("row")
    await expect(audit).to_have_count(1 + 3)
    await expect(audit.nth(1)).to_contain_text("Call explained")
    await expect(audit.nth(2)).to_contain_text("Budget removed")
    await expect(audit.nth(3)).to_contain_text("hard limit cents: 5")
    await expect(audit.nth(3)).to_contain_text("ADMIN_TOKEN, 127.0.0.1")
    assert await world.obstacles() == []

    # What the form does not ask for stays.
    headers = {"Authorization": f"Bearer {world.account.api_key}"}
    kept = {"period": "weekly", "soft_limit_cents": 400, "timezone": "Asia/Tokyo", "week_start": "sunday"}
    budgets_url = f"{world.gateway.base_url}/v1/budgets"
    async with world.session.post(budgets_url, headers=headers, json={**kept, "hard_limit_cents": 500}) as answer:
        assert answer.status == 201
    await page.reload()
    await page.locator("select[name=period]").select_option("weekly")
    await page.get_by_label("Cents at most").fill("900")
    await page.get_by_role("button", name="Set budget").press("Enter")
    await expect(page.locator("#account > .told")).to_have_text(
        "The weekly budget is 900 cents, from the next call on."
    )
    async with world.session.get(budgets_url, headers=headers) as answer:
        [own] = [one for one in (await answer.json())["budgets"] if one["period"] == "weekly"]
    assert {**kept, "hard_limit_cents": 900}.items() <= own.items()

    # A payment is in the log of webhooks, from which one is handled again.
    await world.subscribe()
    await page.get_by_role("link", name="← Overview").press("Enter")
    await expect(page.locator("#webhook-counts")).to_contain_text("applied")
    replay = page.locator("tr", has_text="customer.subscription.created").get_by_role("button")
    await replay.press("Enter")
    await expect(page.locator("#webhook-told")).to_contain_text("It was known already; its subscription")
    await page.get_by_label("Event", exact=True).fill("evt_nothing")
    await page.get_by_label("Event", exact=True).press("Enter")
    await expect(page.locator("#webhook-told")).to_contain_text("Stripe has no event evt_nothing")
    assert await world.obstacles() == []

    await page.set_viewport_size({"width": 320, "height": 640})
    assert await page.evaluate("document.documentElement.scrollWidth") == 320
    await page.get_by_role("button", name="Sign out").click()
    await expect(page.get_by_label("Admin token")).to_be_visible()
    # The browser itself complains of 401 after signing out, and of 404 for the event that is not there.
    assert [one for one in world.complaints if "401" not in one and "404" not in one] == []
    assert world.origins == {admin_url}
