"""Tasks have an owner, a name and an end."""

import asyncio

import structlog

from gateway.tasks import Tasks


async def test_draining_waits_for_what_runs_and_for_what_that_starts() -> None:
    tasks = Tasks()
    done: list[str] = []

    async def second() -> None:
        done.append("second")

    async def first() -> None:
        await asyncio.sleep(0)
        tasks.start("second", second())
        done.append("first")

    tasks.start("first", first())
    await tasks.drain(10)
    assert done == ["first", "second"]
    assert len(tasks) == 0


async def test_draining_cancels_what_is_left_and_waits_for_its_cleanup() -> None:
    tasks = Tasks()
    cleaned = False

    async def endless() -> None:
        nonlocal cleaned
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned = True

    task = tasks.start("endless", endless())
    await asyncio.sleep(0)
    await tasks.drain(0)
    assert task.cancelled()
    assert cleaned


async def test_a_task_that_fails_is_logged_with_its_name() -> None:
    tasks = Tasks()

    async def fail() -> None:
        raise ValueError("no")

    with structlog.testing.capture_logs() as events:
        tasks.start("the name", fail())
        await tasks.drain(1)
    [event] = events
    assert (event["event"], event["task"], str(event["exc_info"])) == ("task_failed", "the name", "no")


async def test_a_task_that_ignores_its_cancellation_is_named(monkeypatch: object) -> None:
    tasks = Tasks()
    released = asyncio.Event()

    async def stubborn() -> None:
        while not released.is_set():
            try:
                await released.wait()
            except asyncio.CancelledError:
                continue

    task = tasks.start("stubborn", stubborn())
    await asyncio.sleep(0)
    with structlog.testing.capture_logs() as events:
        await tasks.drain(0)
    assert events == [{"event": "tasks_stuck", "log_level": "error", "tasks": ["stubborn"]}]
    released.set()
    await task


async def test_a_task_may_drain_the_others_of_its_owner() -> None:
    tasks = Tasks()

    async def last() -> None:
        await tasks.drain(1)

    await asyncio.wait_for(tasks.start("last", last()), 5)
