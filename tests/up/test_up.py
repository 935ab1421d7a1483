"""One command, one cast: what ``./dev up`` starts, says and leaves behind."""

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import asyncpg
import psutil
import pytest

from tests.gateways import ROOT
from tests.up.running import Up, all_gone, up

SECOND_START_S = 5.0  # on a machine that does nothing else
IMPORT_S = 0.6  # what it takes such a machine to load the program of a worker
LEDGER_TIMEOUT_S = 10.0


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """One that runs, for tests that change nothing others look at."""
    with up(tmp_path_factory.mktemp("up")) as running:
        running.wait_for("ready ")
        yield running


def slowness() -> float:
    """How much longer things take now than on a machine of two cores that does nothing else; at least 1."""
    began_s = time.monotonic()
    subprocess.run([sys.executable, "-c", "import gateway.worker_serve"], cwd=ROOT, check=True)
    return max(1.0, (time.monotonic() - began_s) / IMPORT_S)


async def cast(demo: dict[str, str]) -> tuple[int, dict[str, str]]:
    headers = {"Authorization": f"Bearer {demo['api_key']}"}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{demo['base_url']}/v1/cast", headers=headers, json={"input": "lumos"}) as answer,
    ):
        return answer.status, await answer.json()


async def pay_address(demo: dict[str, str]) -> str:
    """As the printed curl gets it: without a body."""
    headers = {"Authorization": f"Bearer {demo['api_key']}"}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{demo['base_url']}/v1/billing/checkout", headers=headers) as answer,
    ):
        assert answer.status == 200, await answer.text()
        return str((await answer.json())["url"])


async def press_pay(url: str) -> None:
    """Without a browser; with one: tests/billing/test_browser_story.py."""
    form = {"how": "pay", "email": "demo@example.com", "card": "4242 4242 4242 4242"}
    async with aiohttp.ClientSession() as session, session.post(url, data=form, allow_redirects=False) as answer:
        assert answer.status == 303, await answer.text()


async def plan(demo: dict[str, str]) -> str:
    headers = {"Authorization": f"Bearer {demo['api_key']}"}
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{demo['base_url']}/v1/budgets", headers=headers) as answer,
    ):
        return str((await answer.json())["plan"])


async def charged_microcents(demo: dict[str, str], *, at_least: int) -> int:
    """What the ledger has for the demo account, once it has that much (it is written in batches)."""
    connection = await asyncpg.connect(demo["database_url"])
    try:
        deadline_s = time.monotonic() + LEDGER_TIMEOUT_S
        while True:
            found: int = await connection.fetchval(
                "SELECT coalesce(sum(cost_microcents), 0)::bigint FROM usage_events WHERE account_id = $1",
                demo["account_id"],
            )
            if found >= at_least or time.monotonic() > deadline_s:
                return found
    finally:
        await connection.close()


def test_the_demo_file_says_where_everything_is_to_its_owner_alone(shared: Up) -> None:
    file = shared.data_dir / "demo.json"
    assert file.stat().st_mode & 0o777 == 0o600
    demo = shared.demo
    assert sorted(demo) == [
        *("account_id", "admin_url", "api_key", "base_url"),
        *("database_url", "redis_url", "stripe_url", "upstream_url"),
    ]
    assert demo["stripe_url"].startswith("http://127.0.0.1:")
    assert shared.wait_for("ready ").startswith(f"ready on {demo['base_url']}")


def test_it_prints_what_to_curl(shared: Up) -> None:
    shown = "\n".join(shared.out)
    assert f"curl -i {shared.demo['base_url']}/v1/cast -H 'Authorization: Bearer {shared.demo['api_key']}'" in shown
    assert f"curl {shared.demo['admin_url']}/metrics" in shown
    assert f"{shared.demo['admin_url']}/console" in shown


async def test_what_it_prints_gives_an_address_to_pay_at(shared: Up) -> None:
    demo = shared.demo
    assert f"curl -X POST {demo['base_url']}/v1/billing/checkout -H 'Authorization: Bearer" in "\n".join(shared.out)
    url = await pay_address(demo)
    assert url.startswith(f"{demo['stripe_url']}/c/pay/cs_test_")


