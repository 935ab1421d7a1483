"""What a large batch of the ledger has come to, piece by piece, so that each call counts once meanwhile.

At admission a call counts as held until it is told to be over, and as used once it is in a sum. Where a batch is told
whole both happen at once. In pieces a sum has to come no later than the first piece of its events: then a call may
count twice for some milliseconds (docs/decisions/0044 says what becomes of refusals), and never not at all.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from operator import itemgetter

from gateway.usage_events import UsageEvent, WindowUsage

_occurred_of = itemgetter(UsageEvent._fields.index("occurred_ms"))
_cost_of = itemgetter(UsageEvent._fields.index("cost_microcents"))

Part = tuple[Sequence[UsageEvent], list[WindowUsage]]


class SumsFirst:
    """All sums, then the events."""

    def __init__(self, events: Sequence[UsageEvent], usages: Iterable[WindowUsage]) -> None:
        self._events = events
        self._usages = iter(usages)
        self._at = 0

    @property
    def left(self) -> int:
        """How many events were not given."""
        return len(self._events) - self._at

    def next(self, count: int) -> Part:
        """So many sums and events."""
        sums = list(islice(self._usages, count))
        piece = self._events[self._at : self._at + count - len(sums)]
        self._at += len(piece)
        return piece, sums

    def rest(self) -> Part:
        """All that was not given."""
        sums, at = list(self._usages), self._at
        self._at = len(self._events)
        return self._events[at:], sums


class SumsThatRise:
    """With each piece the sums of its accounts, less what later pieces cost, which is still held: no call counts twice.

    Right only where a sum contains each of the events and Redis holds them: none was there before, and none has terms.
    """

    def __init__(self, events: Sequence[UsageEvent], usages: Sequence[WindowUsage]) -> None:
        self._events = events
        self._usages = usages
        self._at = 0
        self._accounts = {usage.account_id for usage in usages}
        self._left = dict(self._costs(events))
        self._first_ms = min(map(_occurred_of, events))
        self._last_ms = max(map(_occurred_of, events))

    @property
    def left(self) -> int:
        """How many events were not given."""
        return len(self._events) - self._at

    def next(self, count: int) -> Part:
        """So many events and their sums."""
        piece = self._events[self._at : self._at + count]
        self._at += len(piece)
        costs = self._costs(piece)
        for account_id, cost in costs.items():
            self._left[account_id] -= cost
        return piece, [self._without_later(usage) for usage in self._usages if usage.account_id in costs]

    def rest(self) -> Part:
        """All that was not given."""
        return self.next(len(self._events))

    def _without_later(self, usage: WindowUsage) -> WindowUsage:
        account_id, kind, start_ms, end_ms, used_microcents = usage
        if start_ms <= self._first_ms and self._last_ms < end_ms:
            return WindowUsage(account_id, kind, start_ms, end_ms, used_microcents - self._left[account_id])
        return usage  # a window that has none of the events, or perhaps not all: those then count twice

    def _costs(self, events: Sequence[UsageEvent]) -> Mapping[str, int]:
        if len(self._accounts) == 1:
            return dict.fromkeys(self._accounts, sum(map(_cost_of, events)))
        costs: defaultdict[str, int] = defaultdict(int)
        for event in events:
            costs[event.account_id] += event.cost_microcents
        return costs
