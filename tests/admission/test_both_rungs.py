"""One history of calls, three deciders: Redis' script, Postgres' function and a reference give the same answers."""

import asyncio
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count

import asyncpg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from gateway.accounts import parts_of
from gateway.admission_batch import Ask
from gateway.admission_postgres import columns_of
from gateway.admission_settle import Seed, Settled
from gateway.database import QUERIES
from gateway.ledger import UsageEvent
from gateway.ledger import columns_of as event_columns
from gateway.redis_store import RESTORE
from tests.admission.reference import ADMITTED, BUDGET, STALE, Call, Outcome, Reference, WindowRow
from tests.admission.script import WORKERS, Script, asks_of
from tests.ledger.making import NOON_MS, migrate

# November 2026 to February 2027: when they begin, and the last ends.
MONTHS = (1_793_491_200_000, 1_796_083_200_000, 1_798_761_600_000, 1_801_440_000_000, 1_803_859_200_000)
MONTHLY = "monthly/UTC/1"
TOTAL = ("total/UTC/1", 0, 253_402_214_400_000)
ACCOUNTS = ("a", "b")
_examples, _ids = count(1), count(1)


@dataclass
class Facts:
    """What an account may do, and the version that says so."""

    version: int = 1
    limits: list[int] = field(default_factory=lambda: [20, 30])

    def windows(self, month: int) -> list[WindowRow]:
        return [(*window, limit) for window, limit in zip(windows_of(month), self.limits, strict=True)]


def windows_of(month: int) -> tuple[tuple[str, int, int], ...]:
    return TOTAL, (MONTHLY, MONTHS[month], MONTHS[month + 1])


class Postgres:
    """The function and the statements of the rung, on one connection."""

    def __init__(self, runner: asyncio.Runner, connection: "asyncpg.Connection[asyncpg.Record]") -> None:
        self._runner = runner
        self._connection = connection

    def decide(self, asks: Sequence[Ask]) -> list[Outcome]:
        row = self._runner.run(
            self._connection.fetchrow(QUERIES["admit"], "w1", [], *columns_of(asks, [False] * len(asks)))
        )
        assert row is not None
        shown = {ADMITTED: lambda _, __: ADMITTED, BUDGET: lambda p, d: [BUDGET, p, d], STALE: lambda _, d: [STALE, d]}
        rows = zip(row["outcomes"], row["places"], row["details"], strict=True)
        return [shown[code](place, detail) for code, place, detail in rows]

    def void(self, hold_id: str) -> None:
        self._runner.run(self._connection.execute(QUERIES["forget_holds"], [hold_id]))

    def post(self, event: UsageEvent) -> list[tuple[str, str, int, int]]:
        row = self._runner.run(
            self._connection.fetchrow(QUERIES["record_usage_of_holds"], *event_columns([event]), None, [], [], None)
        )
        assert row is not None
        names = ("usage_accounts", "usage_kinds", "usage_start_ms", "usage_microcents")
        return list(zip(*(row[name] for name in names), strict=True))

    def seed(self, account_id: str, month: int) -> dict[str, tuple[int, int]]:
        """As a worker does for Redis: the sums of counters that are made where they are not there."""
        kinds, starts, ends = zip(*windows_of(month), strict=True)
        periods, zones, week_starts = zip(*map(parts_of, kinds), strict=True)
        used = self._runner.run(
            self._connection.fetchval(
                QUERIES["seed_usage"], [account_id] * len(kinds), periods, zones, week_starts, starts, ends
            )
        )
        return dict(zip(kinds, zip(starts, used, strict=True), strict=True))

    def tell(self, calls: Sequence[Call], now_ms: int) -> None:
        """The worker's holds become these."""
        self._runner.run(
            self._connection.execute(
                QUERIES["tell_holds"],
                "w1",
                [call.hold_id for call in calls],
                [call.account_id for call in calls],
                [call.amount for call in calls],
                [now_ms] * len(calls),
                ["cast"] * len(calls),
                True,
                *[[None] * len(calls) for _ in range(7)],  # no terms: no free tier, no key
            )
        )

    def crash(self) -> None:
        """What is not logged is gone."""
        self._runner.run(self._connection.execute("TRUNCATE usage_holds"))

    def change(self, account_id: str, version: int) -> None:
        self._runner.run(
            self._connection.execute(
                "INSERT INTO billing_accounts (account_id, facts_version) VALUES ($1, $2)"
                " ON CONFLICT (account_id) DO UPDATE SET facts_version = $2",
                account_id,
                version,
            )
        )

    def held(self, account_id: str) -> int:
        held: int = self._runner.run(self._connection.fetchval(QUERIES["held_by_account"], account_id))
        return held


@pytest.fixture
def rung(database_url: str) -> Iterator[Postgres]:
    with asyncio.Runner() as runner:
        runner.run(migrate(database_url))
        connection = runner.run(asyncpg.connect(database_url))
        yield Postgres(runner, connection)
        runner.run(connection.close())


