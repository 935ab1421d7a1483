"""A reply that is about to come is waited for awake: to sleep and be woken takes longer than many a reply.

Where a worker has one call at a time, its loop goes to sleep after each thing it sends, and the processor with it;
being woken takes some 13 µs, and the call that much longer (``python -m bench.lone_call``). During a vigil the loop
looks again instead: it serves whatever comes as always, and costs only time that nobody else wanted of this worker.

It ends with the reply, or after ``VIGIL_S``. A vigil in vain (Redis is far away, or shares our core and got no time) is
followed by calls without one, twice as many each time.
"""

import asyncio
from collections.abc import Callable
from time import perf_counter

# A reply of a Redis that is not across a network takes some 50 to 100 µs.
VIGIL_S = 0.00015
# After a vigil in vain so many replies at most are waited for asleep, until it is tried again.
ASLEEP_MAX = 4096


class Vigil:
    """Of one who waits for one reply at a time."""

    __slots__ = ("_asleep", "_asleep_next", "_clock", "_is_looking", "_look_again", "_until_s")

    def __init__(self, loop: asyncio.AbstractEventLoop, clock: Callable[[], float] = perf_counter) -> None:
        self._look_again = loop.call_soon
        self._clock = clock
        self._until_s = 0.0  # 0: there is none
        self._is_looking = False
        self._asleep = 0
        self._asleep_next = 1

    def begin(self) -> None:
        """Something was sent, and its reply will be told by ``end``."""
        if self._asleep:
            self._asleep -= 1
            return
        self._until_s = self._clock() + VIGIL_S
        if not self._is_looking:
            self._is_looking = True
            self._look_again(self._look)

    def end(self) -> None:
        """The reply is here."""
        if self._until_s:
            self._until_s = 0.0
            self._asleep_next = 1

    def _look(self) -> None:
        if self._until_s and self._clock() < self._until_s:
            self._look_again(self._look)
            return
        self._is_looking = False
        if self._until_s:
            self._until_s = 0.0
            self._asleep = self._asleep_next
            self._asleep_next = min(2 * self._asleep_next, ASLEEP_MAX)