def test_colours_are_for_terminals(shared: Up) -> None:
    assert "\033" not in "".join(shared.out + shared.err)


async def test_a_cast_goes_through_and_is_charged_one_cent(shared: Up) -> None:
    status, answer = await cast(shared.demo)
    assert (status, answer["status"]) == (200, "completed")
    assert await charged_microcents(shared.demo, at_least=1_000_000) >= 1_000_000


async def test_metrics_are_on_both_listeners(shared: Up) -> None:
    async with aiohttp.ClientSession() as session:
        for url in (shared.demo["admin_url"], shared.demo["base_url"]):
            async with session.get(f"{url}/metrics") as answer:
                assert answer.status == 200
                assert "spell_cast_total" in await answer.text()


def test_the_same_folder_is_refused_in_one_line(shared: Up) -> None:
    with up(shared.data_dir) as second:
        assert second.wait() == 1
        assert second.out == []
        assert second.err == [
            f"castgate: the data folder {shared.data_dir} is in use by another process (pid {shared.process.pid}); "
            "give each ./dev up its own --data-dir"
        ]
    assert shared.process.poll() is None


@pytest.mark.parametrize("option", ["--port", "--admin-port"])
def test_a_busy_port_is_refused_in_one_line_before_anything_is_started(tmp_path: Path, option: str) -> None:
    other = "--admin-port" if option == "--port" else "--port"
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        with up(tmp_path / "data", option, str(port), other, "0") as refused:
            assert refused.wait() == 1
    assert refused.err == [f"castgate: port {port} on 127.0.0.1 is already in use; choose another with {option}"]
    assert refused.out == []
    assert [entry.name for entry in (tmp_path / "data").iterdir()] == ["lock"]


async def test_a_second_start_is_quick_and_finds_everything_again(tmp_path: Path) -> None:
    with up(tmp_path) as first:
        first.wait_for("ready ")
        demo = first.demo
        assert (await cast(demo))[0] == 200
        family = first.family()
        assert first.stop() == 0
        assert all_gone(family)
        assert not (tmp_path / "demo.json").exists()
    began_s = time.monotonic()
    with up(tmp_path) as second:
        second.wait_for("ready ")
        took_s = time.monotonic() - began_s
        assert took_s < SECOND_START_S * slowness()
        again = second.demo
        assert (again["api_key"], again["account_id"]) == (demo["api_key"], demo["account_id"])
        assert await charged_microcents(again, at_least=1_000_000) == 1_000_000


async def test_who_has_paid_keeps_the_plan_over_a_restart_and_can_still_cancel(tmp_path: Path) -> None:
    with up(tmp_path) as first:
        first.wait_for("ready ")
        assert await plan(first.demo) == "free"
        await press_pay(await pay_address(first.demo))  # which waits for the webhook
        assert await plan(first.demo) == "pro"
        stripe_url = first.demo["stripe_url"]
        assert first.stop() == 0
    with up(tmp_path) as second:
        second.wait_for("ready ")
        demo = second.demo
        assert (await plan(demo), demo["stripe_url"]) == ("pro", stripe_url)
        async with aiohttp.ClientSession() as session:
            async with session.get(f"{stripe_url}/_stub/objects/subscription") as answer:
                (subscription,) = (await answer.json())["data"]
            async with session.post(f"{stripe_url}/_stub/subscriptions/{subscription['id']}/cancel") as answer:
                assert answer.status == 200
            async with session.post(f"{stripe_url}/_stub/delivery/wait") as answer:
                assert await answer.json() == {"idle": True}
        assert await plan(demo) == "free"


def test_an_ephemeral_one_keeps_nothing(tmp_path: Path) -> None:
    with up(tmp_path, "--ephemeral") as running:
        running.wait_for("ready ")
        assert running.stop(signal.SIGTERM) == 0
    kept = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    logs = {"upstream_stub.log", "stripe_stub.log"}
    assert kept == {"lock", "ephemeral/postgres/lock", "ephemeral/redis/lock", *logs}


