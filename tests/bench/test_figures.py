"""What is made of the figures: ratios within a round, medians over rounds, verdicts, tables, doubts, a chart."""

import json
import re
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from bench import report
from bench.chart import chart
from bench.documents import DOCUMENTS, filled, names_in, update_text
from bench.figures import PROMISES, Figures, FiguresError
from bench.flat_cost import Part, blocks
from bench.scaling import BYTES_PER_EVENT, need_table
from bench.stages import stage_table
from bench.targets import REPOSITORY
from tests.bench.figures_made import made, one_round

FIGURES = REPOSITORY / "docs" / "figures" / "bench.json"


def throughput(**rows: list[float]) -> Figures:
    named = {row.replace("_", "-"): [one_round(value) for value in values] for row, values in rows.items()}
    return made({"throughput": named})


def verdict_of(figures: Figures, title: str) -> tuple[str, ...]:
    return next(line for line in report.verdict_table(figures) if line[0].startswith(title))


def test_a_ratio_is_made_within_each_round() -> None:
    figures = throughput(castgate=[3000, 8000, 500], aiohttp=[1000, 2000, 500])
    assert figures.ratio("throughput", "castgate", "aiohttp") == 3.0
    assert figures.ratio("throughput", "castgate", "nginx") is None


@pytest.mark.parametrize(("castgate", "word"), [(1100.0, "aim reached"), (800.0, "floor reached"), (700.0, "missed")])
def test_a_promise_is_kept_or_not(castgate: float, word: str) -> None:
    line = verdict_of(throughput(castgate=[castgate], nginx_lua=[1000.0]), "everything on ÷ nginx + Lua")
    assert line[3:] == (f"{castgate / 1000:.2f} ×", word)


def test_what_was_not_measured_is_not_judged() -> None:
    words = {line[4] for line in report.verdict_table(throughput(castgate=[1.0]))[1:]}
    assert words == {"not measured"}
    assert len(report.verdict_table(throughput(castgate=[1.0]))) == len(PROMISES) + 1


def test_latency_is_what_is_added_to_the_service_itself() -> None:
    rows = {"direct": 0.1, "nginx-lua": 0.5, "castgate": 0.6}
    figures = made({"one-connection": {row: [one_round(1, p50_ms=p50)] for row, p50 in rows.items()}})
    assert figures.added_latency_ratio("castgate", "nginx-lua") == pytest.approx(1.25)
    table = report.scenario_table(figures, "one-connection")
    assert [(line[0], line[1]) for line in table[1:]] == [
        ("upstream directly", "0"), ("nginx + Lua + Redis", "400"), ("Castgate, everything on", "500")
    ]  # fmt: skip


def test_memory_is_that_of_the_largest_process_under_a_thousand_connections() -> None:
    figures = made({"1000-connections": {"castgate": [one_round(1, largest_process_bytes=90 * 2**20)]}})
    assert verdict_of(figures, "memory of a worker")[3:] == ("90 MiB", "missed")


def test_clean_figures_raise_no_doubt() -> None:
    assert report.doubts(throughput(castgate=[1.0])) == []


def test_doubts_name_what_they_are_about() -> None:
    rounds = [one_round(1, other_cpu=0.3, rest_cores_busy=0.99, proxy_core_busy=0.9, errors=2)]
    limited, failed, disturbed = report.doubts(made({"throughput": {"castgate": rounds}}))
    assert limited.startswith("Castgate, everything on (throughput's title): limited by the other cores (99% busy)")
    assert failed.endswith("2 requests failed")
    assert disturbed.startswith("the machine was not quiet: in 1 of 1 measurements")


def test_waits_in_vain_for_a_quiet_machine_are_counted() -> None:
    rounds = [one_round(1, waited_in_vain=in_vain) for in_vain in (True, False, True)]
    (doubt,) = report.doubts(made({"throughput": {"castgate": rounds}}))
    assert doubt.startswith("the machine was not quiet: 2 of 3 times a row waited in vain")


def test_what_many_accounts_cost_the_generator_alone_is_told() -> None:
    figures = throughput(direct=[9000.0, 4000.0, 8000.0], direct_many=[9000.0, 2000.0, 7600.0])
    line = "the generator alone: upstream directly, 100,000 accounts ÷ upstream directly: 0.95 ×"
    assert line in report.notes(figures)


def test_one_core_is_a_doubt_of_its_own() -> None:
    figures = made({"throughput": {"castgate": [one_round(1)]}}, cores={"proxy": 0, "rest": [0]})
    assert report.doubts(figures)[0].startswith("only one core")


def test_tables_are_aligned_in_a_terminal_and_marked_in_a_document() -> None:
    table = [("", "requests/s"), ("bare aiohttp proxy", "2,000"), ("Castgate", "12,345")]
    heading, _, first, second = report.as_text(table).splitlines()
    assert len(heading) == len(first) == len(second)
    assert report.as_markdown(table).splitlines()[1:] == [
        "| --- | --- |", "| bare aiohttp proxy | 2,000 |", "| Castgate | 12,345 |"
    ]  # fmt: skip


