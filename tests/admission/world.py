"""Admission in a world without Postgres: the ledger's tables are dictionaries here, and can be taken away."""

import asyncio
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, cast

from gateway.accounts import Account
from gateway.admission import Admission, Ask
from gateway.config.settings import Settings
from gateway.database import StoreError
from gateway.ledger import UsageEvent, WindowUsage
from gateway.metrics import Metrics
from gateway.policy.budgets import BudgetLimit
from gateway.policy.periods import Window
from gateway.policy.rules import Cost, Plan, Policy, RateLimit, Rules
from gateway.policy.verdicts import Hold, Verdict
from gateway.tasks import Tasks

CENT = 1_000_000


def monthly(cents: int) -> BudgetLimit:
    return BudgetLimit(period="monthly", hard_limit_microcents=cents * CENT)


def policy(*rate_limits: RateLimit, name: str = "cast", cents: int = 1, on_store_failure: str = "allow") -> Policy:
    return Policy(
        name=name,
        methods=frozenset({"POST"}),
        path="/v1/cast",
        cost=Cost(fixed_microcents=cents * CENT),
        rate_limits=rate_limits,
        on_store_failure=on_store_failure,
    )


CAST = policy()


def per_minute(limit: int, algorithm: str = "sliding_window", **fields: Any) -> RateLimit:
    return RateLimit(
        **{"name": algorithm, "key": "account", "limit": limit, "window_ms": 60_000, "algorithm": algorithm, **fields}
    )


class Tables:
    """Postgres: facts, events and counters, shared by all workers of a test."""

    def __init__(self) -> None:
        self.is_away = False
        self.facts: dict[str, tuple[int, str, tuple[BudgetLimit, ...]]] = {}
        self.events: dict[str, UsageEvent] = {}
        self.counters: dict[tuple[str, str, int], list[int]] = {}  # account, kind, start -> end, used
        self.workers: set[str] = set()
        self.statements: list[tuple[str, int]] = []  # what was asked, for how many accounts

    def put(self, account_id: str, *limits: BudgetLimit, version: int = 1, plan: str = "free") -> None:
        self.facts[account_id] = (version, plan, limits)

    async def load(self, accounts: Sequence[Account]) -> None:
        self._arrive("load", len(accounts))
        await asyncio.sleep(0)
        for account in accounts:
            account.version, account.plan, account.limits = self.facts.get(account.account_id, (0, "free", ()))
            account.admission = None

    async def seed(self, wanted: Sequence[tuple[Account, Mapping[str, Window]]]) -> Mapping[str, Mapping[str, int]]:
        await self.load([account for account, _ in wanted])
        self._arrive("seed", len(wanted))
        return {
            account.account_id: {
                kind: self._counter(account.account_id, kind, window) for kind, window in windows.items()
            }
            for account, windows in wanted
        }

    def record(self, events: Sequence[UsageEvent]) -> list[WindowUsage]:
        self._arrive("record", len(events))
        for event in events:
            if event.event_id in self.events:
                continue
            self.events[event.event_id] = event
            for (account_id, _, start_ms), counter in self.counters.items():
                if account_id == event.account_id and start_ms <= event.occurred_ms < counter[0]:
                    counter[1] += event.cost_microcents
        touched = {event.account_id for event in events}
        return [
            WindowUsage(account_id, kind, start_ms, end_ms, used)
            for (account_id, kind, start_ms), (end_ms, used) in self.counters.items()
            if account_id in touched
        ]

    def used(self, account_id: str) -> int:
        return sum(event.cost_microcents for event in self.events.values() if event.account_id == account_id)

    async def living(self) -> Sequence[str]:
        """The fleet's: the workers that were started and not stopped."""
        return [] if self.is_away else sorted(self.workers)

    def _counter(self, account_id: str, kind: str, window: Window) -> int:
        counter = self.counters.get((account_id, kind, window.start_ms))
        if counter is None:
            used = sum(
                event.cost_microcents
                for event in self.events.values()
                if event.account_id == account_id and window.start_ms <= event.occurred_ms < window.end_ms
            )
            counter = self.counters[account_id, kind, window.start_ms] = [window.end_ms, used]
        return counter[1]

    def _arrive(self, statement: str, rows: int) -> None:
        if self.is_away:
            raise StoreError("away")
        self.statements.append((statement, rows))


