"""``castgate serve``: what the supervisor keeps alive, and how it ends. Workers are toys, processes are real."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.process.serving import CONFIG, POLICIES, Serving, serving, write_config

REQUESTS = 'castgate_requests_total{kind="plain"}'


def runtime_folders(folder: Path) -> list[Path]:
    return list(folder.glob("castgate-run-*"))


async def gone(pid: int) -> None:
    """Waits until there is no such process; the kernel closes a pidfd's wait at its end."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(descriptor, ended.set)
    try:
        await asyncio.wait_for(ended.wait(), 20)
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


async def calls_until(served: Serving, stop: asyncio.Event) -> list[int]:
    """Calls one after the other; each must be answered."""
    pids = []
    while not stop.is_set():
        pids.append(await served.call())
    return pids


async def test_it_says_where_it_serves_once_all_workers_are_ready(config: Path) -> None:
    async with serving(config) as served:
        await served.ready()
        assert served.lines[-1].endswith(", 2 workers")
        assert await served.readiness() == (
            200,
            {"status": "ready", "workers": {"ready": 2, "alive": 2, "wanted": 2}, "stores": {}},
        )
        assert await served.get(f"{served.admin_url}/healthz") == (200, '{"status": "ok"}')
        assert await served.metric("castgate_workers_ready") == 2
        assert await served.call() in served.pids()


async def test_the_command_line_overrides_ports_and_workers(config: Path, free_port: int) -> None:
    async with serving(config, "--port", str(free_port), "--workers", "1") as served:
        await served.ready()
        assert served.base_url == f"http://127.0.0.1:{free_port}"
        assert len(served.pids()) == 1


async def test_all_workers_of_one_port_get_connections(config: Path) -> None:
    async with serving(config) as served:
        await served.ready()
        answered = set(await asyncio.gather(*(served.call() for _ in range(60))))
        assert answered == set(served.pids())
        assert await served.metric(REQUESTS) == 60


async def test_a_killed_worker_is_replaced_and_its_counts_stay(config: Path) -> None:
    async with serving(config, "--workers", "1") as served:
        await served.ready()
        first = await served.call()
        os.kill(first, signal.SIGKILL)
        # The supervisor holds the socket: this connection waits in it until the next worker takes it.
        second = await served.call()
        assert second != first
        event = await served.event("worker_ended")
        assert (event["pid"], event["how"]) == (first, "signal SIGKILL")
        assert await served.metric(REQUESTS) == 2
        assert await served.metric('castgate_worker_restarts_total{reason="signal"}') == 1
        [folder] = runtime_folders(config.parent)
        assert sorted(path.name for path in folder.glob("*.metrics")) == [
            "supervisor.0.v1.metrics",
            "worker-0.0.v1.metrics",
        ]


async def test_while_a_worker_is_replaced_the_gateway_is_degraded_not_down(config: Path) -> None:
    async with serving(config) as served:
        await served.ready()
        victim = await served.call()
        os.kill(victim, signal.SIGKILL)
        await served.event("worker_ended")
        status, body = await served.readiness()
        assert status == 200
        assert body["status"] in ("degraded", "ready")
        await served.said('"event": "worker_ready"', times=3)
        assert (await served.readiness())[1]["status"] == "ready"


async def test_sigterm_lets_calls_under_way_end(config: Path) -> None:
    async with serving(config, "--workers", "1", toy="slow") as served:
        await served.ready()
        call = asyncio.ensure_future(served.call())
        while await served.metric("castgate_connections_open") == 0:
            pass
        served.signal(signal.SIGTERM)
        assert await call > 0
        assert await served.ended() == 0
        assert runtime_folders(config.parent) == []


async def test_while_it_drains_it_is_not_ready(config: Path) -> None:
    async with serving(config, toy="stubborn") as served:
        await served.ready()
        served.signal(signal.SIGTERM)
        await served.event("stopping")
        status, body = await served.readiness()
        assert (status, body["status"]) == (503, "draining")
        served.signal(signal.SIGTERM)


async def test_what_does_not_drain_in_time_is_killed(tmp_path: Path) -> None:
    config = write_config(tmp_path, CONFIG.replace("5s", "0s"))
    async with serving(config, "--workers", "1", toy="stubborn") as served:
        await served.ready()
        [pid] = served.pids()
        served.signal(signal.SIGINT)
        assert await served.ended() == 0
        forced = [line for line in served.lines if "worker_forced" in line]
        assert ["SIGTERM" in forced[0], "SIGKILL" in forced[1]] == [True, True]
        await gone(pid)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_second_signal_stops_at_once(config: Path, number: signal.Signals) -> None:
    async with serving(config, toy="stubborn") as served:
        await served.ready()
        pids = served.pids()
        served.signal(number)
        await served.event("stopping")
        served.signal(number)
        assert await served.ended() == 130
        for pid in pids:
            await gone(pid)
        assert runtime_folders(config.parent) == []


