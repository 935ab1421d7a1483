"""How rows are measured: in turns, and with what a server's processes cost."""

import sys
from pathlib import Path

from bench.generators import Request, Sample
from bench.processes import Cores, running, split_cores
from bench.rounds import Measured, measure, run_rounds
from bench.surroundings import Surroundings
from bench.targets import ROWS, Row
from gateway.embedded import free_port

DIRECT, CASTGATE = ROWS[0], next(row for row in ROWS if row.name == "castgate")


def sample(requests: int = 1) -> Sample:
    return Sample(
        generator="python", requests=requests, refused=0, errors=0, abandoned_max=0, elapsed_s=1.0, p50_ms=1.5,
        p99_ms=2.5, p99_9_ms=3.5,
    )  # fmt: skip


def measured() -> Measured:
    return Measured(
        sample=sample(), cpu_us=1, behind_cpu_us={}, memory_bytes=1, largest_bytes=1, proxy_core_busy=1,
        rest_cores_busy=1, other_cpu=0,
    )  # fmt: skip


def test_rounds_are_interleaved() -> None:
    asked: list[str] = []

    def measure_row(row: Row) -> Measured:
        asked.append(row.name)
        return measured()

    found = run_rounds([DIRECT, CASTGATE], 2, lambda _: True, measure_row, lambda _: None, "title")
    assert asked == ["direct", "castgate", "direct", "castgate"]
    assert {name: len(rounds) for name, rounds in found.items()} == {"direct": 2, "castgate": 2}


def test_a_row_is_measured_after_the_wait_for_a_quiet_machine_also_where_that_was_in_vain() -> None:
    done: list[str] = []

    def wait(row: Row) -> bool:
        done.append(f"wait for {row.name}")
        return row is CASTGATE

    def measure_row(row: Row) -> Measured:
        done.append(row.name)
        return measured()

    found = run_rounds([DIRECT, CASTGATE], 1, wait, measure_row, lambda _: None, "title")
    assert done == ["wait for direct", "direct", "wait for castgate", "castgate"]
    assert {name: rounds[0].as_json()["waited_in_vain"] for name, rounds in found.items()} == {
        "direct": True, "castgate": False
    }  # fmt: skip


def test_a_server_is_measured_with_all_its_processes(tmp_path: Path) -> None:
    port = free_port()
    cores = split_cores()
    around = Surroundings(folder=tmp_path, cores=cores, upstream_url="")
    words = [sys.executable, "-m", "bench.fast_upstream", "--port", str(port)]

    def load(base_url: str, _: Request) -> Sample:
        assert base_url == f"http://127.0.0.1:{port}"
        return sample(100)

    with running("server", words, port=port, cores=cores.rest, folder=tmp_path, environment={}) as child:
        found = measure(Request(path="/"), child, around, load, 0.0)
    assert 10 * 2**20 < found.largest_bytes < 200 * 2**20
    assert found.memory_bytes > 0
    assert found.as_json()["requests_per_s"] == 100


def test_all_cores_are_those_of_the_server_and_the_rest() -> None:
    assert Cores(proxy=0, rest=(1, 2)).all == (0, 1, 2)
    assert Cores(proxy=0, rest=(0,)).all == (0,)
