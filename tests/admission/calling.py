"""Callers that go on whatever happens to the stores, and what no account may ever see: one call over its limit."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from zlib import crc32

from gateway.policy.verdicts import BudgetExceeded, Hold, Verdict
from tests.admission.whole import Books, WholeWorker


class Callers:
    """One for each account and worker. They charge no more than half of a limit: there is always something to race for.

    What an account has now, charged or under way, is counted at each verdict.
    """

    def __init__(self, workers: Sequence[WholeWorker], limits: dict[str, int], *, seed: int) -> None:
        self.admitted: Counter[str] = Counter()  # by account, ever
        self.taken: Counter[str] = Counter()  # by account, now
        self.by_rung: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._charged: Counter[str] = Counter()
        self._workers = workers
        self._limits = limits
        self._chance = random.Random(seed)
        self._is_over = False

    @asynccontextmanager
    async def calling(self) -> AsyncIterator[None]:
        tasks = [
            asyncio.ensure_future(self._call(worker, account)) for worker in self._workers for account in self._limits
        ]
        try:
            yield
        finally:
            self._is_over = True
            await asyncio.gather(*tasks)

    async def more(self, count: int, accounts: Sequence[str], timeout_s: float = 60.0) -> None:
        """Until so many more calls of these accounts were admitted."""
        async with asyncio.timeout(timeout_s):
            enough = count + sum(self.admitted[account] for account in accounts)
            while sum(self.admitted[account] for account in accounts) < enough:
                await asyncio.sleep(0.002)

    async def _call(self, worker: WholeWorker, account: str) -> None:
        while not self._is_over:
            verdict = await worker.ask(account)
            hold = self.heard(worker, account, verdict)
            await asyncio.sleep(self._chance.uniform(0, 0.02))
            if hold is None:
                continue
            if self._charged[account] < self._limits[account] // 2 and self._chance.random() < 0.05:
                self._charged[account] += 1
                worker.post(hold)
            else:
                self.taken[account] -= 1
                worker.admission.void(hold)

    def heard(self, worker: WholeWorker, account: str, verdict: Verdict) -> Hold | None:
        if isinstance(verdict, Hold):
            self.admitted[account] += 1
            self.taken[account] += 1
            self.by_rung[worker.admission.ladder.rung] += 1
            if self.taken[account] > self._limits[account]:
                self.wrong.append(f"{account} has {self.taken[account]} of {self._limits[account]}")
            return verdict
        if not isinstance(verdict, BudgetExceeded):
            self.wrong.append(f"{account} got {verdict}")
        return None

    async def exhaust(self) -> None:
        """Charge each account until nothing is left of it, all workers at once."""
        for account, limit in self._limits.items():
            while self.taken[account] < limit:
                count = limit - self.taken[account] + 1
                rounds = await asyncio.gather(*(worker.ask_many(account, count) for worker in self._workers))
                for worker, verdicts in zip(self._workers, rounds, strict=True):
                    holds = [self.heard(worker, account, verdict) for verdict in verdicts]
                    worker.post(*(hold for hold in holds if hold is not None))

    async def check(self, books: Books) -> None:
        """Nothing is held, and what was charged is the limit, and in the ledger once."""
        await asyncio.gather(*(worker.settled() for worker in self._workers))
        assert self.wrong == [], self.wrong[:10]
        assert {account: await books.used_cents(account) for account in self._limits} == self._limits
        await books.no_hold_left()


def accounts_in(partition: int, partitions: int) -> Iterator[str]:
    """Names of accounts, without end."""
    number = 0
    while True:
        name = f"account-{number}"
        if crc32(name.encode()) % partitions == partition:
            yield name
        number += 1