async def test_workers_end_when_the_supervisor_is_killed_and_the_next_start_cleans_up(config: Path) -> None:
    async with serving(config) as served:
        await served.ready()
        pids = served.pids()
        served.process.kill()
        await served.ended()
        for pid in pids:
            await gone(pid)
    [left] = runtime_folders(config.parent)
    os.utime(left, (0, 0))
    async with serving(config) as served:
        await served.ready()
        assert left not in runtime_folders(config.parent)


async def test_the_folder_of_another_living_gateway_is_left_alone(config: Path) -> None:
    async with serving(config) as one:
        await one.ready()
        [folder] = runtime_folders(config.parent)
        os.utime(folder, (0, 0))
        async with serving(config) as other:
            await other.ready()
            assert folder.is_dir()
            assert folder.stat().st_mode & 0o777 == 0o700


async def test_a_reload_reaches_all_workers(config: Path) -> None:
    async with serving(config) as served:
        await served.ready()
        write_config(config.parent, policies=POLICIES.replace("cents: 1", "cents: 2"))
        served.signal(signal.SIGHUP)
        event = await served.event("worker_reloaded", times=2)
        assert await served.metric(f'castgate_config_info{{version="{event["version"]}"}}') == 2
        assert await served.metric('castgate_config_reloads_total{result="ok"}') == 1


async def test_a_bad_reload_keeps_the_old_configuration_counts_it_and_says_all_that_is_wrong(config: Path) -> None:
    async with serving(config) as served:
        await served.ready()
        write_config(config.parent, policies=POLICIES.replace("cents: 1", "cents: -1").replace("plans:", "plams:"))
        served.signal(signal.SIGHUP)
        event = await served.event("reload_rejected")
        problems = event["problems"]
        assert isinstance(problems, list)
        assert len(problems) >= 2
        assert any("all.yaml:3:" in text and "cents" in text for text in problems)
        assert any('did you mean "plans"?' in text for text in problems)
        assert await served.metric(f'castgate_config_info{{version="{event["kept"]}"}}') == 2
        assert await served.metric('castgate_config_reloads_total{result="rejected"}') == 1
        assert await served.call() in served.pids()


async def test_what_one_worker_cannot_take_none_takes(config: Path) -> None:
    async with serving(config, toy="unprepared") as served:
        await served.ready()
        write_config(config.parent, policies=POLICIES.replace("cents: 1", "cents: 2"))
        served.signal(signal.SIGHUP)
        event = await served.event("reload_failed")
        assert event["problems"] == ["worker 1: the toy will not"]
        assert await served.metric(f'castgate_config_info{{version="{event["kept"]}"}}') == 2
        assert await served.metric('castgate_config_reloads_total{result="failed"}') == 1
        # A worker that starts now has what the others have.
        os.kill(await served.call(), signal.SIGKILL)
        await served.said('"event": "worker_ready"', times=3)
        assert await served.metric(f'castgate_config_info{{version="{event["kept"]}"}}') == 2


async def test_the_admin_listener_shows_the_rules_and_how_they_came_to_be(config: Path) -> None:
    async with serving(config) as served:
        await served.ready()
        first = json.loads((await served.get(f"{served.admin_url}/policies"))[1])
        assert first["loaded_by"] == "start"
        assert first["policies"]["cast"]["cost"] == {"charge_when": "success", "fixed_cents": 1}
        plan = {"budgets": {}, "rate_limits": {}, "soft_limit_percents": [50, 80, 100], "stripe_price": "none"}
        assert first["plans"] == {"free": plan}
        write_config(config.parent, policies=POLICIES.replace("cents: 1", "cents: 2") + "  pro: {}\n")
        served.signal(signal.SIGHUP)
        version = (await served.event("reload_accepted"))["version"]
        write_config(config.parent, policies="no: rules\n")
        served.signal(signal.SIGHUP)
        await served.event("reload_rejected")
        status, text = await served.get(f"{served.admin_url}/policies/history")
        body = json.loads(text)
        assert (status, body["version"], body["loaded_by"]) == (200, version, "SIGHUP")
        rejected, accepted, start = body["history"]
        assert (rejected["result"], rejected["version"], rejected["by"]) == ("rejected", version, "SIGHUP")
        assert any('unknown key "no"' in problem for problem in rejected["problems"])
        assert accepted["changes"] == [
            {"key": "policies.cast.cost.fixed_cents", "before": 1, "after": 2},
            {"key": "plans.pro", "before": None, "after": plan},
        ]
        assert (start["by"], start["version"], start["at"]) == ("start", first["version"], first["loaded_at"])


