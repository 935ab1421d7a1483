"""The four rate limits in memory, for one worker alone: what ``lua/limits_*.lua`` decide, where Redis cannot.

Pure: the time is the caller's, in ms, and may stand still but counts as standing still where it falls.
"""

from collections import OrderedDict
from dataclasses import dataclass, field

from gateway.policy.rules import RateLimit

# Limiters remembered; the one least used goes first. Some 300 bytes each, one for each account and limit in use.
LIMITERS_MAX = 100_000
# As in lua/limits_sliding_window.lua and lua/limits_concurrency.lua.
SLICES_MAX = 60
SLOT_WAIT_MS = 1000


@dataclass(slots=True)
class _FixedWindow:
    window_ms: int
    index: int = -1
    count: int = 0

    def wait_ms(self, limit: int, weight: int, now_ms: int) -> int:
        self._move(now_ms)
        return 0 if self.count + weight <= limit else (self.index + 1) * self.window_ms - now_ms

    def take(self, weight: int, now_ms: int) -> None:
        self._move(now_ms)
        self.count += weight

    def give_back(self, weight: int) -> None:
        self.count -= min(weight, self.count)

    def _move(self, now_ms: int) -> None:
        index = now_ms // self.window_ms
        if index > self.index:
            self.index, self.count = index, 0


@dataclass(slots=True)
class _SlidingWindow:
    window_ms: int
    slices: dict[int, int] = field(default_factory=dict)  # slice -> weight of its calls, oldest first
    total: int = 0

    @property
    def _slice_ms(self) -> int:
        return -(-self.window_ms // SLICES_MAX)

    def wait_ms(self, limit: int, weight: int, now_ms: int) -> int:
        newest = self._move(now_ms)
        over = self.total + weight - limit
        if over <= 0:
            return 0
        if weight > limit:
            return self.window_ms
        span = -(-self.window_ms // self._slice_ms) + 1
        for number, count in self.slices.items():
            over -= count
            if over <= 0:
                return (number + span) * self._slice_ms - now_ms
        return (newest + span) * self._slice_ms - now_ms

    def take(self, weight: int, now_ms: int) -> None:
        newest = self._move(now_ms)
        self.slices[newest] = self.slices.get(newest, 0) + weight
        self.total += weight

    def give_back(self, weight: int) -> None:
        if self.slices:
            newest = next(reversed(self.slices))
            taken = min(weight, self.slices[newest])
            self.slices[newest] -= taken
            self.total -= taken

    def _move(self, now_ms: int) -> int:
        newest = now_ms // self._slice_ms
        if self.slices:
            newest = max(newest, next(reversed(self.slices)))
        oldest = newest - -(-self.window_ms // self._slice_ms)
        while self.slices and (first := next(iter(self.slices))) < oldest:
            self.total -= self.slices.pop(first)
        return newest


@dataclass(slots=True)
class _TokenBucket:
    window_ms: int
    burst: int
    limit: int = 0
    left: int = -1  # in units of 1/window_ms token; below 0: full
    at_ms: int = 0

    def wait_ms(self, limit: int, weight: int, now_ms: int) -> int:
        self.limit = limit
        need = weight * self.window_ms
        if limit == 0 or weight > self.burst:
            return self.window_ms
        left = self._left(now_ms)
        return 0 if left >= need else -(-(need - left) // limit)

    def take(self, weight: int, now_ms: int) -> None:
        self.left = self._left(now_ms) - weight * self.window_ms
        self.at_ms = max(now_ms, self.at_ms)

    def give_back(self, weight: int) -> None:
        self.left = min(self.burst * self.window_ms, self.left + weight * self.window_ms)

    def _left(self, now_ms: int) -> int:
        full = self.burst * self.window_ms
        if self.left < 0:
            return full
        return min(full, self.left + max(0, now_ms - self.at_ms) * self.limit)


@dataclass(slots=True)
class _Concurrency:
    under_way: int = 0

    def wait_ms(self, limit: int, _weight: int, _now_ms: int) -> int:
        return 0 if self.under_way < limit else SLOT_WAIT_MS

    def take(self, _weight: int, _now_ms: int) -> None:
        self.under_way += 1

    def give_back(self, _weight: int) -> None:
        self.under_way = max(0, self.under_way - 1)


Limiter = _FixedWindow | _SlidingWindow | _TokenBucket | _Concurrency


class Limiters:
    """The limiters of one worker, by policy, limit and the value of its key."""

    def __init__(self) -> None:
        self._limiters: OrderedDict[tuple[str, str, int, str, str], Limiter] = OrderedDict()

    def of(self, policy: str, limit: RateLimit, number: int, value: str) -> Limiter:
        """The limiter of ``limit`` for one value of its key; ``number`` is what the account's plan allows."""
        key = (policy, limit.name, limit.window_ms, limit.algorithm, value)
        limiter = self._limiters.get(key)
        if limiter is None:
            limiter = self._limiters[key] = _new(limit, number)
            if len(self._limiters) > LIMITERS_MAX:
                self._limiters.popitem(last=False)
        else:
            self._limiters.move_to_end(key)
        if isinstance(limiter, _TokenBucket):
            limiter.burst = limit.burst or number
        return limiter

    def forget_slots(self) -> None:
        """Who is under way is counted anew."""
        for key in [key for key, limiter in self._limiters.items() if isinstance(limiter, _Concurrency)]:
            del self._limiters[key]


def _new(limit: RateLimit, number: int) -> Limiter:
    if limit.algorithm == "fixed_window":
        return _FixedWindow(limit.window_ms)
    if limit.algorithm == "sliding_window":
        return _SlidingWindow(limit.window_ms)
    if limit.algorithm == "token_bucket":
        return _TokenBucket(limit.window_ms, limit.burst or number)
    return _Concurrency()
