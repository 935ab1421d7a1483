"""Children of the bench: pinned, watched, and gone when they should be."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.processes import BenchError, cpu_s, is_running, memory_bytes, pinned, process_tree, running, split_cores
from gateway.embedded import free_port

# A server with a child, which burns some CPU time and says on which cores it may run.
SERVER = """
import os, socket, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
while time.process_time() < 0.1: pass
print(sorted(os.sched_getaffinity(0)), flush=True)
socket.create_server(("127.0.0.1", int(sys.argv[1]))).accept()
time.sleep(600)
"""


def test_a_server_runs_on_its_core_and_goes_with_its_children(tmp_path: Path) -> None:
    core = split_cores().proxy
    port = free_port()
    words = [sys.executable, "-c", SERVER, str(port)]
    with running("server", words, port=port, cores=(core,), folder=tmp_path, environment={}) as child:
        tree = process_tree(child.process.pid)
        assert len(tree) == 2
        assert cpu_s(child.process.pid) >= 0.05  # it used 0.1 s; the kernel counts in ticks
        assert memory_bytes(child.process.pid) > 1024 * 1024
        assert child.log.read_text() == f"[{core}]\n"
        child.check()
    assert not [member for member in tree if is_running(member)]


def test_a_server_that_ends_at_once_is_told_with_its_log(tmp_path: Path) -> None:
    words = [sys.executable, "-c", "import sys; sys.exit('no such upstream')"]
    with (
        pytest.raises(BenchError, match=r"(?s)broken ended with status 1;.*no such upstream"),
        running("broken", words, port=free_port(), cores=(split_cores().proxy,), folder=tmp_path, environment={}),
    ):
        pass


def test_pinning_ends_with_its_block() -> None:
    before = os.sched_getaffinity(0)
    with pinned((split_cores().proxy,)):
        assert os.sched_getaffinity(0) == {split_cores().proxy}
    assert os.sched_getaffinity(0) == before


def test_the_server_under_test_shares_its_core_with_nothing_where_there_are_two() -> None:
    cores = split_cores()
    assert cores.shared is (len(os.sched_getaffinity(0)) == 1)


def test_the_time_of_a_child_that_has_ended_stays_counted() -> None:
    before = cpu_s(os.getpid())
    spin = "import time\nwhile time.process_time() < 0.15: pass"
    subprocess.run([sys.executable, "-c", spin], check=True)
    assert cpu_s(os.getpid()) - before >= 0.1


def test_a_child_that_nobody_remembers_is_ended_and_waited_for() -> None:
    """As one is that a signal met half started; in a process of its own, for it ends all that is below it."""
    script = (
        "import subprocess\n"
        "from bench.processes import end_children, is_running, process_tree\n"
        "shell = subprocess.Popen(['sh', '-c', 'trap \"\" TERM INT; sleep 60 & wait'], stdout=subprocess.PIPE)\n"
        "while len(members := process_tree(shell.pid)) < 2:\n"
        "    pass\n"
        "end_children()\n"
        "print([is_running(member) for member in members])\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=20)
    assert ended.stdout == "[False, False]\n"
