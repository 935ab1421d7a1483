"""What the spool took is on the disk, whoever dies; what it cannot take it gives back at once."""

import asyncio
import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import structlog

from gateway import spool as spool_module
from gateway.metrics import Metrics
from gateway.spool import Spool
from gateway.spool_file import SpoolFile, is_in_use, look_into, paths_in
from gateway.spool_records import event_of
from gateway.usage_events import UsageEvent
from tests.gateways import ROOT
from tests.ledger.making import event
from tests.spool.conftest import MakeSpool


async def written(spool: Spool) -> None:
    async with asyncio.timeout(10):
        while spool._task is not None:
            await asyncio.sleep(0.001)


def on_disk(folder: Path) -> list[UsageEvent]:
    return [event_of(payload) for path in paths_in(folder) for payload in look_into(path).payloads]


async def test_what_was_spilled_is_on_the_disk_in_one_file_of_this_worker(make_spool: MakeSpool, folder: Path) -> None:
    spool = make_spool("w7")
    events = [event("a", cast_id=str(number)) for number in range(100)]
    for one in events[:50]:
        assert spool.spill([one])
    await written(spool)
    assert spool.spill(events[50:])
    await written(spool)
    assert on_disk(folder) == events
    (path,) = paths_in(folder)
    assert look_into(path).header is not None
    assert look_into(path).header.worker_id == "w7"  # type: ignore[union-attr]
    assert path.stat().st_mode & 0o777 == 0o600
    assert len(spool) == 100


async def test_events_that_come_together_are_synced_as_one_group(
    make_spool: MakeSpool, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = []
    real = os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda fd: synced.append(real(fd)))
    spool = make_spool(fsync_interval="100ms")
    for _ in range(1000):
        spool.spill([event("a")])
    await written(spool)
    assert len(synced) == 1


async def test_two_workers_never_share_a_file_and_a_file_of_the_living_is_not_taken(
    make_spool: MakeSpool, folder: Path
) -> None:
    one, two = make_spool("w1"), make_spool("w2")
    one.spill([event("a")])
    two.spill([event("b")])
    await written(one)
    await written(two)
    assert len(paths_in(folder)) == 2
    assert all(is_in_use(path) for path in paths_in(folder))
    assert await one.adopt() == await two.adopt() == 0
    await one.close()
    assert await two.adopt() == 1
    assert len(two) == 2