def test_the_chart_shows_every_proxy_and_where_it_was_measured() -> None:
    figures = throughput(direct=[9000.0], direct_many=[8900.0], nginx=[4000.0], castgate=[2000.0])
    root = ET.fromstring(chart(figures))
    texts = ["".join(element.itertext()) for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert not any("upstream directly" in text for text in texts)
    assert any(text.startswith("2,000 ·") for text in texts)
    assert any("2026-11-28, 2 cores (CPU & co)" in text for text in texts)
    widths = [float(bar.attrib["width"]) for bar in root.iter("{http://www.w3.org/2000/svg}rect")]
    assert widths[0] == pytest.approx(2 * widths[1])


def test_a_document_keeps_all_but_what_is_between_its_marks() -> None:
    text = "before\n<!-- bench:origin -->\nold\n<!-- /bench:origin -->\nafter\n"
    after = update_text(text, throughput(castgate=[1.0]))
    assert after.startswith("before\n<!-- bench:origin -->\n2026-11-28, 2 cores")
    assert after.endswith("\n<!-- /bench:origin -->\nafter\n")
    assert "old" not in after
    assert update_text(after, throughput(castgate=[1.0])) == after


def test_a_mark_that_nobody_fills_is_an_error() -> None:
    with pytest.raises(ValueError, match="no table 'nothing'"):
        update_text("<!-- bench:nothing -->\n<!-- /bench:nothing -->", throughput(castgate=[1.0]))


@pytest.mark.parametrize("name", DOCUMENTS)
def test_documents_show_the_figures_that_are_kept_beside_them(name: str) -> None:
    text = (REPOSITORY / name).read_text()
    assert "<!-- bench:" in text
    assert update_text(text, Figures.read(FIGURES)) == text, (
        "./dev bench --from docs/figures/bench.json --chart docs/images/bench.svg --documents"
    )


def test_the_chart_in_the_readme_shows_the_same_figures() -> None:
    assert re.search(r"\(docs/images/bench\.svg\)|docs/images/bench\.svg", (REPOSITORY / "README.md").read_text())
    assert (REPOSITORY / "docs/images/bench.svg").read_text() == chart(Figures.read(FIGURES))


def test_other_figures_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "old.json"
    path.write_text(json.dumps({"rows": []}))
    with pytest.raises(FiguresError, match="expected figures of format"):
        Figures.read(path)


def test_what_a_load_takes_is_worked_out_from_the_cpu_of_a_cast() -> None:
    line = need_table(throughput(castgate=[1.0]))[1]
    # 30, 5 and 10 µs: a core carries 20,000, 120,000 and 60,000 casts a second at six tenths of its time.
    assert line[:5] == ("10,000", "1", "1", "1", "1")
    assert need_table(throughput(castgate=[1.0]))[3][:5] == ("1,000,000", "50", "9", "17", "1")


def test_what_grows_is_shown_with_its_ratio_to_the_smallest_size() -> None:
    part = Part(name="windows", title="windows", figures=("Redis",), rows=[(1, (10.0,)), (8, (25.0,))])
    assert part.table() == [("windows", "Redis"), ("1", "10.0"), ("8", "25.0 (× 2.50)")]


def test_what_stays_flat_is_shown_as_it_was_measured() -> None:
    text = (REPOSITORY / "docs/performance.md").read_text()
    figures = json.loads((REPOSITORY / "docs/figures/flat.json").read_text())
    tables = blocks(figures)
    assert set(tables) <= set(names_in(text))
    assert filled(text, tables) == text, "./dev python -m bench.flat_cost --from docs/figures/flat.json --documents"
    assert figures["bytes_per_ledger_row"] == pytest.approx(BYTES_PER_EVENT, rel=0.2)


def test_samples_are_told_apart_by_stage() -> None:
    upstream, library = f"{REPOSITORY}/gateway/relay/upstream.py", "/lib/site-packages/asyncpg/pool.py"
    folded = (
        f"{upstream}\tUpstreamConnection.data_received\t1;{upstream}\tUpstreamConnection.write\t2 3\n"
        f"{upstream}\tUpstreamConnection.data_received\t1 4\n"
        f"{REPOSITORY}/gateway/ledger.py\tLedger._write\t1;{library}\tPool.acquire\t2;/lib/abc.py\tcheck\t3 2\n"
        "/lib/uvloop.py\trun\t1 1\n"
    )
    table = stage_table(folded, user_us=15.0, system_us=5.0)
    assert table[1:] == [
        ("read and recognise the answer", "40%", "8.0"),
        ("write the request to the service (send)", "30%", "6.0"),
        ("ledger", "20%", "4.0"),
        ("the event loop and all else", "10%", "2.0"),
        ("all", "", "20.0"),
        ("of that in the kernel (sockets, polling)", "25%", "5.0"),
    ]
