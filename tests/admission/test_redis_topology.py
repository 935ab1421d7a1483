"""Logins, TLS and wrong answers of clusters and Sentinels: what a connection needs besides knowing where to go."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from gateway.redis_store import RedisLink, RedisLostError
from gateway.redis_topology import topology
from tests.admission.topologies import HOST, SLOTS, Member, until
from tests.admission.tunnel import Tunnel, trusted_by

# On a busy machine servers take long to agree with each other.
pytestmark = pytest.mark.timeout(180)


@dataclass(frozen=True, slots=True)
class Watched:
    """A server with a password, a Sentinel with another one, and TLS in front of both."""

    server: Member
    sentinel: Member
    port: int  # of the Sentinel, with TLS
    authority: Path


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    authority, file = trusted_by(tmp_path)
    with ExitStack() as stack:
        server = Member(tmp_path, password="s3cret")
        stack.callback(server.kill)
        server.start()
        before_server = stack.enter_context(Tunnel(authority, server.port))
        sentinel = Member(
            tmp_path,
            f"sentinel monitor counters {HOST} {before_server.port} 1",
            "sentinel auth-pass counters s3cret",
            is_sentinel=True,
            password="0ther",
        )
        stack.callback(sentinel.kill)
        sentinel.start()
        before_sentinel = stack.enter_context(Tunnel(authority, sentinel.port))
        yield Watched(server, sentinel, before_sentinel.port, file)


async def connect(url: str) -> RedisLink:
    return await topology(url, timeout_s=20).connect(0, lost=lambda _: None)


async def test_sentinels_and_servers_have_their_own_passwords_and_both_speak_tls(watched: Watched) -> None:
    url = f"rediss+sentinel://:s3cret@localhost:{watched.port}/counters/3"
    link = await connect(f"{url}?sentinel_password=0ther&ssl_ca_certs={watched.authority}")
    await link.call("SET", "key", "value")
    link.close()
    with watched.server.client.client() as client:
        client.execute_command("SELECT", 3)
        assert client.get("key") == "value"


@pytest.mark.parametrize(
    ("login", "place", "options", "reason"),
    [
        (":s3cret@", "counters", "sentinel_password=wr0ng", r"127\.0\.0\.1:\d+: WRONGPASS"),
        (":wr0ng@", "counters", "sentinel_password=0ther", r"127\.0\.0\.1:\d+: WRONGPASS"),
        (":s3cret@", "others", "sentinel_password=0ther", r"127\.0\.0\.1:\d+: knows no service others$"),
    ],
)
async def test_what_a_sentinel_or_its_server_refuses_is_said(
    watched: Watched, login: str, place: str, options: str, reason: str
) -> None:
    with pytest.raises(RedisLostError, match=rf"^Redis Sentinel, service {place}: {reason}") as failure:
        await connect(f"redis+sentinel://{login}127.0.0.1:{watched.port}/{place}?{options}")
    assert not any(secret in str(failure.value) for secret in ("s3cret", "0ther", "wr0ng"))


async def test_a_certificate_that_nobody_trusts_is_refused(watched: Watched) -> None:
    with pytest.raises(RedisLostError, match=r"localhost:\d+: .*certificate"):
        await connect(f"rediss+sentinel://:s3cret@localhost:{watched.port}/counters?sentinel_password=0ther")
    with pytest.raises(RedisLostError, match=r"certificates for Redis: .*No such file"):
        await connect(f"rediss+sentinel://localhost:{watched.port}/counters?ssl_ca_certs=/nowhere.pem")


async def test_a_server_that_is_no_primary_is_not_taken_for_one(watched: Watched, free_port: int) -> None:
    watched.server.client.execute_command("REPLICAOF", HOST, free_port)
    with pytest.raises(RedisLostError, match=r"127\.0\.0\.1:\d+: named by 127\.0\.0\.1:\d+ as primary, is a slave$"):
        await connect(f"redis+sentinel://:s3cret@127.0.0.1:{watched.port}/counters?sentinel_password=0ther")


async def test_a_sentinel_that_is_away_is_passed_over(watched: Watched, free_port: int) -> None:
    hosts = f"127.0.0.1:{free_port},127.0.0.1:{watched.sentinel.port}"
    link = await connect(f"redis+sentinel://:s3cret@{hosts}/counters?sentinel_password=0ther")
    assert (await link.call("ROLE"))[0] == b"master"
    link.close()


async def test_nodes_that_a_cluster_names_are_spoken_to_as_those_of_the_address(tmp_path: Path) -> None:
    authority, file = trusted_by(tmp_path)
    with ExitStack() as stack:
        tunnels = [stack.enter_context(Tunnel(authority)) for _ in range(2)]
        members = []
        for number, tunnel in enumerate(tunnels):
            announced = f"cluster-announce-port {tunnel.port}"
            member = Member(tmp_path, "cluster-enabled yes", announced, has_bus=True, password="s3cret")
            stack.callback(member.kill)
            member.start()
            tunnel.target = member.port
            slots = range(number * SLOTS // 2, (number + 1) * SLOTS // 2)
            member.client.execute_command("CLUSTER", "ADDSLOTS", *slots)
            members.append(member)
        members[0].client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", 1)
        members[0].client.execute_command("CLUSTER", "MEET", HOST, members[1].port)
        until(lambda: all("cluster_state:ok" in str(m.client.execute_command("CLUSTER", "INFO")) for m in members))
        url = f"rediss+cluster://:s3cret@localhost:{tunnels[0].port}?ssl_ca_certs={file}"
        redis = topology(url, timeout_s=20)
        peers = set()
        for partition in range(16):
            link = await redis.connect(partition, lost=lambda _: None)
            assert await link.call("SET", f"{{{partition}}}", "here") == b"OK"
            assert link._transport is not None
            peers.add(link._transport.get_extra_info("peername")[1])
            link.close()
        assert peers == {tunnel.port for tunnel in tunnels}
