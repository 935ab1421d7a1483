"""What happened to holds and usage, waiting to be told to Redis.

Every item may be told twice, in any order with its like, without harm (``lua/settle.lua``): so what was on its way when
the connection broke is simply told again, and nothing here needs to know whether it arrived.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from gateway.policy.free_tier import is_tier

_json = json.JSONEncoder(separators=(",", ":")).encode
# Per account and kind: (start_ms, used_microcents)
Usage = dict[str, tuple[int, int]]

# Told by one script call: Redis serves nobody else meanwhile, and an item costs it about 2 µs.
ITEMS_PER_CALL_MAX = 1000
# Waiting in all, while Redis is away: some 100 bytes each. Real holds are bounded by the calls under way; what is
# dropped beyond that is a hold that the sweeper finds once this worker has ended, or usage that the next seed brings.
ITEMS_MAX = 200_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Seed:
    """The ledger's sums for an account. ``exactly``: also where Redis says more, for its facts or sums are from a
    ledger that no longer exists. ``alone``: Redis may have gone back to older sums, and forgets those of other windows.
    """

    account_id: str
    version: int
    usage: Usage
    exactly: bool = False
    alone: bool = False
    tiers: Usage = field(default_factory=dict)  # what free tiers have counted, in units


@dataclass(slots=True)
class Settled:
    """Items waiting for a script call, or on their way in one."""

    seeds: list[Seed] = field(default_factory=list)
    usages: dict[str, Usage] = field(default_factory=dict)
    # hold id -> actual microcents; under a free tier with units
    adjusts: dict[str, int | tuple[int, int]] = field(default_factory=dict)
    posted: dict[str, list[str]] = field(default_factory=dict)  # worker id -> hold ids
    voided: dict[str, list[str]] = field(default_factory=dict)
    tiers: dict[str, Usage] = field(default_factory=dict)  # as usages
    posted_groups: dict[str, int] = field(default_factory=dict)  # name of this worker's group -> mask of its calls
    voided_groups: dict[str, int] = field(default_factory=dict)
    count: int = 0
    dropped: int = 0

    def seed(self, seed: Seed) -> None:
        """The ledger was read."""
        self.seeds.append(seed)
        self.count += 1

    def use(self, account_id: str, kind: str, start_ms: int, used_microcents: int) -> None:
        """The ledger was written. Of one account's window the newest start and the highest sum count."""
        usages = self.tiers if is_tier(kind) else self.usages
        usage = usages.get(account_id)
        if usage is None:
            if self._is_full():
                return
            usage = usages[account_id] = {}
        present = usage.get(kind)
        if present is None:
            self.count += 1
        if present is None or present < (start_ms, used_microcents):
            usage[kind] = (start_ms, used_microcents)

    def adjust(self, hold_id: str, actual: int | tuple[int, int]) -> None:
        """A call of this worker has ended, and costs so many microcents; under a free tier, and holds so many units."""
        if hold_id not in self.adjusts:
            if self._is_full():
                return
            self.count += 1
        self.adjusts[hold_id] = actual

    def remove(self, worker_id: str, hold_ids: Iterable[str], *, posted: bool) -> None:
        """Holds of a worker that are over: posted to the ledger, or voided."""
        ids = (self.posted if posted else self.voided).setdefault(worker_id, [])
        before = len(ids)
        ids.extend(hold_ids)
        excess = self.count + len(ids) - before - ITEMS_MAX
        if excess > 0:
            del ids[max(before, len(ids) - excess) :]
            self.dropped += excess
        self.count += len(ids) - before

    def remove_grouped(self, name: str, places: int, *, posted: bool) -> None:
        """The same for holds of a group of this worker's; ``places`` is the mask of those that are over."""
        groups = self.posted_groups if posted else self.voided_groups
        before = groups.get(name)
        if before is None:
            if self._is_full():
                return
            self.count += 1
            groups[name] = places
        else:
            groups[name] = before | places

    def forget_holds(self, worker_id: str) -> None:
        """Nothing need be told of this worker's holds: all that are open are about to be put in place, no others."""
        for groups in (self.posted_groups, self.voided_groups):
            self.count -= len(groups)
            groups.clear()
        for waiting in (self.posted, self.voided):
            self.count -= len(waiting.pop(worker_id, ()))
        self.count -= len(self.adjusts)
        self.adjusts = {}

    def take(self) -> "Settled":
        """Items for one call, taken out; in the order in which they have to be told."""
        if self.count <= ITEMS_PER_CALL_MAX:
            taken = Settled(
                *(self.seeds, self.usages, self.adjusts, self.posted, self.voided, self.tiers),
                *(self.posted_groups, self.voided_groups, self.count),
            )
            self.seeds, self.usages, self.adjusts, self.posted, self.voided, self.tiers = [], {}, {}, {}, {}, {}
            self.posted_groups, self.voided_groups = {}, {}
            self.count = 0
            return taken
        taken = Settled()
        while self.seeds and taken.count < ITEMS_PER_CALL_MAX:
            taken.seed(self.seeds.pop(0))
        # Usage before the removal of the holds it contains: in between, no call may see less than was spent.
        for usages, taken_usages in ((self.tiers, taken.tiers), (self.usages, taken.usages)):
            while usages and taken.count < ITEMS_PER_CALL_MAX:
                account_id = next(iter(usages))
                usage = taken_usages[account_id] = usages.pop(account_id)
                taken.count += len(usage)
        while self.adjusts and taken.count < ITEMS_PER_CALL_MAX:
            hold_id = next(iter(self.adjusts))
            taken.adjust(hold_id, self.adjusts.pop(hold_id))
        for waiting, posted in ((self.posted, True), (self.voided, False)):
            while waiting and taken.count < ITEMS_PER_CALL_MAX:
                worker_id, ids = waiting.popitem()
                room = ITEMS_PER_CALL_MAX - taken.count
                taken.remove(worker_id, ids[:room], posted=posted)
                if ids[room:]:
                    waiting[worker_id] = ids[room:]
        for groups, posted in ((self.posted_groups, True), (self.voided_groups, False)):
            while groups and taken.count < ITEMS_PER_CALL_MAX:
                name, places = groups.popitem()
                taken.remove_grouped(name, places, posted=posted)
        self.count -= taken.count
        return taken

    def put_back(self, taken: "Settled") -> None:
        """What ``take`` gave was perhaps not told."""
        for seed in taken.seeds:
            for kind, (start_ms, used) in (*seed.usage.items(), *seed.tiers.items()):
                self.use(seed.account_id, kind, start_ms, used)
        for account_id, usage in (*taken.tiers.items(), *taken.usages.items()):
            for kind, (start_ms, used) in usage.items():
                self.use(account_id, kind, start_ms, used)
        for hold_id, actual in taken.adjusts.items():
            if hold_id not in self.adjusts:
                self.adjust(hold_id, actual)
        for worker_id, ids in taken.posted.items():
            self.remove(worker_id, ids, posted=True)
        for worker_id, ids in taken.voided.items():
            self.remove(worker_id, ids, posted=False)
        for groups, posted in ((taken.posted_groups, True), (taken.voided_groups, False)):
            for name, places in groups.items():
                self.remove_grouped(name, places, posted=posted)

    def text(self) -> str:
        """As ``lua/settle.lua`` wants it; blank where there is nothing to tell."""
        if self.count == 0:
            return ""
        seeds = [
            [seed.account_id, seed.version, _rows(seed.usage), int(seed.exactly), int(seed.alone)]
            + ([_rows(seed.tiers)] if seed.tiers else [])
            for seed in self.seeds
        ]
        usages: list[str | int] = []
        for account_id, usage in self.usages.items():
            for kind, (start_ms, used) in usage.items():
                usages += (account_id, kind, start_ms, used)
        removes = [
            [worker_id, flag, ids]
            for of_workers, flag in ((self.posted, 1), (self.voided, 0))
            for worker_id, ids in of_workers.items()
        ]
        parts: list[object] = [seeds, usages, list(self.adjusts.items()), removes]
        groups: list[str | int] = []
        for waiting, flag in ((self.posted_groups, 1), (self.voided_groups, 0)):
            for name, places in waiting.items():
                groups += (name, places, places.bit_count(), flag)
        if self.tiers or groups:
            parts.append([[account_id, _rows(usage)] for account_id, usage in self.tiers.items()] or 0)
        if groups:
            parts.append(groups)
        return _json(parts)

    def _is_full(self) -> bool:
        if self.count < ITEMS_MAX:
            return False
        self.dropped += 1
        return True


def _rows(usage: Mapping[str, tuple[int, int]]) -> list[tuple[str, int, int]]:
    return [(kind, start_ms, used) for kind, (start_ms, used) in usage.items()]
