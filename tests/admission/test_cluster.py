"""A real Redis Cluster: accounts are shared out over its primaries, and slots may move while calls go on."""

import asyncio
import json
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from itertools import islice
from typing import Any
from zlib import crc32

import asyncpg
import pytest
from click.testing import CliRunner

from gateway.billing_sync_command import teller
from gateway.cli import main
from gateway.config.settings_stores import CLUSTER_PARTITIONS
from gateway.config.settings_stores import Redis as RedisSettings
from gateway.policy.verdicts import BudgetExceeded, Hold, Verdict
from gateway.reconcile import Reconciler
from gateway.redis_store import RedisLink, RedisLostError
from gateway.redis_tell import teller_to
from gateway.redis_topology import slot_of, topology
from tests.acceptance.conftest import CAST_BODY
from tests.admission.calling import Callers, accounts_in
from tests.admission.topologies import Member, RunningCluster, running_cluster, until
from tests.admission.whole import Books, WholeWorker
from tests.admission.world import CENT
from tests.gateways import ROOT, RunningGateway, migrated, running_gateway
from tests.ledger.making import migrate
from tests.redis_accounts import fields_at
from tests.upstream_stub.running import Account, create_account, stub_process

# On a busy machine servers take long to agree with each other.
pytestmark = pytest.mark.timeout(180)
StartWhole = Callable[..., Coroutine[Any, Any, WholeWorker]]
LIMIT_CENTS = 10


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCluster]:
    with running_cluster(tmp_path_factory.mktemp("cluster"), with_replicas=False) as cluster:
        yield cluster


@pytest.fixture
def cluster(servers: RunningCluster) -> RunningCluster:
    servers.flush()
    return servers


@pytest.fixture
async def books(database_url: str) -> AsyncIterator[Books]:
    await migrate(database_url)
    connection = await asyncpg.connect(database_url)
    books = Books(connection)
    await books.wait_for_locks()
    yield books
    await connection.close()


@pytest.fixture
async def start(database_url: str, books: Books, cluster: RunningCluster) -> AsyncIterator[StartWhole]:
    workers: list[WholeWorker] = []

    async def start(**options: Any) -> WholeWorker:
        given = {"database_url": database_url, "redis_url": cluster.url, "admission_timeout": "3s", **options}
        worker = WholeWorker(f"w{len(workers) + 1}", **given)
        workers.append(worker)
        await worker.start()
        await worker.on("redis")
        return worker

    yield start
    for worker in workers:
        await worker.stop()


def names(count: int, *partitions: int) -> list[str]:
    """So many accounts in each partition."""
    return [name for partition in partitions for name in islice(accounts_in(partition, CLUSTER_PARTITIONS), count)]


async def limited(books: Books, accounts: list[str]) -> dict[str, int]:
    for account in accounts:
        await books.budget(account, LIMIT_CENTS)
    return dict.fromkeys(accounts, LIMIT_CENTS)


def kinds(*rounds: list[Verdict]) -> Counter[type]:
    return Counter(type(verdict) for verdicts in rounds for verdict in verdicts)


def state_of(cluster: RunningCluster, partition: int, account: str) -> dict[str, str]:
    return fields_at(cluster.owner(partition).client, f"cg:{{{partition}}}:a:{account}")


def ports_of(worker: WholeWorker) -> set[int]:
    """Of the servers that the worker is connected to."""
    return {port_of(lane._link) for lane in worker.admission._lanes}


def port_of(link: RedisLink | None) -> int:
    if link is None or link._transport is None:
        return 0
    return int(link._transport.get_extra_info("peername")[1])


