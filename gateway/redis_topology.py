"""Which server a partition's Redis is: the only one there is, a cluster's primary, or the primary that Sentinels name.

Nothing here is kept but where to ask first. Whoever loses a connection, for whatever reason (a primary that died, a
slot that moved, a primary that became a replica: each ends in a closed connection, silence, or an error such as MOVED,
CLUSTERDOWN or READONLY), asks again for the server, and is believed only what the server says of itself:

    one server   none to choose from
    cluster      a node is asked who has the slot, and the one that it names whether it agrees: by a move or a failover
                 the owner knows first, others hear of it later
    Sentinels    one after the other is asked for the primary, and that one for its role

Every node is asked at most once a time, and all of it takes no longer than the time-out of one connection: half of what
is left for each that hangs. Who called waits before the next time (``breaker``). That the server found may be
another one than before, or may have lost writes in a failover, is noticed by its run_id (``admission_restore``).
"""

import asyncio
import ssl
from binascii import crc_hqx
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway.config.redis_address import Node, RedisAddress, read_redis_url
from gateway.redis_store import RedisLink, RedisLostError, Reply, Server, connect

if TYPE_CHECKING:
    from gateway.config.settings_stores import Redis as RedisSettings

Lost = Callable[[str], None]

# A cluster of Redis has 1000 nodes at most (its specification's design goal); those beyond are not remembered.
KNOWN_MAX = 1000
SLOTS = 16384
# Nodes that are asked for one connection: after so many that do not know, it is the cluster that has a problem.
ASKED_MAX = 16
# So many of their reasons are told when none of them helped.
REASONS_MAX = 3


class Topology:
    """One server. The other forms of address are this, with another way to find the server."""

    def __init__(self, address: RedisAddress, *, timeout_s: float) -> None:
        self._address = address
        self._timeout_s = timeout_s

    async def connect(self, partition: int, *, lost: Lost) -> RedisLink:
        """A connection to the server that has the partition. Raises RedisLostError."""
        if self._address.path:
            server = Server(path=self._address.path, login=self._address.login, db=self._address.db)
        else:
            server = self._server(self._address.nodes[0], self._tls())
        return await connect(server, timeout_s=self._timeout_s, lost=lost)

    async def connect_all(self, partitions: int, *, lost: Lost) -> "list[RedisLink]":
        """A connection for each partition; those on one server may share it. Raises RedisLostError."""
        link = await self.connect(0, lost=lost)
        return [link] * partitions

    def guard_keys(self, prefix: str) -> tuple[str, ...]:
        """Keys to name in each call that decides, besides those that it uses; none where nothing can be half there."""
        return ()

    def _server(self, node: Node, tls: ssl.SSLContext | None) -> Server:
        host, port = node
        return Server(host=host, port=port, login=self._address.login, db=self._address.db, tls=tls)

    def _tls(self) -> ssl.SSLContext | None:
        """Read anew for each connection: certificates are renewed while a gateway runs."""
        options = self._address.tls
        if options is None:
            return None
        try:
            context = ssl.create_default_context(cafile=options.get("ssl_ca_certs"), capath=options.get("ssl_ca_path"))
            required = options.get("ssl_cert_reqs", "required").lower()
            is_off = options.get("ssl_check_hostname", "true").lower() == "false"
            context.check_hostname = required == "required" and not is_off
            if required == "none":
                context.verify_mode = ssl.CERT_NONE
            if "ssl_certfile" in options:
                context.load_cert_chain(
                    options["ssl_certfile"], options.get("ssl_keyfile"), options.get("ssl_password")
                )
        except OSError as error:
            raise RedisLostError(f"certificates for Redis: {error}") from None
        return context


def topology(url: str, *, timeout_s: float) -> Topology:
    """What the URL names. Raises ValueError for a wrong one."""
    address = read_redis_url(url)
    kind = {"single": Topology, "cluster": Cluster, "sentinel": Sentinels}[address.form]
    return kind(address, timeout_s=timeout_s)


def topology_of(settings: "RedisSettings") -> Topology:
    """The configured one."""
    return topology(settings.url, timeout_s=settings.connect_timeout_s)


