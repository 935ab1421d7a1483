"""What one script call carries: asks and what has been settled, as the JSON that ``lua/input.lua`` describes.

Texts that stay the same from call to call are kept: an account's version and windows (``Known``), a policy's limits
under a plan (``Shape``). A batch names each once and its calls by number, so a call costs one short string.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from hashlib import sha256
from typing import TYPE_CHECKING

from gateway.policy.budgets import BudgetLimit
from gateway.policy.free_tier import FreeTier
from gateway.policy.periods import Window, window_at
from gateway.policy.rate_limit_fields import told_places
from gateway.policy.rules import Plan, Policy
from gateway.policy.verdicts import BudgetExceeded, LimitLeft, Verdict
from gateway.policy.weights import usual_weight
from gateway.usage_events import Terms, terms_at

if TYPE_CHECKING:
    from gateway.accounts import Account
    from gateway.admission_lane import Lane

# In Redis' keys; the window's length is part of the key, see lua/limits.lua.
_LETTERS = {"fixed_window": "f", "sliding_window": "s", "token_bucket": "t", "concurrency": "c"}
# Like calls held as one entry at most: Redis' Lua has operations on the bits of 32-bit integers with a sign.
GROUP_MAX = 30
# What may stand in JSON and in a key as it is. Anything else (long, not ASCII, not even Unicode) goes as its digest:
# one strange header must not spoil the batch that it travels in.
_plain = re.compile(r"[!#-\[\]-~]{1,128}").fullmatch
_json = json.JSONEncoder(separators=(",", ":")).encode


class Ask:
    """One call that wants to pass. ``rate_keys`` has the key's value for each of ``policy.rate_limits``, and
    ``weights`` what the call weighs in it; None where it weighs what is usual under the policy.

    ``account`` is None for a call of nobody in particular: only rate limits apply, in the partition of the first key.
    ``done`` hears the verdict, once; that may be before ``Admission.ask`` returns.
    """

    __slots__ = (
        "account",
        "admitted_ms",
        "done",
        "doubts",
        "group",
        "has_ended",
        "hold_id",
        "hold_microcents",
        "in_memory",
        "is_repeat",
        "key",
        "known",
        "lane",
        "place",
        "policy",
        "rate_denial",
        "rate_keys",
        "retries",
        "shape",
        "units",
        "weights",
    )

    def __init__(
        self,
        account: "Account | None",
        hold_microcents: int,
        policy: Policy,
        rate_keys: tuple[str, ...],
        done: Callable[[Verdict], None],
        weights: tuple[int, ...] | None = None,
        key: str = "",
    ) -> None:
        self.account = account
        self.hold_microcents = hold_microcents
        self.policy = policy
        self.rate_keys = rate_keys
        self.done = done
        self.weights = weights
        self.key = key  # a digest of the call's idempotency key
        self.is_repeat = False  # the key is billed: the call holds nothing
        # Admission's own from here on.
        self.lane: Lane
        self.known: Known | None
        self.shape: Shape
        self.hold_id: str  # blank where nothing is to be held
        self.units = 0  # of the policy's free tier, that it counts at most, or is known to count
        self.retries = 0
        self.doubts = 0  # how often a refusal was not taken at its word
        # Of one that holds something, from its admission to its settling.
        self.group: Group | None = None
        self.place: int  # its bit in the group's masks
        self.admitted_ms: int
        self.has_ended = False  # its slots are free, and ``hold_microcents`` is what it costs
        # Decided without Redis: whether it counts in rate limits in memory, or which one refuses it, for how many ms.
        self.in_memory = False
        self.rate_denial: tuple[int, int] | None = None

    @property
    def weighs(self) -> tuple[int, ...]:
        """What it takes from each limit."""
        return self.shape.weights if self.weights is None else self.weights

    def held_row(self) -> list[object]:
        """The hold as ``lua/restore.lua`` wants it."""
        account = "" if self.account is None else self.account.account_id
        slots = [] if self.has_ended else self.shape.slot_keys(self.rate_keys)
        row: list[object] = [self.hold_id, account, self.hold_microcents, self.admitted_ms, self.policy.name, slots]
        terms = self.terms(self.admitted_ms)
        if terms is not None:
            tier = self.shape.tier
            row += [[False if term is None else term for term in terms], *(tier.price if tier is not None else (0, 1))]
        return row

    def terms(self, at_ms: int) -> Terms | None:
        """What the ledger must know of a call that is admitted at ``at_ms``; None for nearly all."""
        if self.shape.tier is None and not self.key:
            return None
        return terms_at(self.policy, at_ms, self.units, self.key)


class Group:
    """Like calls of one batch, which Redis has as one entry (``lua/groups.lua``); ``ids`` with commas between."""

    __slots__ = ("ids", "name")

    def __init__(self, name: str, ids: str) -> None:
        self.name = name
        self.ids = ids


class _Named:
    """A text that a batch names once, and its calls by number."""

    __slots__ = ("_batch", "_index", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self._batch = 0
        self._index = 0

    def index_in(self, batch: int, texts: list[str]) -> int:
        """The number of this text in ``batch``, whose texts are ``texts``; beginning with 1."""
        if self._batch != batch:
            self._batch = batch
            texts.append(self.text)
            self._index = len(texts)
        return self._index


class Known:
    """What admission remembers of an account: its windows now, and the texts that say so to the script."""

    __slots__ = (
        "_batch",
        "_head",
        "_index",
        "_of_tiers",
        "_tail",
        "_windows_text",
        "account_id",
        "exhausted",
        "generation",
        "is_outdated",
        "lane",
        "limits",
        "rolling_until_s",
        "shape",
        "version",
        "windows",
    )

    def __init__(
        self,
        account: "Account",
        lane: "Lane | None",
        windows: tuple[Window, ...],
        rolling_until_s: float = 0.0,
        version: int = 0,
    ) -> None:
        """``lane`` is None where nothing is asked by it, but only what it says to the script is wanted.

        ``version``: that of facts which cannot be read, and in whose place those of the account count.
        """
        self.account_id = account.account_id
        if lane is not None:
            self.lane = lane
        self._of_tiers: dict[str, KnownOfTier] | None = None
        # Of another generation: what Redis has of it may be from an old snapshot, and it is seeded first.
        self.generation = lane.generation if rolling_until_s and lane is not None else account.seeded
        self.version = max(version, account.version)
        self.is_outdated = self.version > account.version
        self.limits = account.limits
        self.windows = windows
        self.shape: Shape | None = None  # that the last call had
        # What the last call was told, if that was that a budget is spent.
        self.exhausted: BudgetExceeded | None = None
        # Loop time until which the script is told that Postgres cannot seed a window that has just begun.
        self.rolling_until_s = rolling_until_s
        self._windows_text = _windows_text(self.limits, windows)
        self._head = f"{_json(account.account_id)},{self.version},"
        self._tail = ",1,0" if rolling_until_s else ",0,0"
        self._batch = 0
        self._index = 0

    def index_in(self, batch: int, texts: list[str], windows: dict[str, int]) -> int:
        """As ``_Named.index_in``; ``windows`` are the texts of the windows in the batch, and their numbers.

        Accounts with the same limits have the same.
        """
        if self._batch != batch:
            self._batch = batch
            place = windows.get(self._windows_text)
            if place is None:
                place = windows[self._windows_text] = len(windows) + 1
            texts.append(f"{self._head}{place}{self._tail}")
            self._index = len(texts)
        return self._index

    def has(self, known: "Known") -> bool:
        """Whether ``known`` is this, or this with a free tier."""
        return known is self or (self._of_tiers is not None and known in self._of_tiers.values())

    def of_tier(self, account: "Account", shape: "Shape", tier: FreeTier, at_ms: int) -> "KnownOfTier":
        """The same with the free tier of ``shape``, in the window that holds ``at_ms``."""
        if self._of_tiers is None:
            self._of_tiers = {}
        known = self._of_tiers.get(shape.tier_kind)
        if known is None or known.tier is not tier:
            known = self._of_tiers[shape.tier_kind] = KnownOfTier(self, account, shape, tier, at_ms)
        return known

    def covers(self, at_ms: int) -> bool:
        """Whether these are still the windows."""
        return all(window.start_ms <= at_ms < window.end_ms for window in self.windows)


class KnownOfTier(Known):
    """The same for calls under a policy with a free tier, whose window goes with the account's."""

    __slots__ = ("tier", "window")

    def __init__(self, base: Known, account: "Account", shape: "Shape", tier: FreeTier, at_ms: int) -> None:
        super().__init__(account, getattr(base, "lane", None), base.windows, base.rolling_until_s, base.version)
        self.tier = tier
        self.window = tier.window_at(at_ms)
        if not base.rolling_until_s:
            # Each count is told to Redis by itself: one that was not told may be there from an old snapshot.
            self.generation = min(base.generation, account.seeded_tiers.get(shape.tier_kind, 0))
        row = [shape.tier_kind, self.window.start_ms, self.window.end_ms, tier.units, *tier.price]
        self._tail = f",{1 if base.rolling_until_s else 0},{_json(row)}"

    def covers(self, at_ms: int) -> bool:
        return self.window.start_ms <= at_ms < self.window.end_ms and super().covers(at_ms)