async def test_two_run_side_by_side_in_two_folders(shared: Up, tmp_path: Path) -> None:
    with up(tmp_path) as other:
        other.wait_for("ready ")
        assert other.demo["account_id"] != shared.demo["account_id"]
        assert (await cast(other.demo))[0] == 200
        assert (await cast(shared.demo))[0] == 200


async def test_given_stores_and_an_upstream_are_used_and_not_started(
    database_url: str, redis_url: str, shared: Up, tmp_path: Path
) -> None:
    given = {"DATABASE_URL": database_url, "REDIS_URL": redis_url, "UPSTREAM_URL": shared.demo["upstream_url"]}
    with up(tmp_path, **given) as running:
        running.wait_for("ready ")
        demo = running.demo
        assert {name: demo[name.lower()] for name in given} == given
        names = " ".join(word for process in running.family() for word in process.cmdline())
        assert not [name for name in ("postgres -D", "redis-server", "upstream_stub") if name in names]
        connection = await asyncpg.connect(database_url)
        assert str(await connection.fetchval("SELECT id FROM users")) == demo["account_id"]
        await connection.close()


def test_a_variable_that_is_set_to_nothing_stays_so_and_the_warning_is_passed_on(tmp_path: Path) -> None:
    with up(tmp_path, "--ephemeral", STRIPE_SECRET_KEY="") as running:
        running.wait_for("ready ")
        assert running.demo["stripe_url"] is None
        assert "billing/checkout" not in "".join(running.out)
        assert running.wait_for("Stripe ").split(maxsplit=1)[1].startswith("none: STRIPE_SECRET_KEY is blank")
        assert running.stop() == 0
    warnings = [line for line in running.err if "billing is off" in line]
    assert len(warnings) == 1
    assert "STRIPE_SECRET_KEY" in warnings[0]


@pytest.mark.parametrize(
    ("moment", "number"),
    [
        ("castgate starts", signal.SIGINT),
        ("Postgres", signal.SIGTERM),
        ("Redis", signal.SIGINT),
        ("demo account", signal.SIGHUP),
        ("migrations", signal.SIGTERM),
        ("Phase 1 stub", signal.SIGINT),
        ("Stripe stub", signal.SIGTERM),
    ],
)
def test_a_signal_during_the_start_leaves_nothing_running(tmp_path: Path, moment: str, number: signal.Signals) -> None:
    with up(tmp_path, "--ephemeral") as running:
        running.wait_for(moment)
        family = running.family()
        assert running.stop(number) == 0
        assert running.out[-1] == "stopped, nothing is left running"
        assert all_gone(family)
    assert not [process for process in psutil.process_iter() if str(tmp_path) in _command_line(process)]


def test_nothing_outlives_it_even_if_it_is_killed(tmp_path: Path) -> None:
    with up(tmp_path) as running:
        running.wait_for("ready ")
        family = running.family()
        assert len(family) >= 6  # Postgres and its own, Redis, the stubs, the gateway and its worker
        running.stop(signal.SIGKILL)
        assert all_gone(family)


@pytest.mark.parametrize("name", ["Redis", "Phase 1 stub", "Stripe stub", "gateway"])
def test_a_part_that_dies_is_reported_and_ends_the_rest(tmp_path: Path, name: str) -> None:
    stubs = {"Phase 1 stub": "-m upstream_stub", "Stripe stub": "-m stripe_stub"}
    words = {"Redis": "redis-server", "gateway": "-m gateway serve", **stubs}
    with up(tmp_path, "--ephemeral") as running:
        running.wait_for("ready ")
        family = running.family()
        victim = next(process for process in family if words[name] in _command_line(process))
        victim.kill()
        assert running.wait() == 1
        assert f"castgate: {name} ended by itself: killed by SIGKILL" in running.err
        assert all_gone(family)


def test_a_database_that_is_not_there_is_one_clear_message(tmp_path: Path, free_port: int) -> None:
    with up(tmp_path, DATABASE_URL=f"postgresql://nobody@127.0.0.1:{free_port}/castgate") as running:
        assert running.wait() == 1
    assert len(running.err) == 1
    assert running.err[0].startswith("castgate: demo account: ")


def _command_line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
