"""A reply that is about to come is waited for awake; one that is not, or among many, asleep."""

import asyncio
from collections.abc import Callable
from itertools import pairwise
from typing import cast

import pytest

from gateway.vigil import ASLEEP_MAX, VIGIL_S, Vigil
from tests.admission.world import Worker


class Loop:
    """Looks again when it is told to, and takes a µs each time."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self._ready: list[Callable[[], None]] = []

    def call_soon(self, look: Callable[[], None]) -> None:
        self._ready.append(look)

    def looks(self, times: int = 10_000) -> int:
        """How often it looked before it went to sleep."""
        for looked in range(times):
            if not self._ready:
                return looked
            self.now_s += 0.000001
            self._ready.pop()()
        return times


@pytest.fixture
def loop() -> Loop:
    return Loop()


@pytest.fixture
def vigil(loop: Loop) -> Vigil:
    return Vigil(cast(asyncio.AbstractEventLoop, loop), clock=lambda: loop.now_s)


def test_it_ends_with_the_reply(loop: Loop, vigil: Vigil) -> None:
    for _ in range(20):
        vigil.begin()
        assert loop.looks(30) == 30
        vigil.end()
        assert loop.looks() <= 1


def test_it_ends_after_a_moment_without_one(loop: Loop, vigil: Vigil) -> None:
    vigil.begin()
    began_s = loop.now_s
    assert loop.looks() > 1
    assert loop.now_s - began_s == pytest.approx(VIGIL_S, abs=0.000002)


def test_replies_that_come_late_are_waited_for_asleep_more_and_more_often(loop: Loop, vigil: Vigil) -> None:
    watched = []
    for number in range(3 * ASLEEP_MAX):
        vigil.begin()
        if loop.looks():
            watched.append(number)
        vigil.end()
    gaps = [later - earlier - 1 for earlier, later in pairwise(watched)]
    assert gaps == sorted(gaps)
    assert gaps[:4] == [1, 2, 4, 8]
    assert max(gaps) <= ASLEEP_MAX


def test_one_reply_in_time_and_it_is_tried_as_often_as_before(loop: Loop, vigil: Vigil) -> None:
    for _ in range(40):
        vigil.begin()
        loop.looks()
    while not loop.looks(5):
        vigil.begin()
    vigil.end()
    loop.looks()
    vigil.begin()
    assert loop.looks() > 1  # in vain
    vigil.begin()
    assert loop.looks() == 0
    vigil.begin()
    assert loop.looks() > 1


def test_a_new_one_takes_over_where_the_last_is_just_over(loop: Loop, vigil: Vigil) -> None:
    vigil.begin()
    vigil.end()
    vigil.begin()
    assert loop.looks(3) == 3
    vigil.end()
    assert loop.looks() == 1


@pytest.mark.parametrize(("asks_at_once", "is_awake"), [(1, True), (4, False)])
async def test_only_calls_that_come_one_by_one_are_waited_for_awake(
    worker: Worker, asks_at_once: int, is_awake: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[Vigil] = []
    monkeypatch.setattr(Vigil, "begin", lambda vigil: begun.append(vigil))
    for _ in range(20):
        await worker.ask_many("a", asks_at_once)
    assert bool(begun) == is_awake
