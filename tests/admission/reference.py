"""What the script is to decide, said plainly: no batches, no stored sums, every list walked from end to end."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from gateway.policy.rules import RateLimit

SLICES = 60
SLOT_WAIT_MS = 1000

ADMITTED = 0
BUDGET, RATE, STALE, COLD, OUTSIDE = 1, 2, 3, 4, 5
Outcome = int | list[int]
# kind, start_ms, end_ms, hard limit
WindowRow = tuple[str, int, int, int]


@dataclass(kw_only=True)
class Call:
    account_id: str = ""  # blank: a call of nobody
    version: int = 0
    windows: Sequence[WindowRow] = ()
    amount: int = 0
    hold_id: str = ""
    limits: Sequence[tuple[RateLimit, str]] = ()  # with the key's value
    weight: int = 1  # in each limit, but where ``weights`` says otherwise
    weights: Sequence[int] | None = None
    rolling: bool = False
    tells: bool = False  # its policy tells what its limits have left


@dataclass
class Account:
    version: int | None = None
    used: dict[str, tuple[int, int]] = field(default_factory=dict)  # kind -> start_ms, used
    rolled: set[str] = field(default_factory=set)


@dataclass
class Held:
    account_id: str
    amount: int
    admitted_ms: int
    slots: list[tuple[str, str]]


class Reference:
    """One partition of Redis."""

    def __init__(self) -> None:
        self.accounts: dict[str, Account] = {}
        self.holds: dict[str, Held] = {}
        self.passed: dict[tuple[str, str], list[tuple[int, int]]] = {}  # limiter -> (when, weight) of each call

    def held(self, account_id: str) -> int:
        return sum(hold.amount for hold in self.holds.values() if hold.account_id == account_id)

    # --- settle

    def seed(self, account_id: str, version: int, usage: Mapping[str, tuple[int, int]], *, exactly: bool) -> None:
        account = self.accounts.setdefault(account_id, Account())
        if account.version is None or account.version < version or exactly:
            account.version = version
        if exactly:
            account.used.update(usage)
        self.use(account_id, usage)

    def use(self, account_id: str, usage: Mapping[str, tuple[int, int]]) -> None:
        account = self.accounts.setdefault(account_id, Account())
        for kind, window in usage.items():
            present = account.used.get(kind)
            if present is not None and present[0] == window[0]:
                account.rolled.discard(kind)
            account.used[kind] = window if present is None else max(present, window)

    def adjust(self, hold_id: str, actual: int) -> None:
        if hold_id in self.holds:
            self.holds[hold_id].amount = actual
            self.holds[hold_id].slots = []

    def remove(self, hold_id: str, *, posted: bool) -> None:
        hold = self.holds.pop(hold_id, None)
        if hold is None or not posted or hold.amount == 0:
            return
        account = self.accounts[hold.account_id]
        for kind in account.rolled:
            start, used = account.used[kind]
            if hold.admitted_ms >= start:
                account.used[kind] = start, used + hold.amount

    # --- ask

    def decide(self, call: Call, now: int) -> Outcome:
        if call.account_id:
            account = self.accounts.setdefault(call.account_id, Account())
            unknown = self._facts(account, call, now)
            if unknown is not None:
                return unknown
            for place, (kind, _, _, hard_limit) in enumerate(call.windows if call.amount > 0 else ()):
                taken = account.used[kind][1] + self.held(call.account_id)
                if taken + call.amount > hard_limit:
                    return [BUDGET, place, taken]
        weights = call.weights or [call.weight] * len(call.limits)
        for place, (limit, value) in enumerate(call.limits):
            wait = self.wait(limit, value, weights[place], now)
            if wait > 0:
                return [RATE, place, wait]
        slots = []
        for (limit, value), weight in zip(call.limits, weights, strict=True):
            self.passed.setdefault((limit.name, value), []).append((now, weight))
            if limit.algorithm == "concurrency":
                slots.append((limit.name, value))
        if call.hold_id:
            self.holds[call.hold_id] = Held(call.account_id, call.amount, now, slots)
        if call.tells:
            return [ADMITTED, [number for limit, value in call.limits for number in self.left(limit, value, now)]]
        return ADMITTED

    def _facts(self, account: Account, call: Call, now: int) -> Outcome | None:
        if account.version is None:
            return [COLD]
        if account.version > call.version:
            return [STALE, account.version]
        for kind, start, end, _ in call.windows:
            if not start <= now < end:
                return [OUTSIDE]
            present = account.used.get(kind)
            if present is None or present[0] > start or (present[0] < start and not call.rolling):
                return [COLD]
            if present[0] < start:
                account.used[kind] = start, 0
                account.rolled.add(kind)
            elif kind in account.rolled and not call.rolling:
                return [COLD]
        account.version = call.version
        return None

    def wait(self, limit: RateLimit, value: str, weight: int, now: int) -> int:
        """After how many ms a call of this weight could pass."""
        passed = self.passed.get((limit.name, value), [])
        if limit.algorithm == "fixed_window":
            ends = (now // limit.window_ms + 1) * limit.window_ms
            count = sum(w for at, w in passed if at // limit.window_ms == now // limit.window_ms)
            return 0 if count + weight <= limit.limit else ends - now
        if limit.algorithm == "sliding_window":
            return _sliding_wait(limit, passed, weight, now)
        if limit.algorithm == "token_bucket":
            return _bucket_wait(limit, passed, weight, now)
        under_way = sum((limit.name, value) in hold.slots for hold in self.holds.values())
        return 0 if under_way < limit.limit else SLOT_WAIT_MS

    def left(self, limit: RateLimit, value: str, now: int) -> tuple[int, int]:
        """How much may pass yet, and when there is more: tried out, weight by weight and millisecond by millisecond."""
        least = 0
        while self.wait(limit, value, least + 1, now) == 0:
            least += 1
        if limit.algorithm == "fixed_window":
            return least, (now // limit.window_ms + 1) * limit.window_ms - now
        if limit.algorithm == "sliding_window":
            slice_ms = -(-limit.window_ms // SLICES)
            slices = -(-limit.window_ms // slice_ms)
            counted = [at // slice_ms for at, _ in self.passed[limit.name, value]]
            oldest = min(one for one in counted if one >= now // slice_ms - slices)
            return least, (oldest + slices + 1) * slice_ms - now
        if limit.algorithm == "token_bucket":
            return least, self.wait(limit, value, limit.burst or limit.limit, now)
        return least, -1


def _sliding_wait(limit: RateLimit, passed: list[tuple[int, int]], weight: int, now: int) -> int:
    slice_ms = -(-limit.window_ms // SLICES)
    slices = -(-limit.window_ms // slice_ms)

    def counted(at_slice: int) -> int:
        return sum(w for at, w in passed if at_slice - slices <= at // slice_ms <= at_slice)

    if counted(now // slice_ms) + weight <= limit.limit:
        return 0
    if weight > limit.limit:
        return limit.window_ms
    later = now // slice_ms + 1
    while counted(later) + weight > limit.limit:
        later += 1
    return later * slice_ms - now


def _bucket_wait(limit: RateLimit, passed: list[tuple[int, int]], weight: int, now: int) -> int:
    burst = limit.burst or limit.limit
    if limit.limit == 0 or weight > burst:
        return limit.window_ms
    tokens, last = Fraction(burst), 0
    per_ms = Fraction(limit.limit, limit.window_ms)
    for at, taken in passed:
        tokens = min(Fraction(burst), tokens + (at - last) * per_ms) - taken
        last = at
    tokens = min(Fraction(burst), tokens + (now - last) * per_ms)
    if tokens >= weight:
        return 0
    missing = (weight - tokens) / per_ms
    return -(-missing.numerator // missing.denominator)