async def test_callers_who_race_in_every_partition_get_exactly_the_limit(
    start: StartWhole, cluster: RunningCluster, books: Books
) -> None:
    workers = [await start() for _ in range(3)]
    assert all(ports_of(worker) == {member.port for member in cluster.members} for worker in workers)
    accounts = names(2, *range(CLUSTER_PARTITIONS))
    limits = await limited(books, accounts)
    asked = [(worker, account) for worker in workers for account in accounts]
    rounds = await asyncio.gather(*(worker.ask_many(account, 6) for worker, account in asked))
    admitted: Counter[str] = Counter()
    for (worker, account), verdicts in zip(asked, rounds, strict=True):
        holds = [verdict for verdict in verdicts if isinstance(verdict, Hold)]
        admitted[account] += len(holds)
        worker.post(*holds)
    assert admitted == limits
    assert set(kinds(*rounds)) == {Hold, BudgetExceeded}
    await asyncio.gather(*(worker.settled() for worker in workers))
    settings = RedisSettings.model_validate({"url": cluster.url})
    async with teller_to(settings) as redis:
        lines = await Reconciler(workers[0].database, redis, all_windows=False).compare(accounts)
    for line in lines:
        (window,) = (window for window in line.windows if window.kind.startswith("monthly"))
        assert (window.ledger, window.counter, window.redis) == (LIMIT_CENTS * CENT,) * 3
        assert not line.has_drift


async def test_a_slot_may_move_while_calls_go_on(start: StartWhole, cluster: RunningCluster, books: Books) -> None:
    workers = [await start() for _ in range(2)]
    source = cluster.owner(0)
    target = next(member for member in cluster.members if member is not source)
    moving = names(3, 0)
    callers = Callers(workers, await limited(books, [*moving, *names(3, 1)]), seed=1)
    loop = asyncio.get_running_loop()

    def meanwhile() -> None:
        asyncio.run_coroutine_threadsafe(callers.more(1, moving), loop).result()

    async with callers.calling():
        await callers.more(50, moving)
        for here, there in ((source, target), (target, source)):
            cluster.begin_to_move(0, there)
            await asyncio.to_thread(cluster.end_move, 0, here, there, meanwhile)
            await _serves_from(there, workers)
            await callers.more(50, moving)
    await callers.exhaust()
    await callers.check(books)
    assert callers.by_rung["postgres"] > 0
    for account in moving:
        assert state_of(cluster, 0, account)["h"] == "0"


async def _serves_from(member: Member, workers: list[WholeWorker], partition: int = 0) -> None:
    async with asyncio.timeout(60):
        for worker in workers:
            lane = worker.admission._lanes[partition]
            while not lane.is_up or port_of(lane._link) != member.port:
                await asyncio.sleep(0.005)


async def test_a_slot_on_its_way_decides_nothing_for_anybody(
    start: StartWhole, cluster: RunningCluster, books: Books
) -> None:
    """An account that is still here must not be decided here while another worker, which asked for one that is not,
    has gone to Postgres.
    """
    one, two = await start(), await start()
    first, second = names(2, 0)
    limits = await limited(books, [first, second])
    held = [await one.ask_many(first, 2), await two.ask_many(first, 3)]
    source = cluster.owner(0)
    cluster.begin_to_move(0, next(member for member in cluster.members if member is not source))
    try:
        rounds = [await two.ask_many(first, 1), await one.ask_many(second, 1)]
        rounds += await asyncio.gather(one.ask_many(first, 8), two.ask_many(first, 8))
        assert {one.admission.ladder.rung, two.admission.ladder.rung} == {"postgres"}
        assert kinds(*held, *(rounds[0], *rounds[2:]))[Hold] == limits[first]
    finally:
        cluster.stay(0)
    await asyncio.gather(one.on("redis"), two.on("redis"))
    assert kinds(await one.ask_many(first, 1), await two.ask_many(first, 1)) == {BudgetExceeded: 2}


async def test_what_a_partition_held_that_was_lost_after_another_is_told(
    start: StartWhole, cluster: RunningCluster, books: Books
) -> None:
    one, two = await start(), await start()
    (account,) = names(1, 1)
    await limited(books, [account])
    sources = cluster.owner(0), cluster.owner(1)
    targets = [next(member for member in cluster.members if member is not source) for source in sources]
    cluster.begin_to_move(0, targets[0])
    try:
        await asyncio.gather(one.on("postgres"), two.on("postgres"))
        held = await two.ask_many(account, 7)
        assert two.admission._lanes[1].is_up
        cluster.begin_to_move(1, targets[1])
        assert kinds(held, await one.ask_many(account, 9)) == {Hold: LIMIT_CENTS, BudgetExceeded: 6}
        assert not one.admission._lanes[1].is_up
    finally:
        cluster.stay(0)
        cluster.stay(1)


