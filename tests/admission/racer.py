"""One process of a race: ``python -m tests.admission.racer`` with a JSON object in RACE. Prints a JSON object.

Asks for one account as fast as it can, through real accounts and a real ledger; of the calls that pass most are
charged, some voided, as ``seed`` has it.
"""

import asyncio
import json
import os
import random
import sys
from collections import Counter

from gateway.accounts import Accounts
from gateway.admission import Admission, Ask
from gateway.config.settings import Settings
from gateway.database import Database
from gateway.fleet import Fleet
from gateway.ledger import Ledger, UsageEvent
from gateway.metrics import Metrics
from gateway.policy.budgets import BudgetLimit
from gateway.policy.rules import Cost, Plan, Policy, Rules
from gateway.policy.verdicts import Hold, Verdict
from gateway.tasks import Tasks

CENT = 1_000_000


async def race(order: dict[str, object]) -> dict[str, int]:
    chance = random.Random(f"{order['seed']}-{order['worker_id']}")
    settings = Settings.model_validate(
        {
            "upstream": {"url": "http://127.0.0.1:1"},
            "database": {"url": order["database_url"], "statement_timeout": "20s", "acquire_timeout": "20s"},
            "redis": {"url": order["redis_url"], "timeout": "10s", "batch_max": 64},
            "ledger": {"cast_cost_sql": ""},
        }
    )
    policy = Policy(
        name="cast", methods=frozenset(), path="/", cost=Cost(fixed_microcents=CENT), on_store_failure="deny"
    )
    limit = BudgetLimit(period="monthly", hard_limit_microcents=int(str(order["limit_cents"])) * CENT)
    rules = Rules(
        version="1", policies=(policy,), plans={"free": Plan(name="free", budgets=(limit,))}, default_plan="free"
    )
    metrics, tasks = Metrics(), Tasks()
    database = Database.from_settings(settings.database, metrics)
    accounts = Accounts(database, lambda: rules, tasks)
    ledger = Ledger(database, settings.ledger, tasks, metrics)
    fleet = Fleet(database, str(order["worker_id"]))
    admission = Admission(
        fleet=fleet,
        worker_id=str(order["worker_id"]),
        settings=settings,
        accounts=accounts,
        ledger=ledger,
        rules=lambda: rules,
        tasks=tasks,
        metrics=metrics,
    )
    ledger.on_committed = admission.posted
    ledger.on_dropped = admission.dropped
    await fleet.living()
    await admission.start()
    print("ready", flush=True)
    sys.stdin.readline()

    account = accounts.get("racer")
    left = int(str(order["calls"]))
    seen: Counter[str] = Counter()
    over = asyncio.Event()
    under_way = 0

    def ask() -> None:
        nonlocal left, under_way
        left -= 1
        under_way += 1
        admission.ask(Ask(account, CENT, policy, (), answered))

    def answered(verdict: Verdict) -> None:
        nonlocal under_way
        seen[type(verdict).__name__] += 1
        if isinstance(verdict, Hold):
            asyncio.get_running_loop().call_later(chance.uniform(0, 0.01), ended, verdict)
            return
        under_way -= 1
        go_on()

    def ended(hold: Hold) -> None:
        nonlocal under_way
        under_way -= 1
        if chance.random() < 0.2:
            seen["voided"] += 1
            admission.void(hold)
        else:
            seen["charged"] += 1
            admission.finished(hold, CENT)
            ledger.append(UsageEvent(hold.hold_id, "racer", "cast", hold.admitted_ms, CENT, 200, "posted"))
        go_on()

    def go_on() -> None:
        if left > 0:
            ask()
        elif under_way == 0:
            over.set()

    for _ in range(min(50, left)):
        ask()
    await over.wait()
    await ledger.close(20)
    await admission.close(20)
    await fleet.leave()
    await tasks.drain(1)
    await database.close()
    return dict(seen)


if __name__ == "__main__":
    print(json.dumps(asyncio.run(race(json.loads(os.environ["RACE"])))))
