"""``./dev bench``: Castgate and its peers side by side; tables, figures as JSON, a chart, and the documents' tables."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

import click

from bench import report, scenarios
from bench.chart import chart
from bench.documents import update_documents
from bench.figures import Figures, FiguresError
from bench.generators import INSTALL_WRK
from bench.plain_gateway import allow_many_files
from bench.processes import BenchError, end_children
from bench.run import run
from bench.scenarios import DEFAULT, QUICK, Preset, narrowed
from bench.targets import CASTGATE, NGINX, REPOSITORY, ROWS, WORKER_ROWS, Row
from gateway import compiled

_ALL_ROWS = (*ROWS, *WORKER_ROWS)
_SCENARIOS = [scenario.name for scenario in DEFAULT.scenarios]


def _say(text: str) -> None:
    """Progress, on a line of its own that the next one replaces where somebody is watching."""
    if sys.stderr.isatty():
        click.echo(f"\r\x1b[K{text} …" if text else "\r\x1b[K", err=True, nl=False)
    elif text:
        click.echo(f"{text} …", err=True)


def _names(text: str, known: Sequence[str], option: str, what: str) -> frozenset[str]:
    names = frozenset(name.strip() for name in text.split(",") if name.strip())
    for name in sorted(names):
        if name not in known:
            raise click.BadParameter(f"no {what} {name!r}; there are {', '.join(known)}", param_hint=option)
    return names


def _left_out(rows: Sequence[Row]) -> dict[str, str]:
    """Rows whose needs are not met, and a line for each that says how to meet them."""
    skipped = {}
    for row in rows:
        missing = [need.install for need in row.target.needs if not need.met]
        if missing:
            skipped[row.name] = f"left out: {row.title} (to have it: {' && '.join(missing)})"
    return skipped


def _show(figures: Figures) -> None:
    for scenario in figures.scenarios:
        click.echo(report.as_text(report.scenario_table(figures, scenario["name"])) + "\n")
    if figures.scenario(scenarios.THROUGHPUT) is not None:
        click.echo(report.as_text(report.behind_table(figures)) + "\n")
    click.echo(report.as_text(report.verdict_table(figures)) + "\n")
    click.echo(report.origin(figures))
    click.echo(report.method(figures))
    for line in report.notes(figures):
        click.echo(line)


def _write(figures: Figures, chart_path: Path | None, *, documents: bool) -> None:
    if chart_path is not None:
        chart_path.parent.mkdir(parents=True, exist_ok=True)
        chart_path.write_text(chart(figures))
    if documents:
        for path in update_documents(figures, REPOSITORY):
            click.echo(f"written: {path.relative_to(REPOSITORY)}", err=True)


def _stop(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _compile() -> None:
    """Where the hot path can be compiled, it is what is measured; ``CASTGATE_COMPILED=0`` measures the sources."""
    if compiled.why_interpreted() and os.environ.get(compiled.SWITCH) != "0":
        _say("compiling the hot path, which takes a minute")
        done = subprocess.run(
            [sys.executable, "-m", "scripts.compile_hot_path"],
            cwd=REPOSITORY, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            _say("")
            click.echo(f"the hot path is interpreted: {done.stderr.strip()}", err=True)


def _measured(preset: Preset, generator: str, skipped: Sequence[str]) -> Figures:
    signal.signal(signal.SIGTERM, _stop)
    allow_many_files()
    try:
        return Figures(json=run(preset, generator, skipped, _say))
    except BenchError as error:
        _say("")
        raise click.ClickException(str(error)) from None
    except KeyboardInterrupt:
        _say("")
        end_children()
        click.echo("stopped; nothing is left running", err=True)
        sys.exit(130)


@click.command()
@click.option("--quick", is_flag=True, help="One short round of everything: whether it works, not how fast it is.")
@click.option("--rounds", type=click.IntRange(1, 100), help="Of each scenario, instead of the preset's.")
@click.option(
    "--seconds",
    type=click.FloatRange(0.1, 600),
    help="Of each row in a round, instead of the preset's; wrk takes whole ones.",
)
@click.option("--connections", type=click.IntRange(1, 10_000), help="Of the first scenario, instead of 64.")
@click.option("--only", default="", metavar="ROW,…", help=f"Some rows: {', '.join(row.name for row in _ALL_ROWS)}.")
@click.option("--scenarios", "some", default="", metavar="NAME,…", help=f"Some loads: {', '.join(_SCENARIOS)}.")
@click.option("--accounts", type=click.IntRange(1, 1_000_000), help="Of the row with many, instead of the preset's.")
@click.option(
    "--wait",
    "wait_s_max",
    type=click.FloatRange(0, 600),
    metavar="SECONDS",
    help="For a quiet machine, before each row, at most, instead of the preset's; 0: not at all.",
)
@click.option("--generator", default="auto", show_default=True, type=click.Choice(["auto", "wrk", "python"]))
@click.option("--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Write the figures here.")
@click.option("--chart", "chart_path", type=click.Path(dir_okay=False, path_type=Path), help="Write an SVG here.")
@click.option("--documents", is_flag=True, help="Write the tables of README.md and docs/ anew.")
@click.option(
    "--from", "from_path", type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Measure nothing: show the figures of this file (with --chart and --documents, write those).",
)  # fmt: skip
def main(
    quick: bool,
    rounds: int | None,
    seconds: float | None,
    connections: int | None,
    only: str,
    some: str,
    accounts: int | None,
    wait_s_max: float | None,
    generator: str,
    json_path: Path | None,
    chart_path: Path | None,
    documents: bool,
    from_path: Path | None,
) -> None:
    """Measure Castgate, its peers and the service itself: some twenty minutes, or two with --quick."""
    if from_path is not None:
        try:
            figures = Figures.read(from_path)
        except FiguresError as error:
            raise click.ClickException(str(error)) from None
    else:
        wanted = _names(only, [row.name for row in _ALL_ROWS], "--only", "row")
        skipped = _left_out([row for row in _ALL_ROWS if not wanted or row.name in wanted])
        preset = narrowed(
            QUICK if quick else DEFAULT,
            only=lambda row: (not wanted or row.name in wanted) and row.name not in skipped,
            scenarios=_names(some, _SCENARIOS, "--scenarios", "scenario"),
            rounds=rounds,
            seconds=seconds,
            connections=connections,
            accounts=accounts,
            wait_s_max=wait_s_max,
        )
        if not preset.scenarios:
            raise click.UsageError("nothing is left to measure: " + "; ".join(skipped.values() or ["see --help"]))
        if not quick and any(
            row.name.startswith(CASTGATE.name) for scenario in preset.scenarios for row in scenario.rows
        ):
            _compile()
        figures = _measured(preset, generator, list(skipped.values()))
        if json_path is not None:
            json_path.parent.mkdir(parents=True, exist_ok=True)
            json_path.write_text(json.dumps(figures.json, indent=1, ensure_ascii=False) + "\n")
    _show(figures)
    if from_path is None:
        if figures.json["generator"] != "wrk":
            click.echo(f"wrk makes the same load for less CPU: {INSTALL_WRK}")
        if not NGINX.met:
            click.echo(f"nginx is the faster upstream: {NGINX.install}")
    _write(figures, chart_path, documents=documents)


if __name__ == "__main__":
    main()
