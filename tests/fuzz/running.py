"""Many inputs in one process, and the count of open files around them."""

import asyncio
import tempfile
from pathlib import Path

from tests.fuzz.world import FuzzError, World, run, running_world

_STEP = 1000  # inputs before the first look at the open files: the pool is warm by then


def fuzz(seed: int, count: int) -> str:
    """Runs inputs ``seed`` to ``seed + count - 1``; what went wrong, or nothing."""
    with tempfile.TemporaryDirectory(prefix="castgate-fuzz-") as folder, running_world(Path(folder)) as (world, loop):
        return _fuzz(world, loop, seed, count)


def _fuzz(world: World, loop: asyncio.AbstractEventLoop, seed: int, count: int) -> str:
    first = min(count, _STEP)
    try:
        loop.run_until_complete(run(world, seed, first))
        open_before = open_files()
        loop.run_until_complete(run(world, seed + first, count - first))
    except FuzzError as error:
        return str(error)
    # The pool may hold a few connections more or fewer; a leak of one in a thousand inputs would show.
    left = open_files() - open_before
    return f"{left} files are left open after {count} inputs" if left > 2 * world.pooled_max else ""


def open_files() -> int:
    """How many file descriptors this process has open (proc(5))."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())