async def test_a_change_of_the_files_reloads_by_itself(config: Path) -> None:
    async with serving(config) as served:
        await served.ready()
        (config.parent / "policies" / "more.yaml").write_text("plans:\n  pro: {}\n")
        assert (await served.event("reload_accepted"))["reason"] == "files changed"
        await served.event("worker_reloaded", times=2)


async def test_settings_that_a_reload_cannot_change_are_named(config: Path) -> None:
    async with serving(config) as served:
        await served.ready()
        write_config(config.parent, CONFIG.replace("workers: 2", "workers: 3").replace("5s", "1s"))
        served.signal(signal.SIGHUP)
        assert (await served.event("restart_needed"))["sections"] == ["workers"]


async def test_workers_are_replaced_one_by_one_without_losing_a_call_or_a_count(config: Path) -> None:
    async with serving(config) as served:
        await served.ready()
        before = served.pids()
        stop = asyncio.Event()
        callers = asyncio.gather(*(calls_until(served, stop) for _ in range(4)))
        served.signal(signal.SIGUSR2)
        await served.event("worker_replaced", times=2)
        for pid in before:
            await gone(pid)
        stop.set()
        answered = [pid for pids in await callers for pid in pids]
        after = served.pids()
        assert len(after) == 2
        assert set(after).isdisjoint(before)
        assert await served.metric(REQUESTS) == len(answered)
        assert await served.metric('castgate_worker_restarts_total{reason="replace"}') == 2


async def test_a_successor_that_fails_leaves_its_predecessor_serving(config: Path) -> None:
    async with serving(config, "--workers", "1") as served:
        await served.ready()
        before = served.pids()
        write_config(config.parent, policies="not: right\n")  # the toy reads it before it is ready
        served.signal(signal.SIGUSR2)
        assert (await served.event("replacement_failed"))["error"] == "exit code 1"
        assert [await served.call()] == before


def test_a_supervisor_of_the_version_before_finds_the_worker_that_it_starts() -> None:
    ended = subprocess.run([sys.executable, "-m", "gateway.worker"], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (1, "gateway.worker_main is started by castgate serve\n")


async def test_a_worker_that_dies_at_the_first_start_stops_the_whole(config: Path) -> None:
    async with serving(config, toy="exits") as served:
        assert await served.ended() == 1
        await served.said("castgate: worker ", " could not start: exit code 3")
        assert runtime_folders(config.parent) == []


async def test_a_worker_that_says_why_it_cannot_start_is_quoted(config: Path) -> None:
    async with serving(config, "--workers", "1", toy="says_why") as served:
        assert await served.ended() == 1
        assert served.lines[-1] == "castgate: worker 0 could not start: the toy is broken"


async def test_a_signal_while_workers_start_stops_them(config: Path) -> None:
    async with serving(config, toy="silent") as served:
        await served.said("the toy is silent", times=2)
        served.signal(signal.SIGTERM)
        await served.event("stopping")
        served.signal(signal.SIGTERM)
        assert await served.ended() == 130


@pytest.mark.parametrize("option", ["--port", "--admin-port"])
async def test_a_busy_port_is_one_clear_line(config: Path, option: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        async with serving(config, option, str(port)) as served:
            assert await served.ended() == 1
            assert served.lines[-1] == f"castgate: port {port} on 127.0.0.1 is already in use"


async def test_a_second_gateway_on_the_same_port_is_refused_not_mixed_in(config: Path) -> None:
    async with serving(config) as first:
        await first.ready()
        port = first.base_url.rpartition(":")[2]
        async with serving(config, "--port", port) as second:
            assert await second.ended() == 1
            assert second.lines[-1] == f"castgate: port {port} on 127.0.0.1 is already in use"


async def test_a_port_is_free_again_at_once_after_the_end(config: Path, free_port: int) -> None:
    for _ in range(2):
        async with serving(config, "--port", str(free_port)) as served:
            await served.ready()
            await served.call()


async def test_a_bad_configuration_at_the_start_says_every_mistake(config: Path) -> None:
    write_config(config.parent, CONFIG.replace("workers: 2", "workers: none").replace("5s", "soon"))
    async with serving(config) as served:
        assert await served.ended() == 1
        assert served.lines == [
            f'{config}:4:10: workers: expected auto or an integer of 1 to 64, found "none"',
            f'{config}:5:16: drain_timeout: expected a duration such as 250ms, 5s, 1m, 1h or 1d, found "soon"',
        ]


async def test_it_serves_on_ipv6(tmp_path: Path) -> None:
    config = write_config(tmp_path, CONFIG.replace("listen: {port: 0}", 'listen: {host: "::1", port: 0}'))
    async with serving(config) as served:
        await served.ready()
        assert served.base_url.startswith("http://[::1]:")
        assert await served.call() in served.pids()
