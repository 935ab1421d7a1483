"""Reloads under load: no call fails, no call sees two versions, memory does not grow.

``CASTGATE_TEST_RELOADS=1000 ./dev test tests/policies/test_reload.py --timeout 600`` is the long form.
"""

import asyncio
import os
import signal
import threading
from collections import Counter
from pathlib import Path

from bench.load import Endpoint, Load, LoadResult, run
from tests.policies.conftest import Desk
from tests.upstream_stub.running import Account

CENT = 1_000_000
RELOADS = int(os.environ.get("CASTGATE_TEST_RELOADS", "25"))
# Before these the processes have not met all code and all sizes of theirs.
WARM_UP_RELOADS = 10
GROWTH_BYTES_MAX = 8 * 1024 * 1024
NAMES = 10


def rules(version: int) -> str:
    """Versions that do not fit together: under the policy of one and the plan of another, most calls would be 429."""
    name = version % NAMES
    return f"""\
# {version}
policies:
  - name: v{name}
    match: {{path: /v1/cast}}
    cost: {{fixed: {{cents: {name + 1}}}}}
    rate_limits: [{{name: limit{name}, limit: 1, window: 31d}}]
plans:
  free: {{rate_limits: {{limit{name}: {{limit: 1000000000}}}}}}
"""


class Calls:
    """Calls without a pause, in a thread of their own."""

    def __init__(self, desk: Desk, account: Account) -> None:
        headers = {"Authorization": f"Bearer {account.api_key}"}
        self._endpoint = Endpoint.of(f"{desk.gateway.base_url}/v1/cast", method="POST", headers=headers, body=b"{}")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.results: list[LoadResult] = []

    def _run(self) -> None:
        while not self._stop.is_set():
            self.results.append(asyncio.run(run([self._endpoint], Load(connections=8, total=100))))

    def __enter__(self) -> "Calls":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def memory_bytes(desk: Desk) -> dict[int, int]:
    """Resident bytes of the supervisor and its workers, by process."""
    supervisor = desk.gateway.process.pid
    children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
    pages = {pid: int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in (supervisor, *map(int, children))}
    return {pid: count * os.sysconf("SC_PAGE_SIZE") for pid, count in pages.items()}


def test_reloads_under_load_fail_no_call_tear_no_policy_and_grow_no_memory(desk: Desk) -> None:
    account = desk.account()
    desk.use(rules(0))
    with Calls(desk, account) as calls:
        for version in range(1, WARM_UP_RELOADS + 1):
            desk.use(rules(version))
        before = memory_bytes(desk)
        for version in range(WARM_UP_RELOADS + 1, WARM_UP_RELOADS + RELOADS + 1):
            desk.use(rules(version))
        after = memory_bytes(desk)
    statuses: Counter[int] = Counter()
    for result in calls.results:
        statuses += result.statuses
    errors = [result.errors for result in calls.results if result.errors]
    assert (set(statuses), errors) == ({200}, [])
    answered = statuses.total()
    assert answered >= RELOADS
    assert after.keys() == before.keys()
    grown = {pid: after[pid] - before[pid] for pid in after}
    print(f"{RELOADS} reloads, {answered} calls, memory grown by {grown}")
    assert max(grown.values()) < GROWTH_BYTES_MAX
    desk.charged(account, answered)
    rows = desk.sql(
        "SELECT policy, cost_microcents AS cost, count(*) FROM usage_events WHERE account_id = $1 GROUP BY 1, 2",
        account.user_id,
    )
    assert {row["policy"]: row["cost"] for row in rows} == {
        row["policy"]: (int(row["policy"].removeprefix("v")) + 1) * CENT for row in rows
    }
    assert len(rows) == NAMES
    assert sum(row["count"] for row in rows) == answered


def test_a_rejected_file_changes_nothing_for_calls(desk: Desk) -> None:
    desk.use(rules(3))
    account = desk.account()
    known = desk.admin("/policies")
    (desk.folder / "policies" / "rules.yaml").write_text(rules(4).replace("cents: 5", "cents: five"))
    desk.gateway.process.send_signal(signal.SIGHUP)
    for _ in range(1000):
        newest = desk.admin("/policies/history")["history"][0]
        if newest["result"] == "rejected":
            break
    assert newest["problems"] == [
        f"{desk.folder}/policies/rules.yaml:5:27: policies[0].cost.fixed.cents: "
        'expected cents as a number, found "five"'
    ]
    assert desk.admin("/policies") == known
    assert desk.call(account).status == 200
    assert desk.charged(account, 1) == [4 * CENT]