def slot_of(partition: int) -> int:
    """The slot of all keys of the partition: CRC-16/XMODEM of the hash tag (Redis Cluster specification)."""
    return crc_hqx(b"%d" % partition, 0) % SLOTS


class _Search:
    """The nodes asked for one connection, the time that is left, and why those asked did not help."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._loop = asyncio.get_running_loop()
        self._end_s = self._loop.time() + timeout_s
        self._asked: set[Node] = set()
        self._reasons: list[str] = []

    def begins(self, node: Node) -> bool:
        """False where the node has been asked, or nothing more may be."""
        if node in self._asked or len(self._asked) >= ASKED_MAX or self._loop.time() >= self._end_s:
            return False
        self._asked.add(node)
        return True

    def share_s(self) -> float:
        """How long the next step may take."""
        return max(0.001, (self._end_s - self._loop.time()) / 2)

    def add(self, reason: str) -> None:
        self._reasons.append(reason)

    def failure(self, what: str) -> RedisLostError:
        reasons = "; ".join(self._reasons[-REASONS_MAX:]) or f"no answer within {self._timeout_s:g} s"
        return RedisLostError(f"{what}: {reasons}")


@dataclass(frozen=True, slots=True)
class _Slots:
    """What a node says of its cluster: slots from and to, whose they are, and whether that is the node itself."""

    ranges: Sequence[tuple[int, int, Node, bool]]
    nodes: Sequence[Node]

    def owner(self, slot: int) -> tuple[Node, bool] | None:
        for first, last, node, is_own in self.ranges:
            if first <= slot <= last:
                return node, is_own
        return None


class Cluster(Topology):
    """A Redis Cluster, of which the address names some nodes; the others are learnt."""

    def __init__(self, address: RedisAddress, *, timeout_s: float) -> None:
        super().__init__(address, timeout_s=timeout_s)
        self._nodes: list[Node] = list(address.nodes)  # that answered last first
        self._owners: dict[int, Node] = {}  # by slot, as last found

    async def connect(self, partition: int, *, lost: Lost) -> RedisLink:
        link, _ = await self._find(partition, lost)
        return link

    async def connect_all(self, partitions: int, *, lost: Lost) -> "list[RedisLink]":
        found: list[tuple[RedisLink, _Slots]] = []
        links: list[RedisLink] = []
        try:
            for partition in range(partitions):
                slot = slot_of(partition)
                known = (link for link, slots in found if (slots.owner(slot) or ("", False))[1])
                link = next(known, None)
                if link is None:
                    link, slots = await self._find(partition, lost)
                    found.append((link, slots))
                links.append(link)
        except RedisLostError:
            for link, _ in found:
                link.close()
            raise
        return links

    def guard_keys(self, prefix: str) -> tuple[str, ...]:
        """One that never exists: while a slot is on its way to another node, who names a missing key is refused.

        Without it the accounts still here would be decided here for some workers, and by Postgres for those that met
        an account which had already gone: see docs/decisions/0040-a-slot-on-its-way-decides-nothing.md.
        """
        return (f"{prefix}moving",)

    async def _find(self, partition: int, lost: Lost) -> tuple[RedisLink, _Slots]:
        slot = slot_of(partition)
        search = _Search(self._timeout_s)
        tls = self._tls()
        # Asked first for as long as it is right: forgotten now, known again when found again.
        owner = self._owners.pop(slot, None)
        waiting = deque([*([owner] if owner else ()), *self._nodes])
        while waiting:
            node = waiting.popleft()
            if not search.begins(node):
                continue
            server = self._server(node, tls)
            link = None
            try:
                link = await connect(server, timeout_s=search.share_s(), lost=lost)
                async with asyncio.timeout(search.share_s()):
                    slots = await _slots(link, node)
            except (RedisLostError, TimeoutError) as error:
                search.add(str(error) if link is None else f"{server}: {str(error) or 'no answer in time'}")
                self._put_last(node)
                if link is not None:
                    link.close()
                continue
            self._learn(node, slots.nodes)
            named = slots.owner(slot)
            if named is not None and named[1]:
                self._owners[slot] = node
                return link, slots
            link.close()
            if named is None:
                search.add(f"{server}: nobody has slot {slot}")
            else:
                waiting.appendleft(named[0])
        raise search.failure(f"Redis Cluster, slot {slot}")

    def _learn(self, node: Node, others: Sequence[Node]) -> None:
        """Nodes that were named in the address are never forgotten: all others may change their addresses at once."""
        known = dict.fromkeys((node, *self._nodes))
        current = {node, *self._address.nodes, *others[:KNOWN_MAX]}
        self._nodes = [*(one for one in known if one in current), *(one for one in others if one not in known)]
        del self._nodes[KNOWN_MAX + len(self._address.nodes) :]

    def _put_last(self, node: Node) -> None:
        if node in self._nodes:
            self._nodes.remove(node)
            self._nodes.append(node)


async def _slots(link: RedisLink, asked: Node) -> _Slots:
    """Raises RedisLostError, also where the node itself knows that it is cut off."""
    info: bytes
    info, own_id, reply = await asyncio.gather(
        link.call("CLUSTER", "INFO"), link.call("CLUSTER", "MYID"), link.call("CLUSTER", "SLOTS")
    )
    if b"cluster_state:ok" not in info:
        raise RedisLostError("CLUSTERDOWN The cluster is down")
    ranges = []
    nodes: dict[Node, None] = {}
    for first, last, *members in reply:
        places = [_node_of(member, asked) for member in members]
        nodes.update(dict.fromkeys(places))
        ranges.append((first, last, places[0], members[0][2] == own_id))
    return _Slots(ranges, list(nodes))


def _node_of(member: Sequence[Reply], asked: Node) -> Node:
    """A node that does not know its own address, or is told not to tell it, is where it was asked."""
    host = (member[0] or b"").decode()
    return (host if host not in ("", "?") else asked[0]), member[1]


class Sentinels(Topology):
    """Redis behind Sentinels, each of which can name the primary."""

    def __init__(self, address: RedisAddress, *, timeout_s: float) -> None:
        super().__init__(address, timeout_s=timeout_s)
        self._sentinels = list(address.nodes)  # that answered last first

    async def connect(self, partition: int, *, lost: Lost) -> RedisLink:
        search = _Search(self._timeout_s)
        tls = self._tls()
        for sentinel in list(self._sentinels):
            try:
                node = await self._primary_by(sentinel, tls, search)
            except RedisLostError as error:
                search.add(str(error))
                self._sentinels.remove(sentinel)
                self._sentinels.append(sentinel)
                continue
            if not search.begins(node):
                continue
            server = self._server(node, tls)
            try:
                link = await connect(server, timeout_s=search.share_s(), lost=lost)
            except RedisLostError as error:
                search.add(str(error))
                continue
            try:
                async with asyncio.timeout(search.share_s()):
                    role = await link.call("ROLE")
            except (RedisLostError, TimeoutError) as error:
                search.add(f"{server}: {str(error) or 'no answer in time'}")
            else:
                if role[0] == b"master":
                    return link
                search.add(f"{server}: named by {sentinel[0]}:{sentinel[1]} as primary, is a {role[0].decode()}")
            link.close()
        raise search.failure(f"Redis Sentinel, service {self._address.service}")

    async def _primary_by(self, sentinel: Node, tls: ssl.SSLContext | None, search: _Search) -> Node:
        """Raises RedisLostError."""
        server = Server(host=sentinel[0], port=sentinel[1], login=self._address.sentinel_login, tls=tls)
        link = await connect(server, timeout_s=search.share_s(), lost=lambda _: None)
        try:
            async with asyncio.timeout(search.share_s()):
                reply = await link.call("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._address.service)
        except (RedisLostError, TimeoutError) as error:
            raise RedisLostError(f"{server}: {str(error) or 'no answer in time'}") from None
        finally:
            link.close()
        if reply is None:
            raise RedisLostError(f"{server}: knows no service {self._address.service}")
        return reply[0].decode(), int(reply[1])
