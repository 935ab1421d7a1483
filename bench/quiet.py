"""No row is measured until the machine is quiet: what an earlier one left to be done is not this one's cost.

After a load has ended Redis removes what expires, Postgres vacuums and writes checkpoints, a gateway writes its ledger.
"""

import time
from collections.abc import Callable

from bench.processes import Cores, busy_s, cpu_s

SHARE_MAX = 0.05  # of one core; all that a bench starts takes 1 to 2% while nobody calls it
WINDOW_S = 0.5  # the kernel counts in ticks of 10 ms: a shorter one would not tell a twentieth
WAIT_S_MAX = 30.0
SAY_EVERY_S = 5.0


def used_by_others_s(cores: Cores, pid: int) -> float:
    """The CPU time that all but the process ``pid`` and those below it have had on these cores."""
    return busy_s(cores.all) - cpu_s(pid)


class Quiet:
    """Waits for it, each time for ``wait_s_max`` at most; with 0 not at all.

    After each time in vain it waits half as long, until it finds quiet again: on a machine with other work that does
    not end, a run of two hundred measurements takes a few minutes longer by this, and not two hours.
    """

    def __init__(
        self,
        wait_s_max: float = WAIT_S_MAX,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._wait_s_max = self._wait_s = wait_s_max
        self._clock = clock
        self._sleep = sleep

    def wait(self, used_s: Callable[[], float], say: Callable[[float], None]) -> bool:
        """False where that was in vain.

        ``used_s``: the CPU time that all but the server to be measured have had; ``say``: told now and then, while it
        waits, which share of a core they use.
        """
        if not self._wait_s_max:
            return True
        began, before = self._clock(), used_s()
        say_at, deadline = began, began + self._wait_s
        while True:
            self._sleep(WINDOW_S)
            now, used = self._clock(), used_s()
            share = (used - before) / (now - began)
            if share < SHARE_MAX:
                self._wait_s = self._wait_s_max
                return True
            if now >= deadline:
                self._wait_s = max(WINDOW_S, self._wait_s / 2)
                return False
            if now >= say_at:
                say(share)
                say_at = now + SAY_EVERY_S
            began, before = now, used
