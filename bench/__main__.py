"""``./dev bench``: Castgate and its peers side by side, in one table."""

import contextlib
import json
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

import click

from bench import report
from bench.audit import Tally, audit
from bench.generators import INSTALL_WRK, generator_named
from bench.processes import BenchError, Child, pinned, split_cores
from bench.rounds import Measured, Plan, RowResult, measure, results, run_rounds
from bench.surroundings import Surroundings, call, started, surroundings
from bench.targets import BASELINE, NGINX, ROWS, Row

WARM_UP_S = 1.0


def _say(text: str) -> None:
    """Progress, on a line of its own that the next one replaces where somebody is watching."""
    if sys.stderr.isatty():
        click.echo(f"\r\x1b[K{text} …" if text else "\r\x1b[K", err=True, nl=False)
    elif text:
        click.echo(f"{text} …", err=True)


def _chosen(only: str) -> list[Row]:
    names = [name.strip() for name in only.split(",") if name.strip()]
    known = [row.name for row in ROWS]
    for name in names:
        if name not in known:
            raise click.BadParameter(f"no row {name!r}; there are {', '.join(known)}", param_hint="--only")
    return [row for row in ROWS if not names or row.name in names]


def _available(rows: Sequence[Row]) -> tuple[list[Row], list[str]]:
    """Rows whose needs are met, and a line for each that is left out."""
    kept, skipped = [], []
    for row in rows:
        missing = [need.install for need in row.target.needs if not need.met]
        if missing:
            skipped.append(f"left out: {row.title} (to have it: {' && '.join(missing)})")
        else:
            kept.append(row)
    return kept, skipped


def _check_answers(rows: Sequence[Row], children: dict[str, Child], around: Surroundings) -> None:
    """Every row must relay the upstream's answer before it is worth measuring."""
    for row in rows:
        request = row.request(around.api_key)
        status, text = call(
            children[row.target.name].port, around.api_key, request.method, request.path, json.loads(request.body)
        )
        if status != 200 or '"status":"done"' not in text:
            raise BenchError(f"{row.title} answered {status}: {text[:500]}")


def _bench(rows: Sequence[Row], plan: Plan, generator_name: str) -> tuple[list[RowResult], str]:
    """Start everything, measure, audit, stop everything; the rows' results and what the audit found."""
    cores = split_cores()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="castgate-bench-")))
        stack.enter_context(pinned(cores.rest))
        generator = generator_named(generator_name, folder=folder, cores=cores.rest)
        stores = any(row.target.stores for row in rows)
        around = stack.enter_context(surroundings(folder, cores, stores=stores, say=_say))
        children: dict[str, Child] = {}
        for row in rows:
            if row.target.name not in children:
                _say(f"starting {row.target.name}")
                children[row.target.name] = stack.enter_context(started(row.target, around))
        _check_answers(rows, children, around)
        tally = Tally(certain=sum(row.charged for row in rows))

        def measure_row(row: Row, seconds: float) -> Measured:
            child = children[row.target.name]
            measured = measure(row, child, around, generator, plan.connections, seconds)
            if row.charged:
                tally.add(measured.sample)
            return measured

        measured = run_rounds(rows, plan, measure_row, _say)
        found = ""
        for row in rows:
            if row.charged:
                _say("auditing the ledger")
                found = audit(around, children[row.target.name].port, row.request(around.api_key), tally)
        _say("stopping")
    _say("")
    return results(rows, measured, BASELINE), found


def _stop(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


@click.command()
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1, 100))
@click.option(
    "--seconds", default=4.0, show_default=True, type=click.FloatRange(1, 600), help="Of each row in a round."
)
@click.option("--connections", default=64, show_default=True, type=click.IntRange(1, 10_000))
@click.option("--only", default="", metavar="ROW,…", help=f"Some rows: {', '.join(row.name for row in ROWS)}.")
@click.option("--generator", default="auto", show_default=True, type=click.Choice(["auto", "wrk", "python"]))
@click.option("--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Write the figures here.")
def main(rounds: int, seconds: float, connections: int, only: str, generator: str, json_path: Path | None) -> None:
    """Measure Castgate, a bare proxy and the upstream itself, side by side."""
    signal.signal(signal.SIGTERM, _stop)
    rows, skipped = _available(_chosen(only))
    plan = Plan(rounds=rounds, seconds=seconds, warm_up_s=WARM_UP_S, connections=connections)
    try:
        found, audited = _bench(rows, plan, generator)
    except BenchError as error:
        _say("")
        raise click.ClickException(str(error)) from None
    except KeyboardInterrupt:
        _say("")
        click.echo("stopped; nothing is left running", err=True)
        sys.exit(130)
    cores = split_cores()
    described = report.as_json(found, plan, cores, skipped=skipped, audit=audited, upstream=report.upstream_name())
    used = found[0].rounds[0].sample.generator if found else "none"
    click.echo(report.table(found))
    click.echo(report.behind(found))
    click.echo(
        f"\nmedians of {rounds} interleaved rounds of {seconds:g} s, {connections} connections, load by {used}, "
        f"upstream {report.upstream_name()}; server on core {cores.proxy}, "
        f"all else on {', '.join(map(str, cores.rest))}"
    )
    hints = [] if used == "wrk" else [f"wrk makes the same load for less CPU: {INSTALL_WRK}"]
    if not NGINX.met:
        hints.append(f"nginx is the faster upstream: {NGINX.install}")
    for line in (*filter(None, [audited]), *report.doubts(found, cores), *skipped, *hints):
        click.echo(line)
    if json_path is not None:
        json_path.parent.mkdir(parents=True, exist_ok=True)
        json_path.write_text(json.dumps(described, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
