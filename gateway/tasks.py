"""The only place that starts tasks: every task has an owner, a name, and an end that somebody waits for."""

import asyncio
import time
from collections.abc import Coroutine
from typing import Any

import structlog

# How long a cancelled task may take to clean up; one that takes longer is left behind, and said to be.
CANCEL_GRACE_S = 1.0

_log = structlog.get_logger()


class Tasks:
    """The tasks of one owner."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._running)

    def start(self, name: str, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run ``coroutine`` beside everything else. What it raises is logged with its name, and goes no further."""
        task = asyncio.get_running_loop().create_task(coroutine, name=name)
        self._running.add(task)
        task.add_done_callback(self._ended)
        return task

    async def drain(self, timeout_s: float) -> None:
        """Wait until every task has ended, those started meanwhile too; after ``timeout_s`` cancel what is left."""
        deadline = time.monotonic() + timeout_s
        while self._others() and (left_s := deadline - time.monotonic()) > 0:
            await asyncio.wait(self._others(), timeout=left_s)
        remaining = self._others()
        if not remaining:
            return
        for task in remaining:
            task.cancel()
        _, stuck = await asyncio.wait(remaining, timeout=CANCEL_GRACE_S)
        if stuck:
            _log.error("tasks_stuck", tasks=sorted(task.get_name() for task in stuck))

    def _others(self) -> set[asyncio.Task[None]]:
        """All but the task that asks: it would wait for itself."""
        return {task for task in self._running if task is not asyncio.current_task()}

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("task_failed", task=task.get_name(), exc_info=error)
