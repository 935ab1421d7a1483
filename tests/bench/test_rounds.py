"""What is made of the figures: ratios within a round, medians over rounds, a table, and doubts."""

from dataclasses import replace

from bench.generators import Sample
from bench.processes import Cores
from bench.report import behind, doubts, table
from bench.rounds import Measured, Plan, RowResult, results, run_rounds
from bench.targets import ROWS, Row

DIRECT, AIOHTTP, _, CASTGATE = ROWS
CORES = Cores(proxy=0, rest=(1,))


def sample(requests: int, *, errors: int = 0) -> Sample:
    return Sample(
        generator="python",
        requests=requests,
        refused=0,
        errors=errors,
        abandoned_max=0,
        elapsed_s=1.0,
        p50_ms=1.5,
        p99_ms=2.5,
        p99_9_ms=3.5,
    )


def measured(requests: int, *, other_cpu: float = 0.0, rest_busy: float = 0.5, errors: int = 0) -> Measured:
    return Measured(
        sample=sample(requests, errors=errors),
        cpu_us=100.0,
        behind_cpu_us={"Redis": 8.4, "upstream": 0.2},
        memory_bytes=20 * 1024 * 1024,
        proxy_core_busy=0.9,
        rest_cores_busy=rest_busy,
        other_cpu=other_cpu,
    )


def test_rounds_are_interleaved_after_a_warm_up_of_every_row() -> None:
    asked: list[tuple[str, float]] = []

    def measure_row(row: Row, seconds: float) -> Measured:
        asked.append((row.name, seconds))
        return measured(1)

    plan = Plan(rounds=2, seconds=3, warm_up_s=1, connections=1)
    found = run_rounds([AIOHTTP, CASTGATE], plan, measure_row, lambda _text: None)
    assert asked == [(name, seconds) for seconds in (1, 3, 3) for name in ("aiohttp", "castgate")]
    assert {name: len(rounds) for name, rounds in found.items()} == {"aiohttp": 2, "castgate": 2}


def test_a_ratio_is_made_within_each_round() -> None:
    rounds = {
        "aiohttp": [measured(1000), measured(2000), measured(500)],
        "castgate": [measured(3000), measured(8000), measured(500)],
    }
    base, castgate = results([AIOHTTP, CASTGATE], rounds, "aiohttp")
    assert list(castgate.ratios) == [3.0, 4.0, 1.0]
    assert castgate.ratio == 3.0
    assert base.ratio == 1.0


def test_without_the_baseline_there_is_no_ratio() -> None:
    (result,) = results([CASTGATE], {"castgate": [measured(10)]}, "aiohttp")
    assert result.ratio is None
    assert "–" in table([result])


def test_the_table_is_aligned_and_names_the_baseline() -> None:
    found = results([AIOHTTP, CASTGATE], {"aiohttp": [measured(2000)], "castgate": [measured(12345)]}, "aiohttp")
    heading, _, first, second = table(found).splitlines()
    assert heading.index("requests/s") + len("requests/s") == second.index("12,345") + len("12,345")
    assert first.startswith("bare aiohttp proxy ")
    assert "× bare aiohttp proxy" in heading
    assert "6.17" in second


def test_what_a_row_costs_elsewhere_is_told_by_process() -> None:
    (result,) = results([CASTGATE], {"castgate": [measured(10)]}, "aiohttp")
    assert behind([result]).splitlines()[-1] == f"  {CASTGATE.title}: Redis 8"


def doubts_of(one: Measured, cores: Cores = CORES) -> list[str]:
    return doubts([RowResult(row=CASTGATE, rounds=[one])], cores)


def test_clean_figures_raise_no_doubt() -> None:
    assert doubts_of(measured(10)) == []


def test_each_doubt_names_its_row() -> None:
    assert doubts_of(measured(10, other_cpu=0.3)) == [f"{CASTGATE.title}: other programs took 30% of its core"]
    assert doubts_of(measured(10, rest_busy=0.99)) == [
        f"{CASTGATE.title}: limited by the other cores (99% busy), not by itself (90%)"
    ]
    assert doubts_of(measured(10, errors=2)) == [f"{CASTGATE.title}: 2 requests failed"]


def test_one_core_is_a_doubt_of_its_own() -> None:
    (doubt,) = doubts_of(measured(10), replace(CORES, rest=(0,)))
    assert doubt.startswith("only one core")
