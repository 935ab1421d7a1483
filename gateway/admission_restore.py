"""What a worker does before it believes a Redis: find out whether it lost data, and bring back what only workers know.

Redis' holds are a copy: each worker knows its own. Whatever may have lost or brought back some of them (flushed,
restarted, an old snapshot, a failover; or calls that were admitted elsewhere while Redis was away) ends the partition's
*generation* (``lua/join.lua``). In the next one nobody admits until all have put their holds in place:

    stage  the worker                                                         goes on when
    1      has put its holds in place; its calls are still decided elsewhere  all are at 1, or time is nearly over
    2      lets new calls wait, and has put in place what was admitted since  all are at 2, or time is over; or goes
                                                                              back to 1 where that takes too long

"All" are the workers that live, as Postgres knows them (``Fleet``); while it does not answer, time alone decides. A
worker that stays away for longer (stopped, cut off) is not waited for: its holds count again when it is back.
Used amounts need nothing here: a lane's number for the generation rises, so each account is seeded before it is asked,
also one that this worker has not met before.
"""

import asyncio
import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import structlog

from gateway.redis_store import JOIN, OPENS, RESTORE, RedisLink

if TYPE_CHECKING:
    from gateway.admission_batch import Ask, Group

# A new generation opens at the latest after this: a worker that lives has heard of the end of the last one by then
# (its breaker's longest pause, a connection attempt, a heartbeat), and has put its holds in place.
RESTORE_S = 3.0
# So long before that it is time for stage 2, whoever is missing: two pauses of POLL_S, with room.
HANDOVER_MS = 100
# New calls wait so long at stage 2 for a worker that does not come.
HANDOVER_MAX_S = 0.25
POLL_S = 0.02
# Holds, or groups of up to 30 of them, put in place by one script call: some 3 ms of Redis' time.
PAGE = 1000
GROUPS_PAGE = 400
_json = json.JSONEncoder(separators=(",", ":")).encode

_log = structlog.get_logger()


