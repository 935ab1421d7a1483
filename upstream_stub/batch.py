"""Natural batching: what is asked while one statement is under way goes together as the next one.

With one request at a time nothing waits; with hundreds, hundreds share a round trip. Nothing is remembered, so an
answer is never older than its question (a deleted key is refused at once).
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

Question = TypeVar("Question")
Answer = TypeVar("Answer")

# Bounds one statement's size, not the queue: that is bounded by the number of requests being answered.
BATCH_MAX = 256


class Batch(Generic[Question, Answer]):
    """Collects questions and has them answered together, in order; a failure is everybody's in that batch."""

    def __init__(self, name: str, answer: Callable[[Sequence[Question]], Awaitable[Sequence[Answer]]]) -> None:
        self._name = name
        self._answer = answer
        self._waiting: list[tuple[Question, asyncio.Future[Answer]]] = []
        self._task: asyncio.Task[None] | None = None

    async def ask(self, question: Question) -> Answer:
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((question, future))
        if self._task is None:
            self._task = asyncio.create_task(self._work(), name=self._name)  # noqa: TID251  owned here; ends by itself
        return await future

    async def _work(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[:BATCH_MAX], self._waiting[BATCH_MAX:]
                await self._answer_all(batch)
        finally:
            self._task = None

    async def _answer_all(self, batch: list[tuple[Question, asyncio.Future[Answer]]]) -> None:
        try:
            answers = await self._answer([question for question, _ in batch])
        except Exception as error:  # noqa: BLE001  handed on to those who asked
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        for (_, future), answer in zip(batch, answers, strict=True):
            if not future.done():  # a caller that was cancelled has left
                future.set_result(answer)
