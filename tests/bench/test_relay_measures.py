"""The short forms of what is measured of the relay; the modules' own commands are the long ones."""

import uvloop

from bench import idle_connections, slowloris, transfer
from bench.plain_gateway import allow_many_files, fast_upstream, plain_gateway


def test_two_thousand_idle_connections_cost_little_memory() -> None:
    allow_many_files()
    with fast_upstream() as upstream_url, plain_gateway(upstream_url) as gateway:
        idle = uvloop.run(idle_connections.measure(gateway, 2_000))
    assert idle.kib_each <= idle_connections.KIB_EACH_MAX, str(idle)


def test_large_bodies_pass_in_little_memory() -> None:
    with transfer.byte_upstream() as upstream_url, plain_gateway(upstream_url) as gateway:
        passed = transfer.measure(gateway, 192)
    assert [one.direction for one in passed] == ["upload", "download"]
    for one in passed:
        assert one.above_idle_mib <= transfer.ABOVE_IDLE_MIB_MAX, str(one)


def test_slow_clients_cost_others_little() -> None:
    with fast_upstream() as upstream_url, plain_gateway(upstream_url) as gateway:
        slowed = uvloop.run(slowloris.measure(gateway, attackers=500, rounds=2, requests=4_000))
    # Processor time, which a busy machine hardly changes. How fast others are, `python -m bench.slowloris` tells.
    assert slowed.cpu_us[1] < slowed.cpu_us[0] * 1.5, str(slowed)
