"""Metrics of several processes as one scrape sees them."""

import ast
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from gateway import metrics_file
from gateway.metrics import LABEL_CHARS_MAX, Metrics
from gateway.metrics_families import FAMILIES, LATENCY_BOUNDS_S
from gateway.metrics_scrape import CONTENT_TYPE, exposition, gauge_values, render

ROOT = Path(__file__).parents[2]
MISSION_NAMES = {
    "spell_cast_total": "counter",
    "rate_limited_total": "counter",
    "budget_block_total": "counter",
    "stripe_webhook_total": "counter",
    "spell_cast_duration_seconds": "histogram",
    "db_pool_in_use": "gauge",
    "redis_errors_total": "gauge",
}


def samples(folder: Path) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in parse_text(render(folder).decode())
        for sample in family.samples
    }


def sample(folder: Path, name: str, **labels: str) -> float:
    return samples(folder)[name, frozenset(labels.items())]


def kill_9(script: str, folder: Path) -> None:
    """Runs ``script`` until it prints a line, then kills it with no chance to clean up."""
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, start_new_session=True
    )
    assert process.stdout is not None
    with process.stdout:
        process.stdout.readline()
        process.kill()
        assert process.wait() == -signal.SIGKILL


def test_a_scrape_is_the_sum_over_all_processes(tmp_path: Path) -> None:
    first, second = Metrics(tmp_path, "worker-0"), Metrics(tmp_path, "worker-1")
    first.counter("spell_cast_total", policy="cast", status="200").add(3)
    second.counter("spell_cast_total", policy="cast", status="200").add(4)
    second.counter("spell_cast_total", policy="cast", status="500").add()
    first.gauge("db_pool_in_use").set(2)
    second.gauge("db_pool_in_use").set(5)
    assert sample(tmp_path, "spell_cast_total", policy="cast", status="200") == 7
    assert sample(tmp_path, "spell_cast_total", policy="cast", status="500") == 1
    assert sample(tmp_path, "db_pool_in_use") == 7
    first.close()
    second.close()


def test_a_large_counter_is_shown_to_the_last_unit(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path, "worker-0")
    metrics.counter("redis_errors_total").add(123_456_789_012)
    assert sample(tmp_path, "redis_errors_total") == 123_456_789_012
    metrics.close()


def test_a_histogram_counts_each_value_under_every_bound_it_does_not_exceed(tmp_path: Path) -> None:
    first, second = Metrics(tmp_path, "worker-0"), Metrics(tmp_path, "worker-1")
    for metrics, value in ((first, 0.0005), (second, 0.0006), (second, 29.0), (first, 31.0)):
        metrics.histogram("spell_cast_duration_seconds", policy="cast").observe(value)
    name = "spell_cast_duration_seconds"
    found = [sample(tmp_path, f"{name}_bucket", policy="cast", le=str(bound)) for bound in LATENCY_BOUNDS_S]
    assert found == [1, *[2] * 13, 3]
    assert sample(tmp_path, f"{name}_bucket", policy="cast", le="+Inf") == 4
    assert sample(tmp_path, f"{name}_count", policy="cast") == 4
    assert math.isclose(sample(tmp_path, f"{name}_sum", policy="cast"), 60.0011)
    first.close()
    second.close()


def test_a_killed_process_takes_nothing_back_and_its_successor_counts_on_in_the_same_file(tmp_path: Path) -> None:
    script = (
        "import sys, pathlib, signal\n"
        "from gateway.metrics import Metrics\n"
        "m = Metrics(pathlib.Path(sys.argv[1]), 'worker-0')\n"
        "m.counter('spell_cast_total', policy='cast', status='200').add(10)\n"
        "m.gauge('castgate_connections_open').set(7)\n"
        "m.counter('redis_errors_total').add(2)\n"
        "m.config_version('old')\n"
        "print(flush=True); signal.pause()"
    )
    for times in (1, 2, 3):
        kill_9(script, tmp_path)
        assert sample(tmp_path, "spell_cast_total", policy="cast", status="200") == 10 * times
        assert sample(tmp_path, "redis_errors_total") == 2 * times
    assert sample(tmp_path, "castgate_connections_open") == 0
    assert ("castgate_config_info", frozenset({("version", "old")})) not in samples(tmp_path)
    assert len(list(tmp_path.iterdir())) == 1


