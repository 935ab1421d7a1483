"""``python -m bench.store_hung``: how long casts take while Redis hangs, and while Postgres does, and while neither.

Each store is stopped (SIGSTOP) for a while and then goes on: alive, its connections open, and silent. The first second
is shown by itself: in it the gateway finds out. The load is light: what is measured is waiting and not work.
"""

import contextlib
import os
import signal
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from bench.generators import Sample, generator_named
from bench.processes import pinned, process_tree, split_cores
from bench.surroundings import started, surroundings
from bench.targets import CASTGATE, ROWS

ROW = next(row for row in ROWS if row.name == "castgate")
FIRST_S = 1.0
# After a store is back, until everything is as before.
BACK_S = 3.0


@contextlib.contextmanager
def _hung(pid: int) -> Iterator[None]:
    members = process_tree(pid)
    for member in members:
        os.kill(member, signal.SIGSTOP)
    try:
        yield
    finally:
        for member in members:
            os.kill(member, signal.SIGCONT)


def _line(what: str, sample: Sample, normal: Sample) -> str:
    ratio = sample.p99_ms / normal.p99_ms
    return (
        f"{what:<34} {sample.p50_ms:>7.2f} {sample.p99_ms:>8.2f} {sample.p99_9_ms:>8.2f}   {ratio:>5.1f} ×"
        f"   {sample.refused} refused, {sample.errors} errors"
    )


def measure(seconds: float, connections: int) -> Sequence[str]:
    """The table's lines."""
    cores = split_cores()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="castgate-hung-")))
        stack.enter_context(pinned(cores.rest))
        generator = generator_named("python", folder=folder, cores=cores.rest)
        around = stack.enter_context(
            surroundings(folder, cores, stores=True, say=lambda text: click.echo(f"{text} …", err=True))
        )
        child = stack.enter_context(started(CASTGATE, around))
        request, url = ROW.request(around), f"http://127.0.0.1:{child.port}"
        generator(url, request, connections, FIRST_S)
        normal = generator(url, request, connections, seconds)
        lines = [_line("all is well", normal, normal)]
        for store in ("Redis", "Postgres"):
            with _hung(around.pids[store]):
                lines.append(
                    _line(f"{store} hangs, the first second", generator(url, request, connections, FIRST_S), normal)
                )
                lines.append(_line(f"{store} hangs, later", generator(url, request, connections, seconds), normal))
            time.sleep(BACK_S)
            lines.append(_line(f"{store} is back", generator(url, request, connections, seconds), normal))
        child.check()
    return lines


@click.command()
@click.option("--seconds", default=3.0, help="For each figure.")
@click.option("--connections", default=4)
def main(seconds: float, connections: int) -> None:
    """Print latencies of casts in ms, and p99 as a multiple of the usual one."""
    lines = measure(seconds, connections)
    click.echo(f"{'':<34} {'p50':>7} {'p99':>8} {'p99.9':>8}   p99 ÷ usual")
    for line in lines:
        click.echo(line)


if __name__ == "__main__":
    main()