def test_any_history_of_budgets_is_decided_alike(script: Script, rung: Postgres) -> None:
    class History(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.reference = Reference()
            self.example = next(_examples)
            self.facts = {self.named(name): Facts() for name in ACCOUNTS}
            self.older = {account: Facts() for account in self.facts}
            self.open: dict[str, Call] = {}
            self.admitted_ms: dict[str, int] = {}
            self.month, self.now = 0, NOON_MS
            for account in self.facts:
                rung.change(account, 1)
                self.seed(account)

        def named(self, name: str) -> str:
            return f"{name}{self.example}"

        def seed(self, account: str) -> None:
            usage = rung.seed(account, self.month)
            version = self.facts[account].version
            self.reference.seed(account, version, usage, exactly=False)
            settled = Settled()
            settled.seed(Seed(account_id=account, version=version, usage=usage))
            script([], settled, now=self.now)

        @rule()
        def a_month_goes_by(self) -> None:
            """Calls under way count in the new month until they are over, and are charged to the old one."""
            if self.month < len(MONTHS) - 2:
                self.month += 1
                self.now = MONTHS[self.month] + 1
                for account in self.facts:
                    self.seed(account)

        @rule()
        def redis_loses_all(self) -> None:
            """And the worker puts its holds in place again."""
            script.redis.flushdb()
            generation = script.join()
            rows = [
                [hold_id, call.account_id, call.amount, self.admitted_ms[hold_id], "cast", []]
                for hold_id, call in self.open.items()
            ]
            script.redis.eval(
                RESTORE.source.decode(), 2, WORKERS, script.book, json.dumps([1, generation, rows, []]), self.now
            )
            for account in self.facts:
                self.seed(account)

        @rule()
        def postgres_crashes(self) -> None:
            rung.crash()
            rung.tell(list(self.open.values()), self.now)

        @rule(data=st.data(), actual=st.integers(0, 9))
        def a_call_ends(self, data: st.DataObject, actual: int) -> None:
            """What it costs is held from then on; Postgres hears of it with all that the worker holds."""
            if self.open:
                hold_id = data.draw(st.sampled_from(sorted(self.open)))
                self.open[hold_id].amount = actual
                self.reference.adjust(hold_id, actual)
                settled = Settled()
                settled.adjust(hold_id, actual)
                script([], settled, now=self.now)
                rung.tell(list(self.open.values()), self.now)

        @rule(
            calls=st.lists(
                st.tuples(st.sampled_from(ACCOUNTS), st.integers(1, 7), st.booleans()), min_size=1, max_size=6
            )
        )
        def ask(self, calls: list[tuple[str, int, bool]]) -> None:
            batch = []
            for name, amount, is_old in calls:
                account = self.named(name)
                facts = (self.older if is_old else self.facts)[account]
                batch.append(
                    Call(
                        account_id=account,
                        version=facts.version,
                        windows=facts.windows(self.month),
                        amount=amount,
                        hold_id=f"{next(_ids):032x}",
                    )
                )
            expected = [self.reference.decide(call, self.now) for call in batch]
            assert script(batch, now=self.now) == expected
            assert rung.decide(asks_of(batch)) == expected
            for call, outcome in zip(batch, expected, strict=True):
                if outcome == ADMITTED:
                    self.open[call.hold_id] = call
                    self.admitted_ms[call.hold_id] = self.now

        @rule(data=st.data())
        def void(self, data: st.DataObject) -> None:
            if self.open:
                hold_id = data.draw(st.sampled_from(sorted(self.open)))
                del self.open[hold_id]
                self.reference.remove(hold_id, posted=False)
                settled = Settled()
                settled.remove("w1", [hold_id], posted=False)
                script([], settled, now=self.now)
                rung.void(hold_id)

        @rule(data=st.data(), cost=st.none() | st.integers(0, 9), twice=st.booleans())
        def post(self, data: st.DataObject, cost: int | None, twice: bool) -> None:
            """``cost`` None: by a sweeper, who knows no more than what is held."""
            if self.open:
                hold_id = data.draw(st.sampled_from(sorted(self.open)))
                call = self.open.pop(hold_id)
                at_ms = self.admitted_ms[hold_id]
                outcome = "posted" if cost is not None else "expired"
                event = UsageEvent(
                    hold_id, call.account_id, "cast", at_ms, call.amount if cost is None else cost, 200, outcome
                )
                for _ in range(1 + twice):
                    settled = Settled()
                    for who, kind, start, used in rung.post(event):
                        settled.use(who, kind, start, used)
                        self.reference.use(who, {kind: (start, used)})
                    settled.remove("w1", [hold_id], posted=True)
                    script([], settled, now=self.now)
                self.reference.remove(hold_id, posted=True)

        @rule(name=st.sampled_from(ACCOUNTS), limits=st.lists(st.integers(0, 40), min_size=2, max_size=2))
        def change(self, name: str, limits: list[int]) -> None:
            account = self.named(name)
            self.older[account] = self.facts[account]
            self.facts[account] = Facts(self.facts[account].version + 1, limits)
            rung.change(account, self.facts[account].version)
            self.seed(account)

        @invariant()
        def held_is_the_same(self) -> None:
            for account in self.facts:
                held = self.reference.held(account)
                assert rung.held(account) == held
                assert int(script.account(account).get("h", 0)) == held

    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        History,
        settings=settings(
            max_examples=15, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