async def test_the_file_of_a_killed_process_is_taken_up_with_all_that_it_had_synced(
    make_spool: MakeSpool, folder: Path
) -> None:
    program = f"""
import sys, time
from pathlib import Path
from gateway.spool_file import SpoolFile
from gateway.spool_records import Header
from tests.ledger.making import event
file = SpoolFile.create(Path({str(folder)!r}), Header(worker_id="dead", created_ms=time.time_ns() // 1_000_000), 1)
file.append([event("a"), event("b")])
import os
os.pwrite(file._fd, b"\\xc5CG1 torn", file.size_bytes)
print("ready", flush=True)
time.sleep(60)
"""
    process = subprocess.Popen(  # noqa: ASYNC220
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n"
        spool = make_spool()
        assert await spool.adopt() == 0
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        with structlog.testing.capture_logs() as logs:
            assert await spool.adopt() == 1
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert [entry["event"] for entry in logs] == ["spool_file_torn", "spool_taken_up"]
    file = spool.next_file()
    assert file is not None
    assert file.header.worker_id == "dead"
    assert [event_of(payload).account_id for payload in file.payloads()] == ["a", "b"]
    assert look_into(file.path).torn_bytes == 0, "cut, so that it is said once"


async def test_damage_in_the_middle_costs_what_it_hit_and_is_put_aside(make_spool: MakeSpool, folder: Path) -> None:
    spool = make_spool()
    spool.spill([event("a"), event("b"), event("c")])
    await written(spool)
    await spool.close()
    (path,) = paths_in(folder)
    data = bytearray(path.read_bytes())
    data[data.index(b'"b"')] ^= 1
    path.write_bytes(data)
    other = make_spool()
    await other.adopt()
    file = other.next_file()
    assert file is not None
    assert [event_of(payload).account_id for payload in file.payloads()] == ["a", "c"]
    await other.done(file)
    assert [path.suffix for path in folder.iterdir()] == [".damaged"]


async def test_at_bytes_max_it_takes_no_more_until_there_is_room(
    make_spool: MakeSpool, metrics: Metrics, folder: Path
) -> None:
    spool = make_spool(bytes_max="64KiB")
    with structlog.testing.capture_logs() as logs:
        taken = 0
        while spool.spill([event("a")] * 50):
            taken += 50
            await written(spool)
        assert 100 < taken < 1000
        assert metrics.gauge("castgate_spool_full").value == 1
        assert metrics.counter("castgate_spool_events_total", result="refused").value == 50
        assert metrics.counter("castgate_spool_events_total", result="spilled").value == taken
        assert metrics.gauge("castgate_spool_waiting_events").value == taken
        assert metrics.gauge("castgate_spool_bytes").value == sum(path.stat().st_size for path in paths_in(folder))
        file = spool.next_file()
        assert file is not None
        await spool.done(file)
        assert spool.spill([event("a")])
        await written(spool)
    assert metrics.gauge("castgate_spool_full").value == 0
    told = [entry["event"] for entry in logs]
    assert told == ["spool_begun", "spool_full", "spool_no_longer_full", "spool_empty", "spool_begun"]


async def test_the_bound_is_the_folders_whoever_filled_it(make_spool: MakeSpool) -> None:
    one, two = make_spool("w1", bytes_max="64KiB"), make_spool("w2", bytes_max="64KiB")
    while one.spill([event("a")] * 50):
        await written(one)
    await two.adopt()
    assert not two.spill([event("a")])


async def test_a_spool_older_than_age_max_takes_no_more(make_spool: MakeSpool, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = make_spool(age_max="60s")
    assert spool.spill([event("a")])
    await written(spool)
    monkeypatch.setattr(SpoolFile, "age_s", 61.0)
    assert not spool.spill([event("a")])


@contextmanager
def small_disk(path: Path) -> Iterator[None]:
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(path)]
    if os.geteuid() != 0 or not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root may make a small disk (mount -t tmpfs)")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


async def test_a_full_disk_gives_the_events_back_and_is_used_again_when_it_has_room(
    make_spool: MakeSpool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool_module, "_PAUSE_MIN_S", 0.01)
    monkeypatch.setattr(spool_module, "_PAUSE_MAX_S", 0.01)
    disk = tmp_path / "disk"
    with small_disk(disk):
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(40 * 1024))
        spool = make_spool(folder=disk / "spool")
        refused: list[UsageEvent] = []
        spool.on_refused = refused.extend
        events = [event("a") for _ in range(240)]
        with structlog.testing.capture_logs() as logs:
            for at in range(0, 240, 20):
                spool.spill(events[at : at + 20]) or refused.extend(events[at : at + 20])
                await written(spool)
            kept = on_disk(disk / "spool")
            # A part of a write that did fit is no part of the file, and nothing is in two places or in none.
            assert len(kept) % 20 == 0
            assert 0 < len(kept) < 240
            assert sorted(kept + refused) == sorted(events)
            ballast.unlink()
            await asyncio.sleep(0.02)
            assert spool.spill(refused)
            await written(spool)
        assert sorted(on_disk(disk / "spool")) == sorted(events)
        told = [entry["event"] for entry in logs]
        assert told == ["spool_begun", "spool_failing", "spool_recovered"]
        assert logs[1]["reason"] == "ENOSPC No space left on device"
        assert not list((disk / "spool").glob("*.new"))
        await spool.close()


async def test_a_file_that_may_not_grow_is_a_full_disk_too(make_spool: MakeSpool, folder: Path) -> None:
    """Without root; the kernel takes part of the write that crosses the limit (a short write), and refuses the next."""
    spool = make_spool()
    refused: list[UsageEvent] = []
    spool.on_refused = refused.extend
    first, second = [event("a") for _ in range(10)], [event("b") for _ in range(100)]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    spool.spill(first)
    await written(spool)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        spool.spill(second)
        await written(spool)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert spool._failing == f"EFBIG {os.strerror(errno.EFBIG)}"
    assert refused == second
    assert on_disk(folder) == first
    (path,) = paths_in(folder)
    assert look_into(path).torn_bytes == 0


async def test_a_folder_that_cannot_be_made_is_said_once_and_costs_nothing_else(
    make_spool: MakeSpool, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    spool = make_spool(folder=tmp_path / "file" / "spool")
    refused: list[UsageEvent] = []
    spool.on_refused = refused.extend
    one = event("a")
    with structlog.testing.capture_logs() as logs:
        await spool.adopt()
        await spool.adopt()
        spool.spill([one])
        await written(spool)
    assert refused == [one]
    assert [entry["event"] for entry in logs] == ["spool_failing"]


async def test_it_is_written_when_it_is_closed(make_spool: MakeSpool, folder: Path) -> None:
    spool = make_spool(fsync_interval="10s")
    spool.spill([event("a")])
    await spool.close()
    assert len(on_disk(folder)) == 1
    assert not spool.spill([event("a")])
