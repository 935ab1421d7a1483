"""Accounts: one object each, facts of one snapshot, old facts until there are new ones, counters when asked for."""

import gc
from typing import Any

import asyncpg
import pytest

from gateway.accounts import NOT_LOADED, Accounts
from gateway.database import Database, StoreError
from gateway.metrics import Metrics
from gateway.policy.budgets import BudgetLimit
from gateway.policy.periods import ALL_TIME, window_at
from gateway.policy.rules import Plan, Rules
from gateway.tasks import Tasks
from tests.ledger.making import NOON_MS, lenient_breaker

Connection = asyncpg.Connection
FREE = BudgetLimit(period="monthly", hard_limit_microcents=500)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def rules_of(**plans: tuple[BudgetLimit, ...]) -> Rules:
    made = {name: Plan(name=name, budgets=budgets) for name, budgets in plans.items()}
    return Rules(version="1", policies=(), plans=made, default_plan="free")


class Changing:
    """Rules that an operator edits, and a clock."""

    def __init__(self, database: Database, tasks: Tasks, **settings: float) -> None:
        self.rules = rules_of(free=(FREE,), pro=())
        self.clock = Clock()
        self.accounts = Accounts(database, lambda: self.rules, tasks, clock=self.clock, **settings)  # type: ignore[arg-type]


@pytest.fixture
def changing(database: Database, tasks: Tasks) -> Changing:
    return Changing(database, tasks)


async def test_an_account_that_nobody_stored_has_the_default_plan(changing: Changing) -> None:
    account = changing.accounts.get("a")
    assert account.version == NOT_LOADED
    await changing.accounts.load([account])
    assert (account.plan, account.version, account.limits) == ("free", 0, (FREE,))


async def test_facts_are_plan_version_and_the_lower_of_own_and_plan_limits(changing: Changing, sql: Connection) -> None:
    await sql.execute("INSERT INTO billing_accounts (account_id, plan, facts_version) VALUES ('a', 'free', 7)")
    await sql.execute(
        """
        INSERT INTO budgets (account_id, period, hard_limit_microcents, time_zone, week_start) VALUES
        ('a', 'monthly', 900, 'UTC', 1), ('a', 'weekly', 90, 'Asia/Tokyo', 7), ('a', 'total', 9, 'Asia/Tokyo', 3)
        """
    )
    account = changing.accounts.get("a")
    await changing.accounts.load([account])
    assert account.version == 7
    assert {limit.kind: limit.hard_limit_microcents for limit in account.limits} == {
        "total/UTC/1": 9,
        "monthly/UTC/1": 500,
        "weekly/Asia/Tokyo/7": 90,
    }


async def test_accounts_with_the_same_budgets_share_them(changing: Changing, sql: Connection) -> None:
    await sql.execute("INSERT INTO billing_accounts (account_id) VALUES ('a'), ('b'), ('c')")
    await sql.execute(
        """
        INSERT INTO budgets (account_id, period, hard_limit_microcents) VALUES
        ('a', 'weekly', 90), ('b', 'weekly', 90), ('c', 'weekly', 91)
        """
    )
    a, b, c = accounts = [changing.accounts.get(name) for name in "abc"]
    await changing.accounts.load(accounts)
    assert a.limits is b.limits
    assert a.own is b.own
    assert c.limits != a.limits


async def test_one_id_is_one_object_as_long_as_anybody_holds_it(database: Database, tasks: Tasks) -> None:
    accounts = Changing(database, tasks, entries_max=2).accounts
    held = accounts.get("held")
    for number in range(10):
        accounts.get(str(number))
    assert accounts.get("held") is held
    gc.collect()
    assert len(accounts._living) <= 3


async def test_changed_rules_change_the_limits_of_every_account(changing: Changing, sql: Connection) -> None:
    await sql.execute("INSERT INTO billing_accounts (account_id, plan) VALUES ('gold', 'gold')")
    free, gold = changing.accounts.get("a"), changing.accounts.get("gold")
    await changing.accounts.load([free, gold])
    assert gold.plan == "free"
    something: Any = object()
    free.admission = something
    raised = BudgetLimit(period="monthly", hard_limit_microcents=5000)
    changing.rules = rules_of(free=(raised,), gold=())
    changing.accounts.rules_changed()
    assert free.limits == (raised,)
    assert free.admission is None
    assert (gold.plan, gold.limits) == ("gold", ())


