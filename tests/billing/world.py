"""What the tests of billing set their scenes with: events as Stripe makes them, and gateways in this process."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import asyncpg
from aiohttp import ClientResponse, web
from aiohttp.test_utils import TestClient

from gateway.billing import Billing
from gateway.database import Database
from gateway.payments import PaymentsUnavailableError
from gateway.policy.budgets import BudgetLimit
from gateway.policy.rules import Plan, Rules
from gateway.policy.verdicts import BudgetExceeded, Hold
from tests.hosted.world import Replica
from tests.stripe_stub.running import RunningStub

CENT = 1_000_000
DAY_S = 86_400
PRICES = {"price_pro": "pro", "price_team": "team"}
PLANS = {
    "free": Plan(name="free", budgets=(BudgetLimit(period="monthly", hard_limit_microcents=2 * CENT),)),
    "pro": Plan(
        name="pro",
        budgets=(BudgetLimit(period="monthly", hard_limit_microcents=500 * CENT),),
        stripe_price="price_pro",
    ),
    "team": Plan(
        name="team",
        budgets=(BudgetLimit(period="monthly", hard_limit_microcents=9000 * CENT),),
        stripe_price="price_team",
    ),
}
RULES = Rules(version="test", policies=(), plans=PLANS, default_plan="free")

App = TestClient[web.Request, web.Application]
Json = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Gateway:
    """One replica: its endpoints, its billing, its admission."""

    app: App
    billing: Billing
    replica: Replica

    async def post(self, path: str, key: str, body: object = None, **more: Any) -> ClientResponse:
        headers = {"Authorization": f"Bearer {key}", **more.pop("headers", {})}
        return await self.app.post(path, json={} if body is None else body, headers=headers, **more)

    async def may_cast(self, account_id: str) -> bool:
        """A call of two cents is let in; what it holds stays held."""
        verdict = await self.replica.ask(account_id)
        assert isinstance(verdict, Hold | BudgetExceeded)
        return isinstance(verdict, Hold)


@dataclass(kw_only=True)
class Scene:
    """A stand-in for Stripe and two gateways on the same stores."""

    here: Gateway
    elsewhere: Gateway
    stub: RunningStub
    database: Database
    account_id: str

    async def standing(self, account_id: str = "") -> Mapping[str, Any]:
        row = await self.database.fetchrow(
            "SELECT stripe_customer_id, stripe_subscription_id, plan, status, plan_until, facts_version "
            "FROM billing_accounts WHERE account_id = $1",
            account_id or self.account_id,
        )
        return dict(row) if row else {}

    async def subscribe(self, key: str, plan: str = "pro") -> str:
        """Checkout and payment by the account of ``key``; all webhooks are delivered. The subscription's id."""
        answer = await self.here.post("/v1/billing/checkout", key, {"plan": plan})
        assert answer.status == 200, await answer.text()
        session_id = (await answer.json())["session_id"]
        paid = await self.stub.control("POST", f"checkout/{session_id}/pay")
        await self.stub.idle()
        subscription: str = paid["subscription"]
        return subscription


class FakePayments:
    """Stripe as handlers read it: how each subscription is now; or away."""

    def __init__(self) -> None:
        self.now: dict[str, Json] = {}
        self.away = False
        self.readings = 0

    async def subscription(self, subscription_id: str) -> Json:
        self.readings += 1
        if self.away:
            raise PaymentsUnavailableError("away")
        return self.now[subscription_id]


def subscription_of(
    subscription_id: str,
    status: str,
    *,
    price: str = "price_pro",
    customer: str = "cus_1",
    account_id: str | None = None,
    started_s: int = 1000,
    old_shape: bool = False,
) -> Json:
    """A subscription as an event of either generation has it."""
    item: Json = {"id": "si_1", "object": "subscription_item"}
    value: Json = {
        "id": subscription_id,
        "object": "subscription",
        "status": status,
        "customer": customer,
        "created": started_s,
        "cancel_at_period_end": False,
        "metadata": {"account_id": account_id} if account_id else {},
    }
    period = {"current_period_start": started_s, "current_period_end": started_s + 30 * DAY_S}
    if old_shape:
        plan = {"id": price, "object": "plan"}
        return {**value, **period, "plan": plan, "items": {"object": "list", "data": [{**item, "plan": plan}]}}
    return {**value, "items": {"object": "list", "data": [{**item, **period, "price": {"id": price}}]}}


def event_of(event_id: str, kind: str, created_s: int, thing: Json) -> Json:
    return {
        "id": event_id,
        "object": "event",
        "api_version": "2026-10-28.endive",
        "created": created_s,
        "type": kind,
        "data": {"object": thing},
        "livemode": False,
    }


def signed(body: bytes, secret: str, at_s: int | None = None) -> str:
    """The header that Stripe would send; written here once more, so that nobody's mistake is checked against itself."""
    seconds = round(datetime.now(UTC).timestamp()) if at_s is None else at_s
    digest = hmac.new(secret.encode(), f"{seconds}.".encode() + body, hashlib.sha256).hexdigest()
    return f"t={seconds},v1={digest}"


async def deliver(gateway: Gateway, event: Json, secret: str) -> ClientResponse:
    body = json.dumps(event).encode()
    headers = {"Stripe-Signature": signed(body, secret), "Content-Type": "application/json"}
    return await gateway.app.post("/webhooks/stripe", data=body, headers=headers)


async def add_row(connection: asyncpg.Connection[asyncpg.Record], account_id: str, customer: str) -> None:
    await connection.execute(
        "INSERT INTO billing_accounts (account_id, stripe_customer_id) VALUES ($1, $2)", account_id, customer
    )