def test_a_process_killed_in_the_middle_of_new_series_leaves_a_file_that_can_be_read_and_used(tmp_path: Path) -> None:
    script = (
        "import sys, pathlib\n"
        "from gateway.metrics import Metrics\n"
        "m = Metrics(pathlib.Path(sys.argv[1]), 'worker-0')\n"
        "print(flush=True)\n"
        "for n in range(1900):\n"
        "    m.counter('spell_cast_total', policy=f'p{n}', status='200').add()"
        "\nwhile True: pass"
    )
    for _ in range(5):
        kill_9(script, tmp_path)
        values = {value for (name, _), value in samples(tmp_path).items() if name == "spell_cast_total"}
        assert values <= {0, 1, 2, 3, 4, 5}
    metrics = Metrics(tmp_path, "worker-0")
    metrics.counter("rate_limited_total", policy="after", limit="after").add(3)
    assert sample(tmp_path, "rate_limited_total", policy="after", limit="after") == 3
    metrics.close()


@pytest.mark.parametrize(
    "torn_bytes", [b"\xff" * 200, b"\x20\x00\x00\x00garbage", b"\x00\x00\x00\x00\xff\xff\xff\xff{"]
)
def test_a_torn_last_entry_is_ignored_and_overwritten(tmp_path: Path, torn_bytes: bytes) -> None:
    metrics = Metrics(tmp_path, "worker-0")
    metrics.counter("spell_cast_total", policy="whole", status="200").add(5)
    end = metrics._file._end
    metrics.close()
    [path] = tmp_path.iterdir()
    with path.open("r+b") as file:
        file.seek(end)
        file.write(torn_bytes)
    assert sample(tmp_path, "spell_cast_total", policy="whole", status="200") == 5

    successor = Metrics(tmp_path, "worker-0")
    for policy in ("b", "c"):
        successor.counter("spell_cast_total", policy=policy, status="200").add(2)
    successor.close()
    assert sample(tmp_path, "spell_cast_total", policy="whole", status="200") == 5
    assert sample(tmp_path, "spell_cast_total", policy="b", status="200") == 2
    assert sample(tmp_path, "spell_cast_total", policy="c", status="200") == 2


def test_two_living_processes_of_one_name_never_share_a_file(tmp_path: Path) -> None:
    old, new = Metrics(tmp_path, "worker-0"), Metrics(tmp_path, "worker-0")
    old.counter("redis_errors_total").add(1)
    new.counter("redis_errors_total").add(10)
    assert sample(tmp_path, "redis_errors_total") == 11
    old.close()
    third = Metrics(tmp_path, "worker-0")
    assert len(list(tmp_path.iterdir())) == 2
    assert third.counter("redis_errors_total").value == 1
    new.close()
    third.close()


def test_a_gauge_merged_by_minimum_is_absent_until_it_is_set(tmp_path: Path) -> None:
    first, second = Metrics(tmp_path, "worker-0"), Metrics(tmp_path, "worker-1")
    one, other = (metrics.gauge("castgate_store_up", store="redis") for metrics in (first, second))
    assert gauge_values(tmp_path, "castgate_store_up") == {}
    one.set(1)
    assert gauge_values(tmp_path, "castgate_store_up") == {("redis",): 1.0}
    other.set(0)
    assert gauge_values(tmp_path, "castgate_store_up") == {("redis",): 0.0}
    second.close()
    assert gauge_values(tmp_path, "castgate_store_up") == {("redis",): 1.0}
    first.close()


def test_the_configuration_of_each_process_is_counted_by_version(tmp_path: Path) -> None:
    workers = [Metrics(tmp_path, f"worker-{index}") for index in range(3)]
    for worker in workers:
        worker.config_version("aaaa")
    workers[0].config_version("bb")
    assert sample(tmp_path, "castgate_config_info", version="aaaa") == 2
    assert sample(tmp_path, "castgate_config_info", version="bb") == 1
    for worker in workers:
        worker.close()