def windows_at(limits: Iterable[BudgetLimit], at_ms: int) -> tuple[Window, ...]:
    """The window of each limit that holds ``at_ms``."""
    return tuple(window_at(limit.period, limit.time_zone, limit.week_start, at_ms) for limit in limits)


# As many as plans and periods make; an account with limits of its own is looked up once, when it is met.
@lru_cache(256)
def _windows_text(limits: tuple[BudgetLimit, ...], windows: tuple[Window, ...]) -> str:
    """The same text for all accounts with the same limits."""
    return _json(
        [
            [limit.kind, window.start_ms, window.end_ms, limit.hard_limit_microcents]
            for limit, window in zip(limits, windows, strict=True)
        ]
    )


class Shape(_Named):
    """A policy under a plan: its rate limits with the plan's numbers."""

    __slots__ = ("_keys", "_told", "has_groups", "has_slots", "limits", "policy", "tier", "tier_kind", "weights")

    def __init__(self, policy: Policy, plan: Plan | None) -> None:
        self.policy = policy  # kept: shapes are found by the id of their policy
        self.tier = policy.cost.free if plan is not None else None  # who has no plan is nobody we know
        self.tier_kind = "" if self.tier is None else self.tier.kind(policy.name)
        overrides: Mapping[str, int] = plan.rate_limits if plan else {}
        self.limits = tuple(overrides.get(limit.name, limit.limit) for limit in policy.rate_limits)
        self.weights = tuple(usual_weight(limit.weight) for limit in policy.rate_limits)
        self.has_slots = any(limit.algorithm == "concurrency" for limit in policy.rate_limits)
        rows = []
        self._keys: list[str] = []
        for limit, number in zip(policy.rate_limits, self.limits, strict=True):
            letter = _LETTERS[limit.algorithm]
            key = f"r:{letter}:{policy.name}:{limit.name}:{limit.window_ms}:"
            # A plan that changes the limit changes a burst that was not set with it.
            rows.append([limit.algorithm, number, limit.window_ms, limit.burst or number, key])
            self._keys.append(key)
        self._told = []  # the place of each limit that is told, its name, what it allows, and its window
        for place in told_places(policy):
            limit = policy.rate_limits[place]
            self._told.append((place, (limit.name, self.limits[place], limit.window_ms)))
        # Calls that cost what they hold, nearly always: none leaves its group before it is over.
        costs_as_held = not policy.cost.parts and policy.cost.hold_microcents == policy.cost.fixed_microcents
        self.has_groups = costs_as_held and self.tier is None and not self.has_slots and not self._told
        more = [int(bool(self._told)), policy.idempotency.life_ms] if policy.idempotency else [1] if self._told else []
        super().__init__(_json([policy.name, rows, self.weights, *more]))

    def left(self, told: Sequence[int]) -> tuple[LimitLeft, ...]:
        """What an admitted call hears of its limits; ``told`` is what the script says of all: left, ms, left, ms, …"""
        return tuple([LimitLeft(*limit, told[2 * place], told[2 * place + 1]) for place, limit in self._told])

    def slot_keys(self, values: tuple[str, ...]) -> list[str]:
        """Redis' keys, less the partition's prefix, of the concurrency limits that a call with these values is in."""
        limits = zip(self.policy.rate_limits, self._keys, values, strict=True)
        return [key + key_value(value) for limit, key, value in limits if limit.algorithm == "concurrency"]


