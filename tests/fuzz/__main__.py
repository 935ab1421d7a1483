"""``./dev fuzz``: the nightly run, a million inputs unless told otherwise, over as many processes as there are cores.

Each input has a number, from which alone it is made: ``./dev fuzz --seed N --count 1`` shows a failure again.
"""

import asyncio
import multiprocessing
import os
import sys
import tempfile
import time
from pathlib import Path

import click

from tests.fuzz.world import FuzzError, World, run, running_world

_STEP = 1000  # inputs between two looks at the open files


def fuzz(seed: int, count: int) -> str:
    """Runs inputs ``seed`` to ``seed + count - 1``; what went wrong, or nothing."""
    with tempfile.TemporaryDirectory(prefix="castgate-fuzz-") as folder, running_world(Path(folder)) as (world, loop):
        return _fuzz(world, loop, seed, count)


def _fuzz(world: World, loop: asyncio.AbstractEventLoop, seed: int, count: int) -> str:
    first = min(count, _STEP)
    try:
        loop.run_until_complete(run(world, seed, first))
        open_before = open_files()
        for start in range(seed + first, seed + count, _STEP):
            loop.run_until_complete(run(world, start, min(_STEP, seed + count - start)))
    except FuzzError as error:
        return str(error)
    # The pool may hold a few connections more or fewer; a leak of one in a thousand inputs would show.
    left = open_files() - open_before
    return f"{left} files are left open after {count} inputs" if left > 2 * world.pooled_max else ""


def open_files() -> int:
    """How many file descriptors this process has open (proc(5))."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@click.command()
@click.option("--count", default=1_000_000, show_default=True, type=click.IntRange(1))
@click.option("--seed", default=None, type=click.IntRange(0), help="The first input's number; otherwise by the clock.")
@click.option("--processes", default=len(os.sched_getaffinity(0)), show_default=True, type=click.IntRange(1, 64))
def main(count: int, seed: int | None, processes: int) -> None:
    """Send mutated requests and answers through the relay."""
    first = seed if seed is not None else int(time.time()) * 1_000_000
    share = -(-count // processes)
    parts = [(first + start, min(share, count - start)) for start in range(0, count, share)]
    started_s = time.monotonic()
    with multiprocessing.get_context("spawn").Pool(len(parts)) as pool:
        failures = [failure for failure in pool.starmap(fuzz, parts) if failure]
    for failure in failures:
        click.echo(failure, err=True)
    click.echo(
        f"inputs {first} to {first + count - 1} in {time.monotonic() - started_s:.0f} s: {len(failures)} failures"
    )
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
