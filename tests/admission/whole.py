"""A worker with real stores on both sides: admission, accounts and ledger as ``gateway.worker`` puts them together."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg

from gateway.accounts import Account, Accounts
from gateway.admission import Admission, Ask
from gateway.config.settings import Settings
from gateway.database import Database
from gateway.fleet import Fleet
from gateway.ledger import Ledger, UsageEvent
from gateway.metrics import Metrics
from gateway.policy.rules import Policy, Rules
from gateway.policy.verdicts import Hold, Verdict
from gateway.tasks import Tasks
from tests.admission.world import CENT, policy, rules_of

DENY = policy(on_store_failure="deny")


class WholeWorker:
    """Time-outs are long by default: the machine may be busy with other tests."""

    def __init__(
        self,
        worker_id: str,
        *,
        database_url: str,
        redis_url: str,
        rules: Rules | None = None,
        redis_timeout: str = "2s",
        admission_timeout: str = "5s",
        partitions: int | str = "auto",
        **settings: Any,
    ) -> None:
        read = Settings.model_validate(
            {
                "upstream": {"url": "http://127.0.0.1:1"},
                "database": {"url": database_url, "admission_timeout": admission_timeout, "statement_timeout": "10s"},
                "redis": {"url": redis_url, "timeout": redis_timeout, "partitions": partitions},
                "ledger": {"cast_cost_sql": "", "flush_interval": "1ms"},
                **settings,
            }
        )
        self.worker_id = worker_id
        self.admission_settings = read
        self.rules = rules or rules_of()
        self.tasks, self.metrics = Tasks(), Metrics()
        self.database = Database.from_settings(read.database, self.metrics)
        self.accounts = Accounts(self.database, lambda: self.rules, self.tasks)
        self.ledger = Ledger(self.database, read.ledger, self.tasks, self.metrics)
        self.fleet = Fleet(self.database, worker_id)
        self.admission = Admission(
            worker_id=worker_id,
            settings=read,
            accounts=self.accounts,
            ledger=self.ledger,
            database=self.database,
            fleet=self.fleet,
            rules=lambda: self.rules,
            tasks=self.tasks,
            metrics=self.metrics,
        )
        self.ledger.on_committed = self.admission.posted
        self.ledger.on_dropped = self.admission.dropped
        self.ledger.has_holds = self.admission.has_rows

    async def start(self) -> None:
        await self.fleet.living()
        await self.admission.start()

    def account(self, account_id: str) -> Account:
        return self.accounts.get(account_id)

    def asked(self, account_id: str, policy: Policy = DENY, **fields: Any) -> "asyncio.Future[Verdict]":
        verdict: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()
        keys = tuple(account_id for _ in policy.rate_limits)
        account = self.account(account_id)
        self.admission.ask(Ask(account, policy.cost.hold_microcents, policy, keys, verdict.set_result, **fields))
        return verdict

    async def ask(self, account_id: str, policy: Policy = DENY) -> Verdict:
        return await asyncio.wait_for(self.asked(account_id, policy), 20)

    async def ask_many(self, account_id: str, calls: int, policy: Policy = DENY) -> list[Verdict]:
        asked = [self.asked(account_id, policy) for _ in range(calls)]
        return list(await asyncio.wait_for(asyncio.gather(*asked), 30))

    def post(self, *holds: Verdict) -> None:
        """The calls are over and charged; the ledger has them soon."""
        for hold in holds:
            assert isinstance(hold, Hold)
            self.admission.finished(hold, hold.amount_microcents)
            self.ledger.append(
                UsageEvent(
                    hold.hold_id, hold.account_id, "cast", hold.admitted_ms, hold.amount_microcents, 200, "posted"
                )
            )

    async def on(self, rung: str) -> None:
        """Until this worker stands on that rung."""
        async with asyncio.timeout(20):
            while self.admission.ladder.rung != rung or (rung == "redis" and not self._serves()):
                await asyncio.sleep(0.002)

    def _serves(self) -> bool:
        return all(lane.is_up for lane in self.admission._lanes)

    async def settled(self) -> None:
        """Until the ledger has everything, and Redis, where it is there, has heard of it."""
        async with asyncio.timeout(20):
            while len(self.ledger) or self.ledger._task is not None:
                await asyncio.sleep(0.002)
            for lane in self.admission._lanes:
                while lane.is_up and (lane.settled.count or lane._flying):
                    await asyncio.sleep(0.002)

    async def stop(self) -> None:
        await self.ledger.close(5)
        await self.admission.close()
        await self.fleet.leave()
        await self.tasks.drain(0.1)
        await self.database.close()
        self.metrics.close()


class Books:
    """What Postgres says, for assertions."""

    def __init__(self, connection: "asyncpg.Connection[asyncpg.Record]") -> None:
        self._connection = connection

    async def budget(self, account_id: str, cents: int) -> None:
        await self._connection.execute(
            "INSERT INTO budgets (account_id, period, hard_limit_microcents) VALUES ($1, 'monthly', $2)"
            " ON CONFLICT (account_id, period) DO UPDATE SET hard_limit_microcents = excluded.hard_limit_microcents",
            account_id,
            cents * CENT,
        )

    async def wait_for_locks(self) -> None:
        """For as long as workers here wait for Postgres: on a busy machine others have one for over 40 ms."""
        await self._connection.execute("ALTER FUNCTION castgate_admit SET lock_timeout = '3s'")

    async def changed(self, account_id: str) -> None:
        """Its facts are of a new version."""
        await self._connection.execute(
            "INSERT INTO billing_accounts AS billing (account_id, facts_version) VALUES ($1, 1)"
            " ON CONFLICT (account_id) DO UPDATE SET facts_version = billing.facts_version + 1",
            account_id,
        )

    async def used_cents(self, account_id: str) -> int:
        """By the events, and by the counter, which must be the same."""
        row = await self._connection.fetchrow(
            "SELECT (SELECT coalesce(sum(cost_microcents), 0) FROM usage_events WHERE account_id = $1)::bigint, "
            "coalesce((SELECT used_microcents FROM usage_counters WHERE account_id = $1 AND period = 'monthly'), 0)",
            account_id,
        )
        assert row is not None
        assert row[0] == row[1]
        return int(row[0]) // CENT

    async def held(self) -> int:
        """Rows of usage_holds."""
        count: int = await self._connection.fetchval("SELECT count(*) FROM usage_holds")
        return count

    @asynccontextmanager
    async def locked(self, account_id: str) -> AsyncIterator[None]:
        """What is charged to the account waits for the end of the block."""
        async with self._connection.transaction():
            await self._connection.execute("SELECT FROM usage_counters WHERE account_id = $1 FOR UPDATE", account_id)
            yield

    @asynccontextmanager
    async def jammed(self) -> AsyncIterator[None]:
        """Whoever tells Postgres what is held waits for the end of the block."""
        async with self._connection.transaction():
            await self._connection.execute("LOCK TABLE usage_holds IN EXCLUSIVE MODE")
            yield

    async def told(self, holds: int) -> None:
        """Until Postgres has so many holds."""
        await self._until("SELECT count(*) >= $1 FROM usage_holds", holds)

    async def blocked(self) -> None:
        """Until a statement waits for a lock of ours."""
        await self._until("SELECT count(*) > 0 FROM pg_locks WHERE pg_backend_pid() = ANY(pg_blocking_pids(pid))")

    async def _until(self, sql: str, *values: object) -> None:
        async with asyncio.timeout(20):
            while not await self._connection.fetchval(sql, *values):
                await asyncio.sleep(0.002)

    async def silence(self, worker_id: str) -> None:
        """As if the worker had not been heard of for an hour, nor its calls been admitted since."""
        await self._connection.execute(
            "UPDATE gateway_workers SET seen_at = now() - interval '1 hour' WHERE worker_id = $1", worker_id
        )
        await self._connection.execute(
            "UPDATE usage_holds SET admitted_at = now() - interval '1 hour' WHERE worker_id = $1", worker_id
        )

    async def no_hold_left(self, timeout_s: float = 10.0) -> None:
        deadline_s = time.monotonic() + timeout_s
        while await self.held():
            assert time.monotonic() < deadline_s, await self._connection.fetch("SELECT * FROM usage_holds")
            await asyncio.sleep(0.02)
