"""Two gateways in this process, on the same Postgres and Redis, and a stand-in for Stripe that tells them of events."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import asyncpg
import pytest
from aiohttp.test_utils import TestClient, TestServer

from gateway.accounts import Accounts
from gateway.billing import Billing
from gateway.config.settings import Settings
from gateway.database import Database
from gateway.fleet import Fleet
from gateway.hosted.app import create_app
from gateway.hosted.services import Services
from gateway.hosted.webhooks import Webhooks
from gateway.identify import Identify
from gateway.ledger import Ledger
from gateway.metrics import Metrics
from gateway.metrics_scrape import Exposition
from gateway.payments import Payments
from gateway.relay.counters import wall_clock_ms
from gateway.tasks import Tasks
from tests.billing.world import RULES, Gateway, Scene
from tests.hosted.world import KEY, SESSION, Replica, WatchedAdmission, add_account, migrate
from tests.stripe_stub.running import KEY as STRIPE_KEY
from tests.stripe_stub.running import SECRET, stub_here

OLD_SECRET = "whsec_that_is_being_replaced"


def settings_of(database_url: str, redis_url: str, stripe_url: str) -> Settings:
    return Settings.model_validate(
        {
            "upstream": {"url": "http://127.0.0.1:1"},
            "database": {"url": database_url},
            "redis": {"url": redis_url, "timeout": "5s"},
            "billing": {
                "stripe_secret_key": STRIPE_KEY,
                "stripe_webhook_secret": f"{OLD_SECRET},{SECRET}",
                "stripe_api_base": stripe_url,
                "timeout": "2s",
                "success_url": "https://shop.example/thanks?session={CHECKOUT_SESSION_ID}",
                "cancel_url": "https://shop.example/pricing",
                "return_origins": ["https://app.example", "http://localhost:3000"],
            },
        }
    )


@pytest.fixture
async def scene(database_url: str, redis_url: str) -> AsyncIterator[Scene]:
    async with AsyncExitStack() as stack:
        connection: asyncpg.Connection[Any] = await asyncpg.connect(database_url)
        await migrate(connection)
        account_id = await add_account(connection, KEY, SESSION)
        await connection.close()
        stub = await stack.enter_async_context(stub_here())
        settings = settings_of(database_url, redis_url, stub.base_url)
        tasks, metrics = Tasks(), Metrics()
        stack.callback(metrics.close)

        async def gateway(worker_id: str) -> tuple[Gateway, Database]:
            database = Database.from_settings(settings.database, metrics)
            stack.push_async_callback(database.close)
            stack.push_async_callback(tasks.drain, 0.0)
            ledger = Ledger(database, settings.ledger, tasks, metrics)
            accounts = Accounts(database, lambda: RULES, tasks)
            admission = WatchedAdmission(
                worker_id=worker_id,
                settings=settings,
                accounts=accounts,
                ledger=ledger,
                database=database,
                fleet=Fleet(database, worker_id),
                rules=lambda: RULES,
                tasks=tasks,
                metrics=metrics,
            )
            await admission.start()
            stack.push_async_callback(admission.close)
            ledger.on_committed = admission.posted
            stack.push_async_callback(ledger.close)
            payments = Payments(settings.billing)
            stack.push_async_callback(payments.close)
            billing = Billing(
                database=database,
                payments=payments,
                rules=lambda: RULES,
                tell=admission.facts_changed,
                grace_days=settings.billing.grace_days,
            )
            services = Services(
                identify=Identify(database, accounts, settings.identity, tasks, metrics),
                accounts=accounts,
                admission=admission,
                database=database,
                rules=lambda: RULES,
                settings=lambda: settings,
                render_metrics=lambda _: Exposition(body=b"", content_type="text/plain"),
                now_ms=wall_clock_ms,
                billing=billing,
                webhooks=Webhooks(settings.billing.stripe_webhook_secrets, metrics),
            )
            app = await stack.enter_async_context(TestClient(TestServer(create_app(services))))
            return Gateway(app=app, billing=billing, replica=Replica(accounts=accounts, admission=admission)), database

        here, database = await gateway("gateway-0-1")
        elsewhere, _ = await gateway("gateway-1-1")
        endpoint = {"url": str(here.app.make_url("/webhooks/stripe")), "secrets": [SECRET]}
        await stub.control("PUT", "endpoints", [endpoint])
        yield Scene(here=here, elsewhere=elsewhere, stub=stub, database=database, account_id=account_id)
