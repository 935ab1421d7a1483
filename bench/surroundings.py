"""What stands around the server under test: the upstream, Postgres, Redis, an account with a key and a budget.

All of it runs on the cores that the server under test does not have.
"""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from bench import peers
from bench.many_accounts import account_id_of, add_accounts, key_of, write_keys
from bench.processes import BenchError, Child, Cores, pinned, running
from bench.targets import REPOSITORY, UPSTREAM, Place, Target, castgate_environment
from gateway.embedded import EmbeddedError, embedded_postgres, embedded_redis, free_port
from gateway.policy.money import MICROCENTS_PER_CENT
from upstream_stub.seed import seed

# 50 million dollars a month; under 2^53 microcents, and no bench gets there at a cent a cast.
MONTHLY_LIMIT_CENTS = 5_000_000_000
NO_STORES_API_KEY = "ck_nobody"  # a key to send where nobody looks at it
MIGRATE_TIMEOUT_S = 60.0

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What is there, and the folder for what comes."""

    folder: Path
    cores: Cores
    upstream_url: str
    database_url: str = ""
    redis_url: str = ""
    pids: Mapping[str, int] = field(default_factory=dict)  # what is behind the server under test: name -> process
    account_id: str = ""
    api_key: str = field(default=NO_STORES_API_KEY, repr=False)
    keys_file: Path | None = None  # of many accounts
    many_accounts: int = 0
    upstream_connections_max: int = 0  # of gateways to be started; 0: as they are shipped

    def place(self, name: str) -> Place:
        """A folder and free ports for a server called ``name``."""
        folder = self.folder / name
        folder.mkdir(mode=0o755)
        return Place(
            folder=folder,
            port=free_port(),
            admin_port=free_port(),
            upstream_url=self.upstream_url,
            database_url=self.database_url,
            redis_url=self.redis_url,
            upstream_connections_max=self.upstream_connections_max,
        )


@contextlib.contextmanager
def surroundings(
    folder: Path, cores: Cores, *, stores: bool, say: Say, many_accounts: int = 0
) -> Iterator[Surroundings]:
    """The upstream and, with ``stores``, Postgres, Redis, the account and many more; all stopped on the way out."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(pinned(cores.rest))
        say("starting the upstream")
        made = Surroundings(folder=folder, cores=cores, upstream_url="")
        place = made.place("behind")
        command = UPSTREAM.command(place)
        behind = stack.enter_context(
            running(
                "behind",
                command.words,
                port=place.port,
                cores=cores.rest,
                folder=folder,
                environment=command.environment,
            )
        )
        made = replace(made, upstream_url=f"http://127.0.0.1:{place.port}", pids={"upstream": behind.process.pid})
        if stores:
            made = stack.enter_context(_with_stores(made, say, redis=True, postgres=True))
        if many_accounts:
            made = _with_many_accounts(made, many_accounts, say)
        yield made


@contextlib.contextmanager
def of_many_accounts(around: Surroundings, target: Target, many_accounts: int, say: Say) -> Iterator[Surroundings]:
    """The same upstream, many accounts, and of stores those that the target needs, which no other one has.

    What a hundred thousand accounts leave in stores is vacuumed and expires while other rows are measured, which would
    pay for it.
    """
    folder = around.folder / f"around-{target.name}"
    folder.mkdir(mode=0o755)
    made = Surroundings(
        folder=folder,
        cores=around.cores,
        upstream_url=around.upstream_url,
        pids={"upstream": around.pids["upstream"]},
    )
    with pinned(around.cores.rest), _with_stores(made, say, redis=target.redis, postgres=target.postgres) as made:
        yield _with_many_accounts(made, many_accounts, say)


@contextlib.contextmanager
def _with_stores(made: Surroundings, say: Say, *, redis: bool, postgres: bool) -> Iterator[Surroundings]:
    """Those that are asked for, in Postgres the account and Castgate's tables."""
    with contextlib.ExitStack() as stack:
        try:
            if postgres:
                say("starting Postgres")
                server = stack.enter_context(embedded_postgres(made.folder / "postgres"))
                made = replace(made, database_url=server.url, pids={**made.pids, "Postgres": server.pid})
            if redis:
                say("starting Redis")
                # It is a cache: what it loses comes back from Postgres, so nothing of it is kept on disk.
                server = stack.enter_context(embedded_redis(made.folder / "redis", ephemeral=True))
                made = replace(made, redis_url=server.url, pids={**made.pids, "Redis": server.pid})
        except EmbeddedError as error:
            raise BenchError(str(error)) from None
        if postgres:
            say("migrating, making the account")
            made = _with_account(made)
        yield made


def _with_many_accounts(made: Surroundings, many_accounts: int, say: Say) -> Surroundings:
    """Their keys in a file, and where there is a Postgres they themselves."""
    keys_file = made.folder / "keys"
    write_keys(keys_file, 1, many_accounts)
    if made.database_url:
        add_accounts(
            made.database_url,
            1,
            many_accounts,
            added=lambda there: say(f"making {many_accounts:,} accounts: {there:,}"),
        )
    return replace(made, keys_file=keys_file, many_accounts=many_accounts)


def _with_account(made: Surroundings) -> Surroundings:
    """Phase 1's schema with an account and its key, and Castgate's own tables."""
    account = asyncio.run(seed(made.database_url))
    migrated = subprocess.run(
        [sys.executable, "-m", "gateway", "migrate", "--config", str(REPOSITORY / "config.yaml")],
        env={**os.environ, **castgate_environment(made.place("migrate"))},
        capture_output=True,
        text=True,
        check=False,
        timeout=MIGRATE_TIMEOUT_S,
    )
    if migrated.returncode != 0:
        raise BenchError(f"castgate migrate failed:\n{migrated.stdout}{migrated.stderr}")
    return replace(made, account_id=account.account_id, api_key=account.api_key)


@contextlib.contextmanager
def started(target: Target, around: Surroundings, name: str = "") -> Iterator[Child]:
    """The target on the core for servers under test; where it needs that, the account then has its budget."""
    place = around.place(name or target.name)
    command = target.command(place)
    with running(
        name or target.name,
        command.words,
        port=place.port,
        cores=around.cores.all if target.all_cores else (around.cores.proxy,),
        folder=around.folder,
        environment=command.environment,
    ) as child:
        if target.peer_budget:
            owners = [(around.api_key, around.account_id)]
            if target.many_accounts:
                owners = [(key_of(number), account_id_of(number)) for number in range(1, around.many_accounts + 1)]
            peers.prepare_redis(around.redis_url, owners, MONTHLY_LIMIT_CENTS * MICROCENTS_PER_CENT)
        if target.budget:
            give_budget(child.port, around.api_key)
        yield child


def give_budget(port: int, api_key: str) -> None:
    """Set the account's monthly budget as a customer would."""
    wanted = {"period": "monthly", "hard_limit_cents": MONTHLY_LIMIT_CENTS}
    answer = call(port, api_key, "POST", "/v1/budgets", wanted)
    if answer[0] not in (201, 409):  # 409: an earlier target made it
        raise BenchError(f"POST /v1/budgets answered {answer[0]}: {answer[1]}")


def call(port: int, api_key: str, method: str, path: str, body: object = None) -> tuple[int, str]:
    """One request to a server under test; its status and body, whatever the status."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}",
        data=None if body is None else json.dumps(body).encode(),
        method=method,
        headers={"Authorization": f"Bearer {api_key}", "Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read().decode(errors="replace")
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(errors="replace")
    except OSError as error:
        raise BenchError(f"{method} {path} failed: {error}") from None