class Fleet(Protocol):
    """The workers that live, whichever gateway they belong to."""

    async def living(self) -> Sequence[str]:
        """Their ids, the asker's among them. Nothing where that is not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """What ``join`` found. ``is_whole``: nothing was lost, and nothing need be put in place."""

    is_whole: bool
    opens_ms: int
    why: str  # this worker began it, because: empty | replaced | elsewhere | behind


class Membership:
    """One worker's part in one partition's generations."""

    def __init__(
        self,
        prefix: str,
        worker_id: str,
        *,
        holds: Callable[[], Sequence["Ask"]],
        is_open: Callable[[str], bool],
        fleet: Fleet,
        clock_ms: Callable[[], int] | None,
        guards: Sequence[str] = (),
    ) -> None:
        """``is_open``: whether the hold of that id is not settled. ``guards``: see ``Topology.guard_keys``."""
        self.generation = ""
        self.epoch = 0
        self.seq_known = 0  # the highest call number known to be written in our book
        self._is_through = True  # this worker has gone all the way from joining that generation to admitting in it
        self._life = f"{prefix}life"
        self._workers = f"{prefix}workers"
        self._book = f"{prefix}h:{worker_id}"
        self._swept = f"{prefix}swept:{worker_id}"
        self._guards = guards
        self._worker_id = worker_id
        self._holds = holds
        self._is_open = is_open
        self._fleet = fleet
        self._clock_ms = clock_ms

    async def join(self, link: RedisLink, *, was_elsewhere: bool) -> Joined:
        """Say which connection counts from now on, and learn what this Redis knows. Raises RedisLostError."""
        server: bytes = await link.call("INFO", "server")
        run_id = server.partition(b"run_id:")[2].partition(b"\r\n")[0]
        keys = (self._life, self._book, self._swept, *self._guards)
        known = (self.generation, os.urandom(8).hex(), self.epoch + 1, self.epoch, self.seq_known)
        more = (int(was_elsewhere), int(RESTORE_S * 1000), int(not self._is_through))
        reply = await link.call("EVAL", JOIN.source, len(keys), *keys, run_id, *known, *more)
        generation = reply[0].decode()
        self.epoch += 1
        self.generation = generation
        self._is_through = reply[2] == 1
        if not self._is_through:
            self.seq_known = 0  # the book begins anew
        return Joined(is_whole=reply[2] == 1, opens_ms=reply[1], why=reply[3].decode())

    async def put(self, link: RedisLink, asks: Sequence["Ask"]) -> None:
        """Put these holds in place, each as it is when its page is sent: what happens to it later is told behind that.

        Raises RedisLostError.
        """
        alone: list[Ask] = []
        of_groups: dict[Group, list[Ask]] = {}
        for ask in asks:
            if ask.group is None:
                alone.append(ask)
            else:
                of_groups.setdefault(ask.group, []).append(ask)
        groups = list(of_groups.items())
        for begin in range(0, len(groups), GROUPS_PAGE):
            page = groups[begin : begin + GROUPS_PAGE]
            # What has left its group by now goes alone; what leaves it later is taken out of it.
            alone += [ask for _, members in page for ask in members if ask.group is None]
            await self._put_rows(link, [], [group_row(group, self._still_open(members)) for group, members in page])
        for begin in range(0, len(alone), PAGE):
            await self._put_rows(link, [ask.held_row() for ask in self._still_open(alone[begin : begin + PAGE])], [])

    def _still_open(self, asks: Sequence["Ask"]) -> list["Ask"]:
        return [ask for ask in asks if self._is_open(ask.hold_id)]

    async def _put_rows(self, link: RedisLink, rows: list[list[object]], groups: list[list[object]]) -> None:
        text = _json([self.epoch, self.generation, rows, groups])
        now = () if self._clock_ms is None else (self._clock_ms(),)
        await link.call("EVAL", RESTORE.source, 2, self._workers, self._book, text, *now)

    async def foreign(self, link: RedisLink) -> list[str]:
        """Holds in our book that are none of ours: brought back by an old snapshot. Raises RedisLostError."""
        found: list[str] = []
        cursor: bytes | str = "0"
        while True:
            cursor, fields = await link.call("HSCAN", self._book, cursor, "COUNT", PAGE)
            found += [field.decode() for field in fields[::2]]
            if cursor == b"0":
                break
        # As it is now: of a group that ended meanwhile, there may be calls that had ended before.
        own = {"epoch", "seq"}
        for ask in self._holds():
            own.add(ask.hold_id if ask.group is None else ask.group.name)
        return [name for name in found if name not in own]

    async def stand(self, link: RedisLink, stage: int, living: Sequence[str]) -> tuple[int, int]:
        """Say how far this worker is; hear how many ms it may yet take, and how far all are. Raises RedisLostError."""
        left_ms, least = await link.call(
            *("EVAL", OPENS.source, 1, self._life, self.generation, self._worker_id, stage), *living
        )
        return left_ms, least

    async def restore(
        self,
        link: RedisLink,
        joined: Joined,
        hand_over: Callable[[], "asyncio.Future[None] | None"],
        take_back: Callable[[], None],
    ) -> None:
        """From a generation just joined to one that admits. Raises RedisLostError.

        ``hand_over`` makes new calls wait here; what it returns is done when none is being decided elsewhere any more.
        After ``take_back`` they are decided elsewhere again.
        """
        placed: set[str] = set()
        await self._put_new(link, placed)
        if joined.opens_ms > 0:
            await self._reached(link, stage=1, left_ms=HANDOVER_MS)
        while True:
            waiting = hand_over()
            if waiting is not None:
                await waiting
            await self._put_new(link, placed)
            if joined.opens_ms <= 0 or await self._reached(link, stage=2, left_ms=0, patience_s=HANDOVER_MAX_S):
                break
            # Somebody stopped on the way here. Once it is known that we are at 1 again, nobody admits before its time.
            left_ms, _ = await self.stand(link, 1, ())
            if left_ms <= 0:
                break
            take_back()
            while left_ms > HANDOVER_MS:
                await asyncio.sleep(min(POLL_S, (left_ms - HANDOVER_MS) / 1000))
                left_ms, _ = await self.stand(link, 1, ())
        self._is_through = True

    async def _put_new(self, link: RedisLink, placed: set[str]) -> None:
        """Put the holds in place that are not ``placed``; then they are. Raises RedisLostError."""
        asks = [ask for ask in self._holds() if ask.hold_id not in placed]
        await self.put(link, asks)
        placed.update(ask.hold_id for ask in asks)

    async def _reached(self, link: RedisLink, *, stage: int, left_ms: int, patience_s: float = math.inf) -> bool:
        """Until all that live are at ``stage``, or no more than ``left_ms`` are left. Raises RedisLostError.

        False where neither is so after ``patience_s``, and it will not be soon.
        """
        loop = asyncio.get_running_loop()
        until_s = loop.time() + patience_s
        while True:
            now_left_ms, least = await self.stand(link, stage, await self._fleet.living())
            if least >= stage or now_left_ms <= left_ms:
                return True
            if loop.time() >= until_s and now_left_ms > left_ms + HANDOVER_MS:
                return False
            await asyncio.sleep(min(POLL_S, (now_left_ms - left_ms) / 1000))


def group_row(group: "Group", asks: Sequence["Ask"]) -> list[object]:
    """The group as ``lua/restore.lua`` wants it; those of ``asks`` that are in it still hold, perhaps none."""
    mask = 0
    row: list[object] = [group.name, "", 0, 0, ""]
    for ask in asks:
        if ask.group is group:
            mask |= ask.place
            account = "" if ask.account is None else ask.account.account_id
            row = [group.name, account, ask.hold_microcents, ask.admitted_ms, ask.policy.name]
    return [*row, mask, group.ids]
