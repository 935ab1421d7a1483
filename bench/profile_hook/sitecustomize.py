"""Put on PYTHONPATH by ``bench.profile_hot_path``: makes worker processes profile themselves when told.

Python imports ``sitecustomize`` at its start (docs: module site), so the program under test needs no hook of its own.
SIGUSR2 starts the profiler in the worker, SIGUSR2 again ends it and writes what it found to a file of
CASTGATE_PROFILE_FOLDER. Two kinds (CASTGATE_PROFILE_KIND):

* ``sample`` takes the stack each time the process has used some CPU time (ITIMER_PROF). It costs next to nothing, so
  shares are true, with one bias: a signal waits until Python code runs again, so time in C counts to the Python line
  that called it, and time in the event loop itself (reading a socket) to the callback that it calls next.
* ``calls`` is cProfile: exact counts, and built-in functions by name; small functions look dearer than they are.
"""

import contextlib
import os
import signal
import sys
from pathlib import Path
from types import CodeType, FrameType

INTERVAL_S = 0.001  # the kernel rounds up to its own tick, mostly 4 ms
DEPTH_MAX = 60
WORKER_MODULE = "gateway.worker_main"


class _Samples:
    """Counts of stacks, each a chain of (code, line), the innermost first."""

    def __init__(self, target: Path) -> None:
        self._target = target
        self._counts: dict[tuple[tuple[CodeType, int], ...], int] = {}

    def start(self) -> None:
        signal.signal(signal.SIGPROF, self._take)
        signal.siginterrupt(signal.SIGPROF, False)
        signal.setitimer(signal.ITIMER_PROF, INTERVAL_S, INTERVAL_S)

    def _take(self, _number: int, frame: FrameType | None) -> None:
        stack: list[tuple[CodeType, int]] = []
        while frame is not None and len(stack) < DEPTH_MAX:
            stack.append((frame.f_code, frame.f_lineno))
            frame = frame.f_back
        key = tuple(stack)
        self._counts[key] = self._counts.get(key, 0) + 1

    def stop(self) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)
        lines = []
        for stack, count in self._counts.items():
            frames = [f"{code.co_filename}\t{code.co_qualname}\t{line}" for code, line in reversed(stack)]
            lines.append(";".join(frames) + f" {count}\n")
        self._target.write_text("".join(lines))


class _Calls:
    """cProfile, switched on in the thread that gets the signal: the event loop's."""

    def __init__(self, target: Path) -> None:
        import cProfile  # noqa: PLC0415  costs every other process nothing

        self._target = target
        self._profile = cProfile.Profile()

    def start(self) -> None:
        self._profile.enable()

    def stop(self) -> None:
        self._profile.disable()
        self._profile.dump_stats(self._target)


def _arm(folder: Path, kind: str) -> None:
    part = folder / f"{os.getpid()}.part"
    profiler = _Calls(part) if kind == "calls" else _Samples(part)
    state = {"running": False}

    def toggle(_number: int, _frame: FrameType | None) -> None:
        if state["running"]:
            profiler.stop()
            part.rename(part.with_suffix(".profile"))  # whole or not there
        else:
            profiler.start()
        state["running"] = not state["running"]

    signal.signal(signal.SIGUSR2, toggle)


_folder = os.environ.get("CASTGATE_PROFILE_FOLDER")
if _folder and WORKER_MODULE in sys.orig_argv:
    with contextlib.suppress(OSError):
        _arm(Path(_folder), os.environ.get("CASTGATE_PROFILE_KIND", "sample"))
