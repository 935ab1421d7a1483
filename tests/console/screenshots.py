"""``./dev screenshots``: the pictures of the console in docs/images, light and dark, of a ``./dev up`` with traffic.

Traffic runs for as long as the console's chart looks back. It is made of the same each time; the picture is not, to
the pixel, so somebody looks at it before it is committed.
"""

import argparse
import asyncio
import math
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
from playwright.async_api import Browser, Page, async_playwright, expect

from tests.billing.test_browser_story import CHROMIUM, FLAGS
from tests.up.running import Up, up
from tests.upstream_stub.running import create_account

FOLDER = Path(__file__).parents[2] / "docs" / "images"
SIZE = {"width": 1360, "height": 850}
CALLS_A_SECOND = 30.0
# Who is near the limit, in cents: for the bars.
BUDGETS = (400, 340, 260, 900, None, None)
PAST_DAYS = 30


async def main(seconds: float, folder: Path) -> None:
    """Run everything, and take the pictures at the end."""
    with tempfile.TemporaryDirectory(prefix="castgate-pictures-") as data_dir:
        environ = {"STUB_RATE_LIMIT_PER_MINUTE": "0", "RATE_LIMIT_PER_MINUTE": "240", "LOG_LEVEL": "error"}
        with up(Path(data_dir), "--ephemeral", "--workers", "2", **environ) as one:
            one.wait_for("ready ")
            async with aiohttp.ClientSession() as session, async_playwright() as playwright:
                keys = await _accounts(one, session)
                browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
                pages = [await _page(browser, one, scheme) for scheme in ("light", "dark")]
                async with asyncio.TaskGroup() as tasks:
                    traffic = tasks.create_task(_traffic(one, session, keys, seconds))
                    await asyncio.sleep(seconds)
                    for scheme, page in zip(("light", "dark"), pages, strict=True):
                        await _taken(page, one, folder, scheme)
                    traffic.cancel()
                await browser.close()


async def _accounts(one: Up, session: aiohttp.ClientSession) -> Sequence[str]:
    """Keys of accounts with budgets of their own; the demo account has paid and has a past."""
    keys = [one.demo["api_key"]]
    await _pay(one, session)
    await _past(one)
    for cents in BUDGETS:
        account = await create_account(one.demo["database_url"])
        keys.append(account.api_key)
        if cents is not None:
            await _post(one, session, "/v1/budgets", account.api_key, period="total", hard_limit_cents=cents)
    return keys


async def _post(one: Up, session: aiohttp.ClientSession, path: str, key: str, **body: object) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {key}"}
    async with session.post(f"{one.demo['base_url']}{path}", headers=headers, json=body) as answer:
        answered: dict[str, Any] = await answer.json()
        return answered


async def _pay(one: Up, session: aiohttp.ClientSession) -> None:
    url = (await _post(one, session, "/v1/billing/checkout", one.demo["api_key"]))["url"]
    form = {"how": "pay", "email": "person@example.com", "card": "4242 4242 4242 4242"}
    async with session.post(url, data=form) as answer:
        answer.raise_for_status()


async def _past(one: Up) -> None:
    """Charged calls of the last days."""
    connection: asyncpg.Connection[Any] = await asyncpg.connect(one.demo["database_url"])
    await connection.execute(
        "INSERT INTO usage_events (id, account_id, policy, occurred_at, cost_microcents, upstream_status, outcome)"
        " SELECT gen_random_uuid(), $1, 'cast', now() - day * interval '1 day', 1000000, 200, 'posted'"
        " FROM generate_series(1, $2::int - 1) AS day,"
        " generate_series(1, (60 + 40 * sin(day * 0.9) + (day * 7919) % 37)::int)",
        one.demo["account_id"],
        PAST_DAYS,
    )
    await connection.execute("SELECT castgate_repair_usage(ARRAY[$1])", one.demo["account_id"])
    await connection.close()


async def _traffic(one: Up, session: aiohttp.ClientSession, keys: Sequence[str], seconds: float) -> None:
    chosen = random.Random(4)
    weights = [3, 4, 3, 2, 2, 2, 1]
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with asyncio.TaskGroup() as under_way:
        while True:
            share = (loop.time() - began) / seconds
            rate = CALLS_A_SECOND * (1 + 0.6 * math.sin(share * 9) + 0.3 * math.sin(share * 31))
            is_burst = 0.3 < share < 0.45 and chosen.random() < 0.4
            key = keys[4] if is_burst else chosen.choices(keys, weights)[0]
            under_way.create_task(_post(one, session, "/v1/cast", key, input="lumos"))
            await asyncio.sleep(chosen.expovariate(max(rate, 1.0)))


async def _page(browser: Browser, one: Up, scheme: str) -> Page:
    page = await browser.new_page(viewport=SIZE, color_scheme=scheme)  # type: ignore[arg-type]
    await page.goto(f"{one.demo['admin_url']}/console")
    await expect(page.get_by_role("heading", name="Calls a second")).to_be_visible()
    return page


async def _taken(page: Page, one: Up, folder: Path, scheme: str) -> None:
    await page.bring_to_front()
    await expect(page.locator("#near-list li").first).to_be_visible()
    await page.screenshot(path=folder / f"console-{scheme}.png")
    await page.evaluate(f"location.hash = '#/account/{one.demo['account_id']}'")
    await expect(page.get_by_role("heading", name=one.demo["account_id"])).to_be_visible()
    if scheme == "light":  # what is asked is in the audit of both
        await page.get_by_role("button", name="Explain").click()
        await expect(page.get_by_text("admitted:")).to_be_visible()
        await page.get_by_label("Cents at most").fill("2500")
        await page.get_by_role("button", name="Set budget").click()
        await expect(page.locator("#account > .told")).to_contain_text("2500 cents")
    await page.screenshot(path=folder / f"account-{scheme}.png", full_page=True)


def options(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(prog="./dev screenshots", description=__doc__)
    parser.add_argument(
        "--seconds", type=float, default=125.0, help="of traffic before the picture (default: %(default)s)"
    )
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the pictures go (default: docs/images)")
    return parser.parse_args(words)


if __name__ == "__main__":
    asked = options()
    asyncio.run(main(asked.seconds, asked.folder))
