"""``python -m bench`` as a person runs it: tables, figures in a file, nothing left behind."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.processes import is_running, process_tree
from bench.targets import ROWS

GENERATORS = ["python", *(["wrk"] if shutil.which("wrk") else [])]


def bench(*words: str, environ: dict[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "bench", *words], capture_output=True, text=True, check=False, timeout=160,
        env={**os.environ, **(environ or {})},
    )  # fmt: skip


@contextlib.contextmanager
def busy_machine() -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("generator", GENERATORS)
def test_it_measures_and_writes_the_figures(tmp_path: Path, generator: str) -> None:
    file, chart = tmp_path / "new" / "figures.json", tmp_path / "new" / "chart.svg"
    ended = bench(
        *("--only", "direct", "--scenarios", "throughput", "--rounds", "1", "--seconds", "0.2", "--connections", "4"),
        *("--generator", generator, "--wait", "0", "--json", str(file), "--chart", str(chart)),
    )
    assert ended.returncode == 0, ended.stderr
    assert "upstream directly" in ended.stdout
    assert f"load by {generator}" in ended.stdout
    figures = json.loads(file.read_text())
    (scenario,) = figures["scenarios"]
    assert [scenario[name] for name in ("name", "connections", "rounds", "seconds")] == ["throughput", 4, 1, 0.2]
    (found,) = scenario["rows"]["direct"]
    assert found["requests_per_s"] > 100
    assert 0 < found["p50_ms"] <= found["p99_ms"]
    assert found["errors"] == found["refused"] == 0
    assert chart.read_text().startswith("<svg ")
    again = bench("--from", str(file))
    assert again.stdout.startswith(ended.stdout.partition("\nwrk makes")[0].rstrip())


@pytest.mark.timeout(180)  # a dozen servers, one after the other, on a machine that may be busy
def test_every_peer_that_is_here_and_castgate_carry_calls_and_streams(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    rows = ["nginx", "nginx-lua", "haproxy", "envoy", "castgate", "castgate-many", "nginx-lua-many"]
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    ended = bench(
        *("--quick", "--only", ",".join(rows), "--scenarios", "throughput,event-streams", "--generator", "python"),
        *("--seconds", "0.2", "--accounts", "200", "--json", str(file)),
        environ={"TMPDIR": str(temporary)},
    )
    assert ended.returncode == 0, ended.stderr
    assert list(temporary.iterdir()) == []
    assert "counters agree, nothing held" in ended.stdout
    assert "audit of many accounts" in ended.stdout
    figures = json.loads(file.read_text())
    calls, streams = (scenario["rows"] for scenario in figures["scenarios"])
    assert list(calls) == [row for row in rows if _title(row) not in "".join(figures["skipped"])]
    assert list(streams) == [row for row in calls if not row.endswith("-many")]
    for row, (found,) in [*calls.items(), *streams.items()]:
        assert found["requests"] > 0, row
        assert found["errors"] == found["refused"] == 0, (row, found)
    # Rows with many accounts have their own stores, as far as they need some.
    stores = {row: set(found["behind_cpu_us_per_request"]) - {"upstream"} for row, (found,) in calls.items()}
    of_many = {"castgate-many": {"Postgres", "Redis"}, "nginx-lua-many": {"Redis"}}
    assert stores == {row: of_many.get(row, {"Postgres", "Redis"}) for row in calls}
    assert ended.stderr.count("starting Postgres") == 2
    assert ended.stderr.count("starting Redis") == (3 if "nginx-lua-many" in calls else 2)


def test_it_says_that_the_machine_was_not_quiet(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    with busy_machine():
        ended = bench(
            *("--only", "direct-many", "--accounts", "3", "--scenarios", "throughput", "--rounds", "1"),
            *("--seconds", "0.2", "--generator", "python", "--wait", "0.2", "--json", str(file)),
        )
    assert ended.returncode == 0, ended.stderr
    assert "the machine was not quiet: 1 of 1 times a row waited in vain" in ended.stdout
    (scenario,) = json.loads(file.read_text())["scenarios"]
    assert [found["waited_in_vain"] for found in scenario["rows"]["direct-many"]] == [True]


def _title(name: str) -> str:
    return next(row.title for row in ROWS if row.name == name)


def test_a_peer_that_is_missing_is_left_out_and_said_how_to_have(tmp_path: Path) -> None:
    ended = bench("--only", "nginx", environ={"PATH": str(tmp_path), "CASTGATE_BENCH_SYSTEM_FOLDERS": str(tmp_path)})
    assert ended.returncode == 2
    assert "left out: nginx, bare (to have it: apt-get install nginx-light)" in ended.stderr


def test_an_unknown_row_is_refused_with_the_known_ones() -> None:
    ended = bench("--only", "direct,haproxy2")
    assert ended.returncode == 2
    assert "no row 'haproxy2'; there are direct, nginx, nginx-lua, haproxy, envoy, aiohttp" in ended.stderr


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
def test_stopped_it_leaves_no_process_and_no_folder(tmp_path: Path, by: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "bench", "--only", "direct", "--seconds", "30", "--wait", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if "round 1" in line:
                break
        children = process_tree(process.pid)[1:]
        assert children
        process.send_signal(by)
        _, said = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 130, said
    assert "nothing is left running" in said
    assert list(tmp_path.iterdir()) == []
    assert not [child for child in children if is_running(child)]
