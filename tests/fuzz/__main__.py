"""``./dev fuzz``: the nightly run, a million inputs unless told otherwise, over as many processes as there are cores.

Each input has a number, from which alone it is made: ``./dev fuzz --seed N --count 1`` shows a failure again.
"""

import multiprocessing
import os
import sys
import time

import click

from tests.fuzz.running import fuzz


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
