"""``python -m bench`` as a person runs it: a table, figures in a file, nothing left behind."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bench.processes import is_running, process_tree

GENERATORS = ["python", *(["wrk"] if shutil.which("wrk") else [])]


def bench(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "bench", *words], capture_output=True, text=True, check=False, timeout=50
    )


@pytest.mark.parametrize("generator", GENERATORS)
def test_it_measures_and_writes_the_figures(tmp_path: Path, generator: str) -> None:
    file = tmp_path / "new" / "figures.json"
    ended = bench(
        *("--only", "direct", "--rounds", "1", "--seconds", "1", "--connections", "4"),
        *("--generator", generator, "--json", str(file)),
    )
    assert ended.returncode == 0, ended.stderr
    assert "upstream directly" in ended.stdout
    assert f"load by {generator}" in ended.stdout
    figures = json.loads(file.read_text())
    assert figures["load"] == {"connections": 4, "rounds": 1, "seconds": 1.0, "generator": generator}
    (row,) = figures["rows"]
    assert (row["name"], row["ratio"]) == ("direct", None)
    assert row["requests_per_s"] > 100
    assert 0 < row["p50_ms"] <= row["p99_ms"]
    assert row["rounds"][0]["errors"] == row["rounds"][0]["refused"] == 0


def test_casts_through_the_whole_gateway_are_audited(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    ended = bench(
        *("--only", "castgate-plain,castgate", "--rounds", "1", "--seconds", "1", "--connections", "8"),
        *("--generator", "python", "--json", str(file)),
    )
    assert ended.returncode == 0, ended.stderr
    assert "counters agree, nothing held" in ended.stdout
    figures = json.loads(file.read_text())
    assert [row["name"] for row in figures["rows"]] == ["castgate-plain", "castgate"]
    plain, everything = (row["behind_cpu_us_per_request"] for row in figures["rows"])
    assert plain["Postgres"] < everything["Postgres"]


def test_an_unknown_row_is_refused_with_the_known_ones() -> None:
    ended = bench("--only", "direct,haproxy2")
    assert ended.returncode == 2
    assert "no row 'haproxy2'; there are direct, aiohttp, castgate-plain, castgate" in ended.stderr


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
def test_stopped_it_leaves_no_process_and_no_folder(tmp_path: Path, by: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "bench", "--only", "direct", "--seconds", "30"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("round 1"):
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