def batch_text(number: int, epoch: int, beat: str, seq_known: int, asks: Sequence[Ask], settled: str) -> str:
    """The script's first argument. ``number`` is higher than that of every earlier batch of the process.

    ``beat`` is the generation that the worker knows, or blank where it need not say that it lives.
    """
    accounts: list[str] = []
    shapes: list[str] = []
    windows: dict[str, int] = {}
    calls: list[str] = []
    hold_ids: list[str] = []
    count = 0
    first: Ask | None = None  # of calls alike, of which there are ``count``
    for at, ask in enumerate(asks):
        if first is not None:
            if (
                ask.known is first.known
                and ask.shape is first.shape
                and ask.hold_microcents == first.hold_microcents
                and ask.rate_keys == first.rate_keys
                and ask.weights == first.weights
                and ask.key == first.key
                and count < GROUP_MAX
            ):
                count += 1
                continue
            calls.append(_calls_text(number, asks[at - count : at], accounts, shapes, windows, hold_ids))
        first = ask
        count = 1
    if first is not None:
        calls.append(_calls_text(number, asks[len(asks) - count :], accounts, shapes, windows, hold_ids))
    said = f'"{beat}"' if beat else "0"
    parts = f"[{','.join(accounts)}],[{','.join(shapes)}],[{','.join(calls)}],{settled or '0'}"
    ids = '","'.join(hold_ids)
    quoted = f'"{ids}"' if hold_ids else ""
    return f"[{epoch},{said},{parts},{seq_known},{number},[{','.join(windows)}],[{quoted}]]"


