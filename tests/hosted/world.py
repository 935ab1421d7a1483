"""What the tests of hosted endpoints set their scenes with."""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
from aiohttp import ClientResponse

from gateway.accounts import Accounts
from gateway.admission import Admission, Ask
from gateway.config.settings import Settings
from gateway.database import Database
from gateway.hosted.services import Services
from gateway.ledger import Ledger, UsageEvent
from gateway.policy.budgets import BudgetLimit
from gateway.policy.rules import Cost, Plan, Policy, Rules
from gateway.policy.verdicts import Hold, Verdict

Call = Callable[..., Awaitable[ClientResponse]]
ROOT = Path(__file__).parents[2]
# A Sunday, in the middle of everything.
NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
KEY = "ck_test_the-account's-key"
SESSION = "the-account's-session"
CENT = 1_000_000
PLANS = {
    "free": Plan(name="free", budgets=(BudgetLimit(period="monthly", hard_limit_microcents=500 * CENT),)),
    "unlimited": Plan(name="unlimited"),
}
RULES = Rules(version="test", policies=(), plans=PLANS, default_plan="free")


SPELL = Policy(name="cast", methods=frozenset(), path="/v1/cast", cost=Cost(fixed_microcents=2 * CENT))


class WatchedAdmission(Admission):
    """Admission, and a list of the changes that it was told of."""

    def __init__(self, **services: Any) -> None:
        super().__init__(**services)
        self.changes: list[tuple[str, int]] = []

    async def facts_changed(self, account_id: str, version: int) -> None:
        await super().facts_changed(account_id, version)
        self.changes.append((account_id, version))


@dataclass(frozen=True, kw_only=True)
class Replica:
    """A worker: what it knows, and what it admits."""

    accounts: Accounts
    admission: WatchedAdmission

    async def ask(self, account_id: str) -> Verdict:
        """A call of SPELL by the account wants to pass."""
        verdict: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()
        ask = Ask(self.accounts.get(account_id), SPELL.cost.hold_microcents, SPELL, (), verdict.set_result)
        self.admission.ask(ask)
        return await verdict


@dataclass(kw_only=True)
class World:
    """What a test needs to set the scene and look behind it."""

    account_id: str
    settings: Settings
    rules: Rules = RULES
    now: datetime = NOON
    services: Services = field(init=False)
    database: Database = field(init=False)
    ledger: Ledger = field(init=False)
    here: Replica = field(init=False)  # the worker whose hosted application is tested
    elsewhere: Replica = field(init=False)

    @property
    def admission(self) -> WatchedAdmission:
        return self.here.admission

    def now_ms(self) -> int:
        return round(self.now.timestamp() * 1000)

    def use_rules(self, rules: Rules) -> None:
        self.rules = rules
        self.here.accounts.rules_changed()

    def forget_unknown_callers(self) -> None:
        """From now on a credential that nobody has is looked up each time."""
        cache = self.settings.identity.cache.model_copy(update={"negative_ttl_s": 0.0})
        identity = self.settings.identity.model_copy(update={"cache": cache})
        self.settings = self.settings.model_copy(update={"identity": identity})

    async def spend(self, cents: int, *, at: datetime | None = None, policy: str = "cast", account: str = "") -> None:
        """One charged call, as the ledger writes it."""
        async with self.database.connection() as connection:
            await connection.execute(
                "SELECT castgate_record_usage($1, $2, $3, $4, $5, $6, $7, $8, $9, NULL, NULL, NULL)",
                [uuid.uuid4()],
                [account or self.account_id],
                [policy],
                [round((at or self.now).timestamp() * 1000)],
                [cents * CENT],
                [200],
                ["posted"],
                [None],
                [None],
            )


async def migrate(connection: asyncpg.Connection[Any]) -> None:
    for folder in ("upstream_stub/migrations", "migrations"):
        for file in sorted((ROOT / folder).glob("*.sql")):
            if not file.name.endswith(".rollback.sql"):
                await connection.execute(file.read_text())


async def add_account(connection: asyncpg.Connection[Any], key: str, session: str | None = None) -> str:
    """A user of Phase 1 with an API key; the id that the gateway knows the account by."""
    user, digest = uuid.uuid4(), hashlib.sha256(key.encode()).hexdigest()
    await connection.execute("INSERT INTO users VALUES ($1, $2, 'x')", user, f"{user}@example.org")
    await connection.execute(
        "INSERT INTO api_keys (id, user_id, name, prefix, key_sha256) VALUES ($1, $2, 'k', 'ck', $3)",
        uuid.uuid4(),
        user,
        digest,
    )
    if session is not None:
        token = hashlib.sha256(session.encode()).hexdigest()
        await connection.execute("INSERT INTO sessions VALUES ($1, $2, now() + interval '1 day')", token, user)
    return str(user)


def charge(hold: Hold) -> UsageEvent:
    """The event of an admitted call of SPELL that was answered."""
    return UsageEvent(
        event_id=hold.hold_id,
        account_id=hold.account_id,
        policy=SPELL.name,
        occurred_ms=hold.admitted_ms,
        cost_microcents=hold.amount_microcents,
        upstream_status=200,
        outcome="posted",
        cast_id=None,
        request_id=None,
    )
