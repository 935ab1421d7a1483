"""How long a measurement waits for a quiet machine, and who counts as noise."""

import subprocess
import sys
from collections.abc import Iterator

from bench.processes import busy_s, split_cores
from bench.quiet import SAY_EVERY_S, WINDOW_S, Quiet, used_by_others_s

BURN = """
import sys, time
sys.stdin.readline()
end = time.process_time() + 0.15
while time.process_time() < end: pass
print("burnt", flush=True)
sys.stdin.read()
"""


class Machine:
    """A clock, and programs that use these shares of a core, each for a window; the last one stays."""

    def __init__(self, *shares: float) -> None:
        self.now = self.used = 0.0
        self._shares = self._of(shares)

    @staticmethod
    def _of(shares: tuple[float, ...]) -> Iterator[float]:
        yield from shares
        while True:
            yield shares[-1]

    def sleep(self, for_s: float) -> None:
        self.now += for_s
        self.used += for_s * next(self._shares)

    def use(self, *shares: float) -> None:
        self._shares = self._of(shares)

    def quiet(self, wait_s_max: float) -> Quiet:
        return Quiet(wait_s_max, clock=lambda: self.now, sleep=self.sleep)

    def waits(self, quiet: Quiet) -> tuple[bool, float, list[float]]:
        said: list[float] = []
        began = self.now
        found = quiet.wait(lambda: self.used, said.append)
        return found, self.now - began, [round(share, 2) for share in said]


def test_a_quiet_machine_is_looked_at_once() -> None:
    machine = Machine(0.04)
    assert machine.waits(machine.quiet(30.0)) == (True, WINDOW_S, [])


def test_it_waits_until_what_others_left_is_done_and_says_so() -> None:
    machine = Machine(*[0.9] * 4, 0.06, *[0.3] * 7, 0.01)
    found, waited_s, said = machine.waits(machine.quiet(30.0))
    assert (found, waited_s) == (True, 13 * WINDOW_S)
    assert said == [0.9, 0.3]
    assert waited_s > SAY_EVERY_S


def test_it_waits_no_longer_than_it_may() -> None:
    machine = Machine(1.5)
    found, waited_s, said = machine.waits(machine.quiet(30.0))
    assert (found, waited_s) == (False, 30.0)
    assert len(said) == 6


def test_after_a_wait_in_vain_the_next_is_half_as_long_until_it_was_quiet() -> None:
    machine = Machine(1.0)
    quiet = machine.quiet(8.0)
    assert [machine.waits(quiet)[:2] for _ in range(6)] == [
        (False, 8.0), (False, 4.0), (False, 2.0), (False, 1.0), (False, WINDOW_S), (False, WINDOW_S)
    ]  # fmt: skip
    machine.use(0.0)
    assert machine.waits(quiet)[0]
    machine.use(1.0)
    assert machine.waits(quiet)[:2] == (False, 8.0)


def test_who_may_not_wait_does_not_look() -> None:
    def used_s() -> float:
        raise AssertionError

    assert Quiet(0.0).wait(used_s, lambda _: None)


def test_what_the_server_itself_uses_is_no_noise() -> None:
    cores = split_cores()
    words = [sys.executable, "-c", BURN]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        all_before_s, others_before_s = busy_s(cores.all), used_by_others_s(cores, process.pid)
        process.stdin.write("burn\n")
        assert process.stdout.readline() == "burnt\n"
        others_s = used_by_others_s(cores, process.pid) - others_before_s
        all_s = busy_s(cores.all) - all_before_s
        process.stdin.close()
    assert all_s - others_s >= 0.1  # of 0.15 s; the kernel counts in ticks
