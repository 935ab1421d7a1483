"""All the processes of a run: stores, links to them, the cast service, gateways, clients."""

import asyncio
import contextlib
import hashlib
import os
import random
import secrets
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit, urlunsplit
from zoneinfo import ZoneInfo

import asyncpg
from redis.client import NEVER_DECODE

from gateway.account_record import account_record
from gateway.embedded import EmbeddedError, free_port
from gateway.migrate import default_folder, migrate, read_migrations
from tests.chaos.checker import Record
from tests.chaos.fleet import Gateway, write_configuration
from tests.chaos.load import Account, Budget, Client, Load
from tests.chaos.stores import Postgres, Proxy, Redis, child
from upstream_stub.database import migrate as migrate_phase_1

READY_S = 40.0
RECOVERY_S = 40.0
LOOK_S = 0.05
# A worker that has not been heard of for so long is dead (or stopped): gateway.admission_lane.HEARTBEAT_S is 0.5.
SILENT_S = 2.5
SPOOL_BYTES = 512 * 1024
# Accounts have their midnights all over the day, so that some budgets begin anew while a run goes on.
ZONES = (
    "UTC", "Asia/Kathmandu", "Asia/Kolkata", "Asia/Tehran", "Asia/Kabul", "Asia/Yangon", "Australia/Adelaide",
    "America/St_Johns", "Pacific/Marquesas", "Pacific/Chatham", "Australia/Eucla",
    *(f"Etc/GMT{offset:+d}" for offset in range(-14, 13) if offset),
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long gateways wait for a store. One machine has to do all of it: one that is only slow should not be lost."""

    redis: str = "250ms"
    postgres: str = "1s"


SHIPPED = Patience(redis="25ms", postgres="45ms")


class World:
    """``async with`` it. ``seed`` decides what accounts may spend."""

    def __init__(
        self, folder: Path, *, gateways: int, workers: int, clients: int, seed: int, patience: Patience
    ) -> None:
        self.folder = folder
        self.random = random.Random(seed)
        self.redis = Redis(folder / "redis")
        self.postgres = Postgres(folder / "postgres")
        self.proxy = Proxy()
        self.config = write_configuration(folder / "config")
        self.record = Record(folder / "casts.jsonl")
        self.gateways: list[Gateway] = []
        self.clients: list[Client] = []
        self.log_path = folder / "gateways.log"
        self.lost_workers = False  # new ones know no account yet
        self.environment: dict[str, str] = {}
        self._counts = gateways, workers, clients
        self._seed = seed
        self._patience = patience
        # One that is down is not killed once more before it is back.
        self.redis_kills, self.postgres_kills = asyncio.Lock(), asyncio.Lock()
        self._upstream: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None
        self._mounted: list[Path] = []

    async def __aenter__(self) -> "World":
        try:
            await self._start()
        except BaseException:
            await asyncio.to_thread(self.end)
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self.end)

    async def _start(self) -> None:
        gateways, workers, clients = self._counts
        await asyncio.to_thread(self.redis.start)
        await asyncio.to_thread(self.postgres.start)
        await self.postgres.need_no_disk()
        await migrate_phase_1(self.postgres.url)
        await migrate(self.postgres.url, read_migrations(default_folder()), report=lambda _: None)
        upstream_port = free_port()
        record = self.folder / "casts.jsonl"
        record.touch()
        self._upstream = child([sys.executable, "-m", "tests.chaos.upstream", str(upstream_port), str(record)])
        self.proxy.start()
        self._log = self.log_path.open("ab")
        for number in range(gateways):
            for store, port in (("redis", self.redis.port), ("postgres", self.postgres.port)):
                self.proxy.link(f"{store}-{number}", port)
            folder = self.folder / f"gateway-{number}"
            folder.mkdir()
            self._mount(folder)
            gateway = Gateway(
                number,
                config=self.config,
                folder=folder,
                workers=workers,
                log=self._log,
                environment={
                    "UPSTREAM_URL": f"http://127.0.0.1:{upstream_port}",
                    "DATABASE_URL": _at_port(self.postgres.url, self.proxy.ports[f"postgres-{number}"]),
                    "REDIS_URL": f"redis://127.0.0.1:{self.proxy.ports[f'redis-{number}']}/0",
                    "REDIS_TIMEOUT": self._patience.redis,
                    "ADMISSION_TIMEOUT": self._patience.postgres,
                },
            )
            self.gateways.append(gateway)
            gateway.start()
        self.environment = {
            **os.environ,
            "DATABASE_URL": self.postgres.url,
            "REDIS_URL": self.redis.url,
            "UPSTREAM_URL": f"http://127.0.0.1:{upstream_port}",
            "BILLING_PLAN_DEFAULT": "unlimited",
        }
        for gateway in self.gateways:
            await self.serving(gateway)
        for number in range(clients):
            gateway = self.gateways[number % gateways]
            self.clients.append(Client(number, gateway.number, gateway.port))

    def load(self) -> Load:
        return Load(self.clients, self._seed)

    def end(self) -> None:
        for gateway in self.gateways:
            gateway.end()
        if self._upstream is not None:
            self._upstream.kill()
            self._upstream.wait()
        for client in self.clients:
            client.close()
        self.proxy.close()
        self.redis.kill()
        self.postgres.close()
        if self._log is not None:
            self._log.close()
        for path in self._mounted:
            subprocess.run(["umount", "-l", str(path)], check=False)

    # --- the disk of the spools

    def _mount(self, folder: Path) -> None:
        if os.geteuid() != 0:
            return
        command = ["mount", "-t", "tmpfs", "-o", f"size={SPOOL_BYTES}", "castgate-chaos", str(folder)]
        if subprocess.run(command, check=False, capture_output=True).returncode == 0:
            self._mounted.append(folder)

    @property
    def has_small_disks(self) -> bool:
        """Whether the spools' disks can be filled."""
        return len(self._mounted) == len(self.gateways)

    def fill_disks(self) -> None:
        for folder in self._mounted:
            with contextlib.suppress(OSError), (folder / "filler").open("wb", buffering=0) as filler:
                while filler.write(b"\0" * 4096):
                    pass

    def empty_disks(self) -> None:
        for folder in self._mounted:
            (folder / "filler").unlink(missing_ok=True)

    # --- the links

    def links(self, store: str) -> list[str]:
        return [f"{store}-{gateway.number}" for gateway in self.gateways]

    async def start_postgres(self) -> None:
        deadline_s = time.monotonic() + READY_S
        while True:
            try:
                await asyncio.to_thread(self.postgres.start)
                break
            except EmbeddedError:  # the processes of the one that was killed are not quite gone
                if time.monotonic() > deadline_s:
                    raise
        for link in self.links("postgres"):
            self.proxy.lead(link, self.postgres.port)
        self.environment["DATABASE_URL"] = self.postgres.url

    # --- waiting

    async def serving(self, gateway: Gateway) -> None:
        """Until it is ready; it is started again where its port was not free yet."""
        deadline_s = time.monotonic() + READY_S
        while trouble := await gateway.trouble():
            assert time.monotonic() < deadline_s, f"gateway {gateway.number} does not serve: {trouble}"
            if gateway.process is not None and gateway.process.poll() is not None:
                gateway.start()
            await asyncio.sleep(LOOK_S)

    async def recovered(self) -> str:
        """Until every gateway says that all is well; else why not."""
        deadline_s = time.monotonic() + RECOVERY_S
        while True:
            troubles = [await gateway.trouble() for gateway in self.gateways]
            if not any(troubles):
                return ""
            if time.monotonic() > deadline_s:
                return f"not recovered after {RECOVERY_S:g} s: {troubles}"
            await asyncio.sleep(LOOK_S)

    async def told_again(self, accounts: list[Account]) -> str:
        """Until Redis knows of each account what the ledger knew when this began; else of whom it does not."""
        connection = await self.postgres.connect()
        try:
            rows = await connection.fetch(
                "SELECT account_id, period || '/' || time_zone || '/' || week_start AS kind, used_microcents AS used "
                "FROM usage_counters WHERE account_id = ANY($1::text[]) AND window_end > now() + interval '1 minute'",
                [account.account_id for account in accounts],
            )
        finally:
            await connection.close()
        own = {(account.account_id, budget.period) for account in accounts for budget in account.budgets}
        wanted = [row for row in rows if (row["account_id"], row["kind"].partition("/")[0]) in own]
        deadline_s = time.monotonic() + RECOVERY_S
        while untold := await asyncio.to_thread(self._untold, wanted):
            if time.monotonic() > deadline_s:
                return f"not told again after {RECOVERY_S:g} s: {untold}"
            await asyncio.sleep(LOOK_S)
        return ""

    def _untold(self, rows: list[asyncpg.Record]) -> list[str]:
        with self.redis.client() as client, client.pipeline(transaction=False) as pipeline:
            for row in rows:
                pipeline.execute_command("GET", f"cg:{{0}}:a:{row['account_id']}", **{NEVER_DECODE: []})
            known = [account_record(packed).windows for packed in pipeline.execute()]
        return [
            row["account_id"]
            for row, windows in zip(rows, known, strict=True)
            if windows.get(row["kind"], (0, -1))[1] < row["used"]
        ]

    async def without_orphans(self) -> str:
        """Until no dead worker holds anything in Redis; else who does."""
        deadline_s = time.monotonic() + RECOVERY_S
        while dead := await asyncio.to_thread(self._dead_books):
            if time.monotonic() > deadline_s:
                return f"never settled: {dead}"
            await asyncio.sleep(0.2)
        return ""

    def _dead_books(self) -> list[str]:
        with self.redis.client() as client:
            now_s, _ = client.time()
            found = []
            for key in client.scan_iter("cg:{0}:h:*"):
                holds = client.hlen(key) - sum(client.hexists(key, field) for field in ("epoch", "seq"))
                seen_ms = client.zscore("cg:{0}:workers", key.partition(":h:")[2])
                if holds and (seen_ms is None or now_s - seen_ms / 1000 > SILENT_S):
                    found.append(key)
            return found

    # --- accounts

    async def new_accounts(self, count: int) -> list[Account]:
        """Accounts with budgets of their own, made while both stores are there."""
        accounts = [self._new_account(place) for place in range(count)]
        connection = await self.postgres.connect()
        try:
            async with connection.transaction():
                for account in accounts:
                    await _insert(connection, account)
        finally:
            await connection.close()
        return accounts

    def _new_account(self, place: int) -> Account:
        chance = self.random
        limit = int(8 * 75 ** chance.random())  # 8 to 600, small ones more often
        zone = self._next_midnight() if chance.random() < 0.3 else chance.choice(ZONES)
        period = chance.choice(("daily", "weekly", "monthly", "total"))
        budgets = [Budget(period=period, limit=limit, time_zone="UTC" if period == "total" else zone)]
        if chance.random() < 0.3:
            other = "monthly" if period != "monthly" else "daily"
            budgets.append(Budget(period=other, limit=limit + chance.randrange(-5, 20), time_zone=zone))
        plan = "hurried" if place % 8 == 7 else "unlimited"
        key = "ck_" + secrets.token_hex(24)
        return Account(account_id=str(uuid.uuid4()), api_key=key, budgets=tuple(budgets), plan=plan)

    def _next_midnight(self) -> str:
        """The zone whose day ends first."""

        def left_s(zone: str) -> float:
            now = datetime.now(ZoneInfo(zone))
            return 86400 - (now.hour * 3600 + now.minute * 60 + now.second)

        return min(ZONES, key=left_s)


async def _insert(connection: "asyncpg.Connection[asyncpg.Record]", account: Account) -> None:
    await connection.execute(
        "INSERT INTO users (id, email, password_hash) VALUES ($1, $2, '-')",
        account.account_id,
        f"{account.account_id}@example.com",
    )
    await connection.execute(
        "INSERT INTO api_keys (id, user_id, name, prefix, key_sha256) VALUES ($1, $2, 'chaos', $3, $4)",
        uuid.uuid4(),
        account.account_id,
        account.api_key[:8],
        hashlib.sha256(account.api_key.encode()).hexdigest(),
    )
    await connection.execute(
        "INSERT INTO billing_accounts (account_id, plan, facts_version) VALUES ($1, $2, 1)",
        account.account_id,
        account.plan,
    )
    for budget in account.budgets:
        await connection.execute(
            "INSERT INTO budgets (account_id, period, hard_limit_microcents, time_zone) VALUES ($1, $2, $3, $4)",
            account.account_id,
            budget.period,
            budget.limit * 1_000_000,
            budget.time_zone,
        )


def _at_port(url: str, port: int) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=f"{parts.username}:{parts.password}@127.0.0.1:{port}"))
