"""A lane has one call under way at a time, also in the moment in which it serves again."""

import asyncio

import pytest

from gateway import admission_lane
from gateway.admission_lane import DRAINING
from gateway.policy.verdicts import Hold
from tests.admission.conftest import StartWorker


async def test_calls_that_waited_for_redis_are_all_answered(
    start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where more wait than go at once, and others hold: then Redis is told at once that the worker lives."""
    worker = await start_worker(batch_max=2)
    assert isinstance(await worker.ask("a"), Hold)
    lane = worker.admission._lanes[0]
    while lane._flying or lane._keeping:
        lane.state = DRAINING  # as once holds are in place in a Redis that had lost them
        await asyncio.sleep(0.001)
    lane.state = DRAINING
    monkeypatch.setattr(admission_lane, "KEEP_S", 0.0)  # replies take longer
    asked = [worker.asked("a") for _ in range(5)]
    lane._send()
    verdicts = await asyncio.wait_for(asyncio.gather(*asked), 5)
    assert [type(one) for one in verdicts] == [Hold] * 5