def _calls_text(
    number: int,
    alike: Sequence[Ask],
    accounts: list[str],
    shapes: list[str],
    windows: dict[str, int],
    hold_ids: list[str],
) -> str:
    ask, count = alike[0], len(alike)
    if count > 1 and ask.shape.has_groups and ask.known is not None and ask.hold_id and not ask.key:
        hold_ids.append(_grouped(alike))
        count = -count
    else:
        hold_ids += [one.hold_id for one in alike]
    known, keys = ask.known, ask.rate_keys
    account = 0 if known is None else known.index_in(number, accounts, windows)
    shape = ask.shape.index_in(number, shapes)
    # Nearly every limit is the account's.
    is_own = known is not None and (keys == (known.account_id,) or not keys)
    values = "0" if is_own else f"[{_quoted(keys)}]"
    weights = "0" if ask.weights is None else f"[{','.join(map(str, ask.weights))}]"
    digest = f'"{ask.key}"' if ask.key else "0"
    return f"{account},{ask.hold_microcents},{shape},{weights},{values},{count},{ask.units},{digest}"


def _grouped(asks: Sequence[Ask]) -> str:
    """Makes these calls a group; returns their ids."""
    ids = ",".join([ask.hold_id for ask in asks])
    group = Group(f"g{asks[0].hold_id}", ids)
    place = 1
    for ask in asks:
        ask.group = group
        ask.place = place
        place += place
    return ids


def key_value(value: str) -> str:
    """The value of a rate limit's key as it stands in Redis' key."""
    if _plain(value):
        return value
    return f"sha256-{sha256(value.encode('utf-8', 'surrogatepass')).hexdigest()}"


def _quoted(values: tuple[str, ...]) -> str:
    if len(values) == 1 and _plain(values[0]):  # nearly every call
        return f'"{values[0]}"'
    return ",".join(f'"{key_value(value)}"' for value in values)
