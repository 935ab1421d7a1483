"""What is shown never holds up what runs."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.progress import LogPump, Progress

ROOT = Path(__file__).parents[2]
LOG = b"".join(b"%d lines, \xff\n" % number for number in range(1000))


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def pass_on(log: bytes, to_fd: int) -> None:
    """As a child would: writes, and ends."""
    pump = LogPump(to_fd)
    child_end = os.dup(pump.write_fd)
    pump.start()
    for start in range(0, len(log), 1024):
        os.write(child_end, log[start : start + 1024])
    os.close(child_end)
    pump.finish()


def test_a_log_is_passed_on_byte_for_byte(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    pass_on(LOG, writer)
    assert os.read(reader, 2 * len(LOG)) == LOG


def test_a_log_that_nobody_reads_is_dropped_and_its_writer_goes_on(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    pass_on(LOG * 40, writer)  # many times what a pipe holds
    assert LOG.startswith(os.read(reader, 1024))


def test_a_step_is_one_line_with_its_time_once_it_is_over(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress().step("Postgres") as step:
        assert capsys.readouterr().out == ""
        step.detail = "127.0.0.1:5432"
    shown = capsys.readouterr().out
    assert shown.split() == ["Postgres", "127.0.0.1:5432", "0.0", "s"]
    assert shown.count("\n") == 1


def test_a_step_that_fails_shows_nothing_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ZeroDivisionError), Progress().step("Postgres"):
        raise ZeroDivisionError
    assert capsys.readouterr().out == ""


def test_a_closed_terminal_is_no_error() -> None:
    code = "from gateway.progress import Progress; import sys; Progress().say('lost'); sys.stdout = sys.stderr = None"
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait(20) in (0, 120)


def test_time_is_measured_from_the_beginning() -> None:
    assert time.monotonic() - Progress().started_s < 1
