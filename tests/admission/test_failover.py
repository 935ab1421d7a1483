"""A primary dies, a replica that lacks its last writes takes over, and no account gets one call more than its limit.

With a cluster of three primaries and their replicas, and with Sentinels that watch one primary and one replica.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import asyncpg
import pytest

from gateway.policy.verdicts import BudgetExceeded, Hold
from tests.admission.calling import Callers, accounts_in
from tests.admission.topologies import Member, lose_writes, running_cluster, running_sentinels, until
from tests.admission.whole import Books, WholeWorker
from tests.ledger.making import migrate
from tests.redis_accounts import fields_at

# On a busy machine servers take long to agree with each other.
pytestmark = pytest.mark.timeout(180)
LIMIT_CENTS = 10


@dataclass(frozen=True, slots=True)
class Redundant:
    """Redis with replicas. ``primary`` is that of partition 0 now."""

    url: str
    partitions: int
    quiet: int  # a partition beside 0, with the same primary
    db: int
    primary: Callable[[], Member]
    replica: Callable[[], Member]
    is_whole: Callable[[], bool] = lambda: True


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Redundant]:
    with running_cluster(tmp_path) as cluster:
        yield Redundant(
            url=cluster.url,
            partitions=16,
            quiet=next(number for number in range(1, 16) if cluster.owner(number) is cluster.owner(0)),
            db=0,
            primary=lambda: cluster.owner(0),
            replica=lambda: cluster.replica_of(cluster.owner(0)),
            is_whole=cluster.is_whole,
        )


@pytest.fixture
def sentinels(tmp_path: Path) -> Iterator[Redundant]:
    with running_sentinels(tmp_path) as watched:
        yield Redundant(
            url=watched.url,
            partitions=2,
            quiet=1,
            db=3,
            primary=watched.primary,
            replica=lambda: next(server for server in watched.servers if server is not watched.primary()),
        )


@pytest.fixture
async def books(database_url: str) -> AsyncIterator[Books]:
    await migrate(database_url)
    connection = await asyncpg.connect(database_url)
    books = Books(connection)
    await books.wait_for_locks()
    yield books
    await connection.close()


@pytest.mark.parametrize("form", ["cluster", "sentinels"])
async def test_a_replica_that_lost_writes_takes_over_and_no_account_gets_more_than_its_limit(
    form: str, request: pytest.FixtureRequest, database_url: str, books: Books
) -> None:
    redis: Redundant = request.getfixturevalue(form)
    async with AsyncExitStack() as stack:
        workers = [
            WholeWorker(
                f"w{number}",
                database_url=database_url,
                redis_url=redis.url,
                partitions=redis.partitions,
                admission_timeout="3s",
            )
            for number in range(3)
        ]
        for worker in workers:
            await worker.start()
            stack.push_async_callback(worker.stop)
        await asyncio.gather(*(worker.on("redis") for worker in workers))

        # Of `spent` nothing is admitted meanwhile: nothing but the failover itself says that Redis lost anything.
        spent = next(accounts_in(redis.quiet, redis.partitions))
        here = list(islice(accounts_in(0, redis.partitions), 3))
        others = (number for number in range(2, redis.partitions) if number != redis.quiet)
        elsewhere = [next(accounts_in(number, redis.partitions)) for number in islice(others, 4)]
        for account in (spent, *here, *elsewhere):
            await books.budget(account, LIMIT_CENTS)
        callers = Callers(workers, dict.fromkeys([*here, *elsewhere], LIMIT_CENTS), seed=2)
        one, two, _ = workers
        primary, replica = redis.primary(), redis.replica()
        holds = {one: await one.ask_many(spent, 3), two: await two.ask_many(spent, 2)}
        async with callers.calling():
            await callers.more(50, here)
            lose_writes(primary, replica)
            holds[one] += await one.ask_many(spent, 2)
            holds[two] += await two.ask_many(spent, 3)
            assert all(isinstance(hold, Hold) for verdicts in holds.values() for hold in verdicts)
            primary.kill()
            replica.wake()
            # Casts go on while nobody has taken over yet.
            await callers.more(5, here)
            assert await _denied(spent, workers)
            await asyncio.to_thread(until, lambda: redis.primary() is replica)
            await asyncio.gather(*(worker.on("redis") for worker in workers))
            assert _held(replica, redis, redis.quiet, spent) == str(LIMIT_CENTS * 1_000_000)
            assert await _denied(spent, workers)
            await callers.more(50, here)
            # Who was primary comes back empty, says for a while that it still is, and then follows.
            primary.start()
            if form == "cluster":  # Sentinels take ten seconds to see to it
                await asyncio.to_thread(until, redis.is_whole)
            await callers.more(50, [*here, *elsewhere])
        assert callers.by_rung["postgres"] > 0
        await callers.exhaust()
        for worker, verdicts in holds.items():
            worker.post(*verdicts)
        await callers.check(books)
        assert await books.used_cents(spent) == LIMIT_CENTS
        assert {_held(replica, redis, 0, account) for account in here} == {"0"}
        assert _held(replica, redis, redis.quiet, spent) == "0"


async def _denied(account: str, workers: list[WholeWorker]) -> bool:
    verdicts = await asyncio.gather(*(worker.ask(account) for worker in workers))
    return all(isinstance(verdict, BudgetExceeded) for verdict in verdicts)


def _held(member: Member, redis: Redundant, partition: int, account: str) -> str | None:
    with member.client.client() as connection:
        connection.execute_command("SELECT", redis.db)
        return fields_at(connection, f"cg:{{{partition}}}:a:{account}").get("h")