async def test_accounts_with_the_same_budgets_share_them_until_rules_change(
    changing: Changing, sql: Connection
) -> None:
    rows = "('a', 'monthly', 7), ('b', 'monthly', 7)"
    await sql.execute(f"INSERT INTO budgets (account_id, period, hard_limit_microcents) VALUES {rows}")
    one, two = changing.accounts.get("a"), changing.accounts.get("b")
    await changing.accounts.load([one, two])
    first = one.limits
    assert [limit.hard_limit_microcents for limit in first] == [7]
    assert two.limits is first
    assert two.own is one.own
    # Soft limits look whether it is the same object: of equal budgets new rules may announce other shares than before.
    changing.rules = rules_of(free=(), gold=())
    changing.accounts.rules_changed()
    second = one.limits
    assert (second, second is first) == (first, False)
    await changing.accounts.load([one, two])
    assert one.limits is two.limits is second


async def test_loading_the_same_facts_again_keeps_what_admission_made_of_them(
    changing: Changing, sql: Connection
) -> None:
    account = changing.accounts.get("a")
    await changing.accounts.load([account])
    mark: Any = object()
    account.admission = mark
    await changing.accounts.load([account])
    assert account.admission is mark
    await sql.execute("INSERT INTO billing_accounts (account_id, facts_version) VALUES ('a', 1)")
    await changing.accounts.load([account])
    assert account.admission is None


async def test_facts_over_their_age_are_read_again_in_the_background(
    changing: Changing, tasks: Tasks, sql: Connection
) -> None:
    account = changing.accounts.get("a")
    await changing.accounts.load([account])
    await sql.execute("INSERT INTO billing_accounts (account_id, plan, facts_version) VALUES ('a', 'pro', 1)")
    changing.accounts.refresh(account)
    assert len(tasks) == 0
    changing.clock.now += 30.0
    changing.accounts.refresh(account)
    assert account.plan == "free"
    await tasks.drain(5.0)
    assert account.plan == "pro"


async def test_old_facts_serve_while_postgres_is_away(tasks: Tasks, metrics: Metrics, changing: Changing) -> None:
    account = changing.accounts.get("a")
    await changing.accounts.load([account])
    changing.accounts._database = Database("postgresql://127.0.0.1:1/none", breaker=lenient_breaker(), metrics=metrics)
    changing.clock.now += 30.0
    changing.accounts.refresh(account)
    await tasks.drain(5.0)
    assert (account.plan, account.version) == ("free", 0)
    changing.accounts.refresh(account)
    assert len(tasks) == 0, "not before a pause"
    changing.clock.now += 1.0
    changing.accounts.refresh(account)
    assert len(tasks) == 1
    with pytest.raises(StoreError):
        await changing.accounts.load([account])


async def test_seeding_makes_counters_and_reads_facts(changing: Changing, sql: Connection) -> None:
    await sql.execute("INSERT INTO billing_accounts (account_id, plan, facts_version) VALUES ('a', 'pro', 3)")
    month = window_at("monthly", "Asia/Tokyo", 1, NOON_MS)
    accounts = [changing.accounts.get(name) for name in ("a", "b", "c")]
    used = await changing.accounts.seed(
        [
            (accounts[0], {"monthly/Asia/Tokyo/1": month, "total/UTC/1": ALL_TIME}),
            (accounts[1], {"total/UTC/1": ALL_TIME}),
            (accounts[2], {}),
        ]
    )
    assert used == {"a": {"monthly/Asia/Tokyo/1": 0, "total/UTC/1": 0}, "b": {"total/UTC/1": 0}, "c": {}}
    assert [account.version for account in accounts] == [3, 0, 0]
    rows = await sql.fetch(
        """
        SELECT account_id, period, (extract(epoch FROM window_start) * 1000)::bigint AS starts,
               (extract(epoch FROM window_end) * 1000)::bigint AS ends
        FROM usage_counters ORDER BY 1, 2
        """
    )
    assert [tuple(row) for row in rows] == [
        ("a", "monthly", month.start_ms, month.end_ms),
        ("a", "total", 0, ALL_TIME.end_ms),
        ("b", "total", 0, ALL_TIME.end_ms),
    ]


async def test_a_thousand_accounts_are_seeded_at_once(changing: Changing) -> None:
    day = window_at("daily", "UTC", 1, NOON_MS)
    accounts = [changing.accounts.get(str(number)) for number in range(1200)]
    used = await changing.accounts.seed([(account, {"daily/UTC/1": day}) for account in accounts])
    assert used == {str(number): {"daily/UTC/1": 0} for number in range(1200)}
    assert await changing.accounts.seed([]) == {}
