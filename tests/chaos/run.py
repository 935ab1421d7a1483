"""A run: episodes of load and faults, one fault after the other with recovery between them, and a check at each end.

An episode with single faults must leave nothing wrong. In one with double faults two come at about the same time; its
theme says what they are faults of, and what they cost is counted by it. So is it where some workers reach Redis and
others do not.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from tests.chaos import checker
from tests.chaos.checker import Cut, Findings
from tests.chaos.faults import IDLE, KINDS, NONE, POSTGRES, PROCESS, REDIS, SPLIT, Kind, both
from tests.chaos.fleet import HOLD_TTL_S
from tests.chaos.load import Account, introduce, spend_all
from tests.chaos.world import World

# Accounts that are new together; as many are enough for a few faults until most budgets are spent.
WAVE = 12
FAULTS_PER_WAVE = 4
SPEND_MAX = 400
CALM_S = 0.4
SETTLED_S = 3 * HOLD_TTL_S + 15
SINGLE = "one at a time"
_ALL = frozenset(checker.WHAT)
# What two faults at once must not lead to. docs/reliability.md says what the others can.
STRICT: dict[str, frozenset[str]] = {
    SINGLE: _ALL,
    SPLIT: _ALL - {"over"},
    "redis twice": _ALL,
    "postgres twice": _ALL,
    "postgres, process": frozenset({"double", "held", "drift", "unspent"}),
    "redis, process": frozenset({"double", "held", "drift", "unspent"}),
    "redis, postgres": frozenset({"missing", "double", "held", "drift"}),
}
# Two of each at once; one alone of SPLIT.
_PAIRS = {
    "redis twice": (REDIS, REDIS),
    "postgres twice": (POSTGRES, POSTGRES),
    "postgres, process": (POSTGRES, PROCESS),
    "redis, process": (REDIS, PROCESS),
    "redis, postgres": (REDIS, POSTGRES),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Faults until there were so many and it has been so long. Each ``double_every``-th episode has another theme than
    single faults."""

    seed: int
    injections: int
    seconds: float = 0.0
    per_episode: int = 12
    double_every: int = 0
    only: tuple[str, ...] = ()  # kinds whose names have one of these in them


@dataclass(slots=True, kw_only=True)
class Injection:
    number: int
    theme: str
    kind: str
    detail: str
    lasted_s: float
    recovered_s: float


@dataclass(slots=True)
class Outcome:
    """All there is to tell of a run. ``findings`` by theme."""

    findings: dict[str, Findings] = field(default_factory=dict)
    injections: list[Injection] = field(default_factory=list)
    seconds: float = 0.0
    skipped: list[str] = field(default_factory=list)

    @property
    def faults(self) -> list[str]:
        """What must not be, by theme."""
        return [
            f"{theme}: {what} {found.counts[what]}"
            for theme, found in self.findings.items()
            for what in sorted(STRICT[theme])
            if found.counts[what]
        ]


