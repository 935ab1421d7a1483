"""One history of calls, three deciders: Redis' script, Postgres' function and a reference give the same answers."""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count

import asyncpg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from gateway.admission_batch import Ask
from gateway.admission_postgres import columns_of
from gateway.admission_settle import Seed, Settled
from gateway.database import QUERIES
from gateway.ledger import UsageEvent
from gateway.ledger import columns_of as event_columns
from tests.admission.reference import ADMITTED, BUDGET, STALE, Call, Outcome, Reference, WindowRow
from tests.admission.script import Script, asks_of
from tests.ledger.making import NOON_MS, migrate

MONTH = ("monthly/UTC/1", 1_793_491_200_000, 1_796_083_200_000)
TOTAL = ("total/UTC/1", 0, 253_402_214_400_000)
ACCOUNTS = ("a", "b")
_examples, _ids = count(1), count(1)


@dataclass
class Facts:
    """What an account may do, and the version that says so."""

    version: int = 1
    limits: list[int] = field(default_factory=lambda: [20, 30])

    def windows(self) -> list[WindowRow]:
        return [(*window, limit) for window, limit in zip((TOTAL, MONTH), self.limits, strict=True)]


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
            self._connection.fetchrow(QUERIES["record_usage_of_holds"], *event_columns([event]), None, [], [])
        )
        assert row is not None
        names = ("usage_accounts", "usage_kinds", "usage_start_ms", "usage_microcents")
        return list(zip(*(row[name] for name in names), strict=True))

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
            for account in self.facts:
                rung.change(account, 1)
                self.seed(account)

        def named(self, name: str) -> str:
            return f"{name}{self.example}"

        def seed(self, account: str) -> None:
            usage = {kind: (start, 0) for kind, start, _ in (TOTAL, MONTH)}
            version = self.facts[account].version
            self.reference.seed(account, version, usage, exactly=False)
            settled = Settled()
            settled.seed(Seed(account_id=account, version=version, usage=usage))
            script([], settled, now=NOON_MS)

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
                        windows=facts.windows(),
                        amount=amount,
                        hold_id=f"{next(_ids):032x}",
                    )
                )
            expected = [self.reference.decide(call, NOON_MS) for call in batch]
            assert script(batch, now=NOON_MS) == expected
            assert rung.decide(asks_of(batch)) == expected
            for call, outcome in zip(batch, expected, strict=True):
                if outcome == ADMITTED:
                    self.open[call.hold_id] = call

        @rule(data=st.data())
        def void(self, data: st.DataObject) -> None:
            if self.open:
                hold_id = data.draw(st.sampled_from(sorted(self.open)))
                del self.open[hold_id]
                self.reference.remove(hold_id, posted=False)
                settled = Settled()
                settled.remove("w1", [hold_id], posted=False)
                script([], settled, now=NOON_MS)
                rung.void(hold_id)

        @rule(data=st.data(), cost=st.integers(0, 9), twice=st.booleans())
        def post(self, data: st.DataObject, cost: int, twice: bool) -> None:
            if self.open:
                hold_id = data.draw(st.sampled_from(sorted(self.open)))
                account = self.open.pop(hold_id).account_id
                event = UsageEvent(hold_id, account, "cast", NOON_MS, cost, 200, "posted")
                for _ in range(1 + twice):
                    settled = Settled()
                    for who, kind, start, used in rung.post(event):
                        settled.use(who, kind, start, used)
                        self.reference.use(who, {kind: (start, used)})
                    settled.remove("w1", [hold_id], posted=True)
                    script([], settled, now=NOON_MS)
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
            max_examples=20, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