async def test_a_node_that_was_named_may_be_away_and_others_are_learnt(cluster: RunningCluster, free_port: int) -> None:
    named = cluster.members[2].port
    redis = topology(f"redis+cluster://127.0.0.1:{free_port},127.0.0.1:{named}", timeout_s=10)
    for partition in range(CLUSTER_PARTITIONS):
        link = await redis.connect(partition, lost=lambda _: None)
        await link.call("SET", f"cg:{{{partition}}}:here", "yes")
        link.close()
        assert cluster.owner(partition).client.get(f"cg:{{{partition}}}:here") == "yes"


async def test_who_names_no_cluster_hears_it(redis_url: str) -> None:
    address = redis_url.rsplit("/", 1)[0].replace("redis://", "redis+cluster://")
    with pytest.raises(RedisLostError, match=rf"slot {slot_of(3)}: 127\.0\.0\.1:\d+: ERR .*cluster support disabled"):
        await topology(address, timeout_s=10).connect(3, lost=lambda _: None)


async def test_a_change_of_facts_is_told_where_the_account_is(cluster: RunningCluster) -> None:
    tell = teller(RedisSettings.model_validate({"url": cluster.url, "connect_timeout": "10s"}))
    for partition in range(CLUSTER_PARTITIONS):
        (account,) = names(1, partition)
        await tell(account, 7)
        assert state_of(cluster, partition, account) == {"v": "7", "h": "0"}


def test_a_gateway_and_its_commands_work_with_a_cluster_and_without_one_of_its_primaries(
    database_url: str, redis_url: str, cluster: RunningCluster
) -> None:
    with stub_process(database_url, redis_url, rate_limit_per_minute=0) as stub:
        migrated(database_url)
        stores = {"database_url": database_url, "redis_url": cluster.url, "upstream_url": stub.base_url}
        environ = {name.upper(): url for name, url in stores.items()} | {"COST_PER_CAST_CENTS": "1"}

        def castgate(*arguments: str) -> str:
            result = CliRunner(env=environ).invoke(main, [*arguments, "--config", str(ROOT / "config.yaml")])
            assert result.exit_code == 0, result.output
            assert "warning" not in result.stderr
            return result.stdout

        with running_gateway(**stores) as gateway:
            accounts = [asyncio.run(create_account(database_url)) for _ in range(6)]
            until(lambda: _readiness(gateway) == "ready")
            assert {_cast(gateway, account) for account in accounts for _ in range(3)} == {200}

            def known_in_redis() -> bool:  # a total is when the first write of the ledger has been told
                told = json.loads(castgate("reconcile", "--json", "--all"))
                assert {account["account_id"] for account in told["accounts"]} == {one.user_id for one in accounts}
                return None not in {window["redis"] for account in told["accounts"] for window in account["windows"]}

            until(known_in_redis)
            someone = accounts[0].user_id
            asked = json.dumps({"path": "/v1/cast", "account": someone}).encode()
            with urllib.request.urlopen(f"{gateway.admin_url}/explain", data=asked, timeout=30) as answer:
                explained = json.load(answer)
            assert explained["verdict"] == "admitted"
            assert not any("Redis is away" in note for note in explained["notes"])

            victim = cluster.owner(crc32(someone.encode()) % CLUSTER_PARTITIONS)
            victim.kill()
            assert {_cast(gateway, account) for account in accounts} == {200}
            until(lambda: _readiness(gateway) == "degraded")
            victim.start()
            until(lambda: _readiness(gateway) == "ready")
            assert {_cast(gateway, account) for account in accounts} == {200}


def _readiness(gateway: RunningGateway) -> str:
    with urllib.request.urlopen(f"{gateway.admin_url}/readyz", timeout=10) as answer:
        assert answer.status == 200
        return str(json.load(answer)["status"])


def _cast(gateway: RunningGateway, account: Account) -> int:
    headers = {"Authorization": f"Bearer {account.api_key}", "Content-Type": "application/json"}
    request = urllib.request.Request(f"{gateway.base_url}/v1/cast", data=CAST_BODY, headers=headers, method="POST")
    with urllib.request.urlopen(request, timeout=30) as answer:
        return int(answer.status)