class Run:
    """``say`` hears a line for each thing that happens."""

    def __init__(self, world: World, plan: Plan, say: Callable[[str], None]) -> None:
        self.world = world
        self.outcome = Outcome()
        self._plan = plan
        self._say = say
        self._chance = random.Random(plan.seed)
        self._started_s = time.monotonic()
        self._load = world.load()
        self._accounts: list[Account] = []  # of this episode
        self._cut: list[Cut] = []
        self._findings = Findings()
        self._theme = SINGLE

    async def run(self) -> Outcome:
        kinds = self._kinds()
        episode = doubles = 0
        while not self._is_enough():
            episode += 1
            theme = SINGLE
            if self._plan.double_every > 0 and episode % self._plan.double_every == 0:
                theme = (*_PAIRS, SPLIT)[doubles % (len(_PAIRS) + 1)]
                doubles += 1
            left = self._plan.injections - len(self.outcome.injections)
            count = self._plan.per_episode if left <= 0 else min(self._plan.per_episode, left)
            await self._episode(episode, theme, self._schedule(kinds, count, theme))
        self.outcome.seconds = time.monotonic() - self._started_s
        return self.outcome

    def _is_enough(self) -> bool:
        long_enough = time.monotonic() - self._started_s >= self._plan.seconds
        return long_enough and len(self.outcome.injections) >= self._plan.injections

    def _kinds(self) -> list[Kind]:
        wanted = [kind for kind in KINDS if not self._plan.only or any(word in kind.name for word in self._plan.only)]
        possible = [kind for kind in wanted if not kind.needs_small_disks or self.world.has_small_disks]
        self.outcome.skipped = [kind.name for kind in wanted if kind not in possible]
        return possible

    def _schedule(self, kinds: Sequence[Kind], count: int, theme: str) -> list[Kind]:
        """Faults of our own processes come last: their holds are waited for at the end in any case."""
        if theme in _PAIRS:
            one, other = ([kind for kind in kinds if kind.part == part] for part in _PAIRS[theme])
            pairs = zip(self._drawn(one, count), self._drawn(other, count), strict=True)
            return [both(*(self._chance.sample(pair, 2))) for pair in pairs]
        fitting = [kind for kind in kinds if (kind.part == SPLIT) == (theme == SPLIT)]
        return sorted(self._drawn(fitting, count), key=lambda kind: kind.part == PROCESS)

    def _drawn(self, kinds: Sequence[Kind], count: int) -> list[Kind]:
        """Each as often as the others, in any order."""
        drawn: list[Kind] = []
        while len(drawn) < count and kinds:
            deck = [kind for kind in kinds if not kind.seldom or self._chance.random() < 0.5]
            drawn += self._chance.sample(deck, min(len(deck), count - len(drawn)))
        return drawn

    # --- one episode

    async def _episode(self, number: int, theme: str, kinds: Sequence[Kind]) -> None:
        self._findings = self.outcome.findings.setdefault(theme, Findings())
        self._theme = theme
        self._accounts, self._cut = [], []
        before = len(self._findings.said)
        for place, kind in enumerate(kinds):
            if place % FAULTS_PER_WAVE == 0 or self.world.lost_workers:
                await self._new_wave()
            await self._inject(kind)
        await self._load.end()
        casts = await self._check()
        for line in self._findings.said[before:]:
            self._say(f"  {line}")
        self._say(
            f"episode {number} ({theme}): {casts} casts, "
            f"{sum(len(account.calls) for account in self._accounts)} calls, "
            f"{len(self._findings.said) - before} lines of findings, {time.monotonic() - self._started_s:.0f} s"
        )

    async def _new_wave(self) -> None:
        """All workers meet new accounts, while both stores are there. One that has never met an account, and cannot ask
        whose a key is, cannot know its budget either."""
        await self._load.end()
        wave = await self.world.new_accounts(WAVE)
        older = self._load.accounts[:WAVE] if self._accounts else []
        self._accounts += wave
        await introduce(self.world.clients, [*wave, *(older if self.world.lost_workers else [])])
        self.world.lost_workers = False
        self._load.accounts = [*wave, *older]
        self._load.start()

    async def _inject(self, kind: Kind) -> None:
        world = self.world
        if kind.lone:
            await self._until("held", world.without_orphans())
        await asyncio.sleep(CALM_S * self._chance.uniform(0.5, 1.5))
        began_s, began = time.time(), time.monotonic()
        number = len(self.outcome.injections) + 1
        detail = await kind.act(world, random.Random(self._chance.random()))
        over = time.monotonic()
        trouble = await self._until("wrong", world.recovered())
        if kind.forgets and not trouble and self._theme == SINGLE:
            # Before, a Postgres that goes away is a second fault: nobody could tell Redis.
            trouble = await self._until("wrong", world.told_again(self._accounts))
        recovered_s = time.monotonic() - over
        if kind.cuts != NONE:
            self._cut.append(Cut(from_s=began_s, until_s=time.time() + 1.0, is_idle=kind.cuts == IDLE))
        self.outcome.injections.append(
            Injection(
                number=number,
                theme=self._theme,
                kind=kind.name,
                detail=detail,
                lasted_s=over - began,
                recovered_s=recovered_s,
            )
        )
        clock = time.strftime("%H:%M:%S", time.localtime(began_s))
        self._say(f"#{number} {clock} {kind.name}: {detail}; {trouble or f'recovered in {recovered_s:.2f} s'}")

    async def _until(self, what: str, waiting: Awaitable[str]) -> str:
        trouble = await waiting
        if trouble:
            self._findings.find(what, trouble)
        return trouble

    # --- and its check

    async def _check(self) -> int:
        world, findings = self.world, self._findings
        connection = await world.postgres.connect()
        try:
            await self._nothing_held(connection)
            fitting = [account for account in self._accounts if account.plan == "unlimited"]
            await spend_all(world.clients, fitting, SPEND_MAX)
            # Of a Redis that went back to older sums nothing is believed, but they stay there until an account calls.
            await introduce(world.clients[:1], self._accounts)
            await self._nothing_held(connection)
            await asyncio.to_thread(world.record.read)
            events = await checker.read_events(connection, self._accounts)
            casts = 0
            for account in self._accounts:
                rows = events[account.account_id]
                casts += sum(len(world.record.casts.get(call.call_id, ())) for call in account.calls)
                checker.check_ledger(findings, account, world.record.casts, rows)
                checker.check_answers(findings, account, world.record.casts, rows, self._cut)
                if account.plan == "unlimited":
                    checker.check_spent(findings, account, rows)
            findings.casts += casts
            await checker.check_drift(
                findings, connection, self._accounts, config=world.config, environment=world.environment
            )
        finally:
            await connection.close()
        return casts

    async def _nothing_held(self, connection: object) -> None:
        deadline_s = time.monotonic() + SETTLED_S
        while True:
            held = await asyncio.to_thread(checker.holds_in_redis, self.world.redis, self._accounts)
            held += await checker.holds_in_postgres(connection, self._accounts)  # type: ignore[arg-type]
            held += [str(path) for gateway in self.world.gateways for path in gateway.spool.iterdir()]
            if not held:
                return
            if time.monotonic() > deadline_s:
                self._findings.find("held", f"{len(held)} are left: {held[:10]}", len(held))
                return
            await asyncio.sleep(0.1)