def test_the_missions_names_are_there_from_the_first_scrape_with_their_types(tmp_path: Path) -> None:
    text = render(tmp_path).decode()
    for name, kind in MISSION_NAMES.items():
        assert f"# TYPE {name} {kind}\n" in text
    assert "\ndb_pool_in_use 0.0\n" in text
    assert "\nredis_errors_total 0.0\n" in text


def test_a_metric_that_is_not_declared_cannot_be_made() -> None:
    metrics = Metrics()
    with pytest.raises(LookupError, match="made_up_total is not declared as a counter"):
        metrics.counter("made_up_total")
    with pytest.raises(LookupError, match="db_pool_in_use is not declared as a counter"):
        metrics.counter("db_pool_in_use")
    with pytest.raises(LookupError, match=r"has the labels \['policy', 'status'\], not \['policy'\]"):
        metrics.counter("spell_cast_total", policy="cast")
    metrics.close()


def test_series_past_the_bound_are_dropped_and_counted(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path, "worker-0")
    for number in range(metrics_file.SERIES_MAX + 10):
        metrics.counter("spell_cast_total", policy=f"p{number}", status="200").add()
    assert sample(tmp_path, "castgate_metrics_series_dropped_total") == 12  # and the two series of every file
    assert sum(value for (name, _), value in samples(tmp_path).items() if name == "spell_cast_total") == 2046
    metrics.close()


def test_histograms_past_the_bound_of_slots_are_dropped_as_well(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path, "worker-0")
    for number in range(1000):
        metrics.histogram("spell_cast_duration_seconds", policy=f"p{number}").observe(1)
    assert sample(tmp_path, "castgate_metrics_series_dropped_total") > 0
    assert sample(tmp_path, "spell_cast_duration_seconds_count", policy="p0") == 1
    metrics.close()


def test_a_label_that_is_too_long_is_cut(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path, "worker-0")
    metrics.counter("rate_limited_total", policy="x" * 5000, limit='"\\\n').add()
    assert sample(tmp_path, "rate_limited_total", policy="x" * LABEL_CHARS_MAX, limit='"\\\n') == 1
    metrics.close()


def test_a_scraper_that_asks_for_openmetrics_gets_it(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path, "worker-0")
    metrics.counter("spell_cast_total", policy="cast", status="200").add(2)
    made = exposition(tmp_path, "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5")
    assert made.content_type.startswith("application/openmetrics-text; version=1.0.0; charset=utf-8")
    families = {family.name: family for family in parse_openmetrics(made.body.decode())}
    assert families["spell_cast"].samples[0].value == 2
    assert exposition(tmp_path, "*/*").content_type == CONTENT_TYPE == "text/plain; version=0.0.4; charset=utf-8"
    metrics.close()


def test_files_that_are_not_ours_or_not_finished_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "half.0.v1.metrics").write_bytes(b"castgate")
    (tmp_path / "other.0.v1.metrics").write_bytes(bytes(4 * 1024 * 1024))
    (tmp_path / "notes.txt").write_text("nothing")
    assert sample(tmp_path, "redis_errors_total") == 0


def test_a_folder_is_abandoned_when_no_process_of_it_lives(tmp_path: Path) -> None:
    assert not metrics_file.is_abandoned(tmp_path)
    metrics = Metrics(tmp_path, "supervisor")
    assert not metrics_file.is_abandoned(tmp_path)
    metrics.close()
    assert metrics_file.is_abandoned(tmp_path)


def test_only_the_owner_may_read_a_file(tmp_path: Path) -> None:
    Metrics(tmp_path, "worker-0").close()
    [path] = tmp_path.iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.stat().st_uid == os.geteuid()


def test_every_metric_that_the_program_counts_is_declared() -> None:
    for path in (ROOT / "gateway").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args):
                continue
            name = node.args[0]
            is_text = isinstance(name, ast.Constant) and isinstance(name.value, str)
            if node.func.attr in ("counter", "gauge", "histogram") and is_text:
                family = FAMILIES.get(name.value)
                assert family is not None, f"{path.name}:{node.lineno}: {name.value} is not declared"
                labels = {keyword.arg for keyword in node.keywords}
                assert None in labels or labels == set(family.labels), f"{path.name}:{node.lineno}: {name.value}"
