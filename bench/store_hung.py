"""``python -m bench.store_hung``: how long casts take while Redis hangs, and while Postgres does, and while neither.

Each store is stopped (SIGSTOP) for a while and then goes on: alive, its connections open, and silent. The first second
is shown by itself: in it the gateway finds out. The load is light: what is measured is waiting and not work.

A busy machine has slow moments of its own. So it goes in rounds, each with its own usual p99 before and after, and the
figures are medians over the rounds.
"""

import contextlib
import json
import os
import signal
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from bench.generators import Sample, generator_named
from bench.processes import pinned, process_tree, split_cores
from bench.surroundings import started, surroundings
from bench.targets import CASTGATE, ROWS

ROW = next(row for row in ROWS if row.name == "castgate")
FIRST_S = 1.0
# After a store is back, until everything is as before.
BACK_S = 2.0
STORES = ("Redis", "Postgres")
# What must hold of p99 while a store hangs, after the first second: at most so many times the usual.
RATIO_MAX = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """Samples of one round, by what was going on. ``usual`` is measured between the two stores' turns, too."""

    usual: Sequence[Sample]
    first: dict[str, Sample]
    later: dict[str, Sample]

    @property
    def usual_p99_ms(self) -> float:
        """Of all the usual ones."""
        return statistics.fmean(sample.p99_ms for sample in self.usual)


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


def measure(rounds: int, seconds: float, connections: int) -> Sequence[Round]:
    """So many rounds, of one gateway."""
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

        def sample(for_s: float) -> Sample:
            return generator(url, request, connections, for_s)

        sample(FIRST_S)
        measured = []
        for _ in range(rounds):
            usual, first, later = [], {}, {}
            for store in STORES:
                usual.append(sample(seconds))
                with _hung(around.pids[store]):
                    first[store] = sample(FIRST_S)
                    later[store] = sample(seconds)
                time.sleep(BACK_S)
            measured.append(Round(usual=usual, first=first, later=later))
        child.check()
    return measured


def ratios(rounds: Sequence[Round]) -> dict[str, float]:
    """By store: p99 after the first second as a multiple of the same round's usual one; the median."""
    return {store: statistics.median(one.later[store].p99_ms / one.usual_p99_ms for one in rounds) for store in STORES}


def lines(rounds: Sequence[Round]) -> Iterator[str]:
    """The table."""
    yield f"{'':<34} {'p50':>7} {'p99':>8} {'p99.9':>8}   p99 ÷ usual"
    yield _line("all is well", [one.usual[0] for one in rounds], rounds)
    for store in STORES:
        yield _line(f"{store} hangs, the first second", [one.first[store] for one in rounds], rounds)
        yield _line(f"{store} hangs, later", [one.later[store] for one in rounds], rounds)


def _line(what: str, samples: Sequence[Sample], rounds: Sequence[Round]) -> str:
    p50, p99, p99_9 = (
        statistics.median(getattr(sample, name) for sample in samples) for name in ("p50_ms", "p99_ms", "p99_9_ms")
    )
    ratio = statistics.median(sample.p99_ms / one.usual_p99_ms for sample, one in zip(samples, rounds, strict=True))
    refused = sum(sample.refused for sample in samples)
    errors = sum(sample.errors for sample in samples)
    return f"{what:<34} {p50:>7.2f} {p99:>8.2f} {p99_9:>8.2f}   {ratio:>5.1f} ×   {refused} refused, {errors} errors"


@click.command()
@click.option("--rounds", default=7, show_default=True, type=click.IntRange(1))
@click.option("--seconds", default=2.0, show_default=True, help="For each figure.")
@click.option("--connections", default=4, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="The ratios alone.")
def main(rounds: int, seconds: float, connections: int, as_json: bool) -> None:
    """Print latencies of casts in ms, and p99 as a multiple of the usual one."""
    measured = measure(rounds, seconds, connections)
    if as_json:
        click.echo(json.dumps(ratios(measured)))
        return
    for line in lines(measured):
        click.echo(line)


if __name__ == "__main__":
    main()