class Worker:
    """One worker's admission, with the accounts it has met."""

    def __init__(self, tables: Tables, redis_url: str, worker_id: str, rules: Rules, **options: Any) -> None:
        redis = {
            "url": redis_url,
            "timeout": "5s",
            **{
                key: options.pop(key)
                for key in list(options)
                if key in ("timeout", "partitions", "batch_max", "connect_timeout")
            },
        }
        settings = Settings.model_validate(
            {
                "upstream": {"url": "http://127.0.0.1:1"},
                "database": {"url": "postgresql://nobody@127.0.0.1/none"},
                "redis": redis,
                "hold_ttl": options.pop("hold_ttl", "60s"),
            }
        )
        self.tables = tables
        self.tasks = Tasks()
        self.metrics = Metrics()
        self.events: list[UsageEvent] = []
        self.rules = rules
        self._accounts: dict[str, Account] = {}
        self.worker_id = worker_id
        tables.workers.add(worker_id)
        self.admission = Admission(
            worker_id=worker_id,
            fleet=tables,
            settings=settings,
            accounts=cast(
                "Any",
                SimpleNamespace(
                    load=lambda accounts: tables.load(accounts),
                    seed=lambda wanted: tables.seed(wanted),
                    recent=lambda: list(self._accounts.values()),
                ),
            ),
            ledger=cast("Any", self),
            rules=lambda: self.rules,
            tasks=self.tasks,
            metrics=self.metrics,
            **options,
        )

    def use_rules(self, rules: Rules) -> None:
        """As ``Accounts.rules_changed`` does it: what was derived from other rules is forgotten."""
        self.rules = rules
        for account in self._accounts.values():
            account.admission = None

    def account(self, account_id: str) -> Account:
        return self._accounts.setdefault(account_id, Account(account_id))

    def asked(self, account_id: str | None, policy: Policy = CAST, **fields: Any) -> "asyncio.Future[Verdict]":
        """The verdict to come."""
        verdict: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()
        keys = fields.pop("keys", tuple(account_id or "nobody" for _ in policy.rate_limits))
        account = None if account_id is None else self.account(account_id)
        self.admission.ask(Ask(account, policy.cost.hold_microcents, policy, keys, verdict.set_result, **fields))
        return verdict

    async def ask(self, account_id: str | None, policy: Policy = CAST, **fields: Any) -> Verdict:
        return await asyncio.wait_for(self.asked(account_id, policy, **fields), 10)

    async def ask_many(self, account_id: str | None, calls: int, policy: Policy = CAST) -> list[Verdict]:
        return await asyncio.wait_for(asyncio.gather(*(self.asked(account_id, policy) for _ in range(calls))), 20)

    def append(self, event: UsageEvent) -> None:
        """The ledger's."""
        self.events.append(event)

    def flush(self) -> None:
        """What the ledger has gathered is committed."""
        events, self.events = self.events, []
        self.admission.posted(events, self.tables.record(events))

    def post(self, *holds: Verdict, cost: int | None = None) -> None:
        """The calls are over and charged, at their full amount unless told otherwise."""
        for hold in holds:
            assert isinstance(hold, Hold)
            amount = hold.amount_microcents if cost is None else cost
            self.admission.finished(hold, amount)
            self.append(UsageEvent(hold.hold_id, hold.account_id, "cast", hold.admitted_ms, amount, 200, "posted"))
        self.flush()

    async def settled(self) -> None:
        """Until everything said so far has been told to Redis."""
        for lane in self.admission._lanes:
            async with asyncio.timeout(10):
                while lane.settled.count or lane._flying:
                    await asyncio.sleep(0.001)

    async def serving(self) -> None:
        """Until Redis decides for this worker: not before it has noticed whatever happened to Redis last."""
        for lane in self.admission._lanes:
            async with asyncio.timeout(10):
                served = lane.served
                lane._beat_due = True
                while not lane.is_up or lane.served == served:
                    if lane.is_up and not lane._flying:
                        lane._send()
                    await asyncio.sleep(0.002)

    async def stop(self) -> None:
        self.tables.workers.discard(self.worker_id)
        await self.admission.close()
        await self.tasks.drain(1.0)
        self.metrics.close()


def rules_of(**plans: Plan) -> Rules:
    return Rules(version="1", policies=(CAST,), plans={"free": Plan(name="free"), **plans}, default_plan="free")
