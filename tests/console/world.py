"""What the tests of the console sign in with, and what its gateway's rules are."""

from typing import Any

from aiohttp.test_utils import TestClient

from gateway.policy.budgets import BudgetLimit
from gateway.policy.rules import Cost, Plan, Policy, Rules

TOKEN = "0123456789-of-the-operators"
FREE = Plan(name="free", budgets=(BudgetLimit(period="monthly", hard_limit_microcents=500_000_000),))
PRO = Plan(name="pro", stripe_price="price_pro")
CAST = Policy(name="cast", methods=frozenset(), path="/v1/cast", cost=Cost(fixed_microcents=2_000_000))
RULES = Rules(version="v", policies=(CAST,), plans={"free": FREE, "pro": PRO}, default_plan="free")
WRITE = {"X-Castgate-Console": "1"}


async def sign_in(client: TestClient[Any, Any], token: str = TOKEN) -> int:
    async with client.post("/console/sign-in", data={"token": token}, allow_redirects=False) as answer:
        return answer.status
