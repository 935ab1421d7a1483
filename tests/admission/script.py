"""The script called directly, batch by batch, at a time of the test's choosing."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import redis

from gateway.admission_batch import Ask, Known, Shape, batch_text
from gateway.admission_settle import Settled
from gateway.policy.budgets import BudgetLimit
from gateway.policy.periods import Window
from gateway.policy.rules import Policy
from gateway.policy.verdicts import Verdict
from gateway.redis_store import ADMIT, ORPHANS
from tests.admission.reference import Call, Outcome
from tests.redis_accounts import fields_at, holds_in

PREFIX = "cg:{0}:"
WORKERS = f"{PREFIX}workers"
_numbers = iter(range(1, 1 << 62))


class Script:
    """The batch script on a real Redis, as the worker ``worker_id``."""

    def __init__(self, url: str, worker_id: str = "w1") -> None:
        self.redis = redis.Redis.from_url(url, decode_responses=True)
        self.worker_id = worker_id
        self._registered = self.redis.register_script(ADMIT.source)

    def __call__(
        self,
        calls: Sequence[Call] = (),
        settled: Settled | None = None,
        *,
        now: int | None,
        epoch: int = 1,
        beat: bool = False,
    ) -> list[Outcome]:
        outcomes: list[Outcome] = []
        for outcome in self.reply(calls, settled, now=now, epoch=epoch, beat=beat)[1:]:
            outcomes += [0] * outcome if isinstance(outcome, int) and outcome else [outcome]
        return outcomes

    def reply(
        self,
        calls: Sequence[Call] = (),
        settled: Settled | None = None,
        *,
        now: int | None,
        epoch: int = 1,
        beat: bool = False,
    ) -> list[Any]:
        return self.reply_to(asks_of(calls), settled, now=now, epoch=epoch, beat=beat)

    def reply_to(
        self,
        asks: Sequence[Ask],
        settled: Settled | None = None,
        *,
        now: int | None,
        epoch: int = 1,
        beat: bool = False,
    ) -> list[Any]:
        """The reply as it comes; the asks learn which groups they are in."""
        generation = self.join(epoch)
        text = batch_text(next(_numbers), epoch, generation if beat else "", 0, asks, (settled or Settled()).text())
        arguments: list[str | int] = [text] if now is None else [text, now]
        reply: list[Any] = self._registered(keys=[WORKERS, self.book], args=arguments)
        return reply

    def join(self, epoch: int = 1) -> str:
        """As a worker would, but without waiting until calls are admitted. An epoch that is there stays."""
        if not self.redis.exists(self.book):
            self.redis.hset(self.book, "epoch", epoch)
            self.redis.hset(f"{PREFIX}life", "g", "generation")
        return "generation"

    @property
    def book(self) -> str:
        return f"{PREFIX}h:{self.worker_id}"

    def account(self, account_id: str) -> dict[str, str]:
        """What Redis has of the account; blank where it is not there."""
        return fields_at(self.redis, f"{PREFIX}a:{account_id}")

    def holds(self) -> set[str]:
        return holds_in(self.redis, self.book)

    def orphans(
        self, silent_ms: int, worker_id: str = "", *, now: int, cursor: str = "0", page: int = 100
    ) -> list[Any]:
        return cast(
            "list[Any]", self.redis.eval(ORPHANS.source.decode(), 1, WORKERS, silent_ms, worker_id, cursor, page, now)
        )

    def close(self) -> None:
        self.redis.close()


def asks_of(calls: Sequence[Call]) -> list[Ask]:
    """The calls as a worker would ask them."""
    knowns: dict[tuple[str, int, object, bool], Known] = {}
    shapes: dict[Policy, Shape] = {}
    return [_ask(call, knowns, shapes) for call in calls]


def _ask(call: Call, knowns: dict[tuple[str, int, object, bool], Known], shapes: dict[Policy, Shape]) -> Ask:
    policy = Policy(
        name="cast",
        methods=frozenset(),
        path="/",
        rate_limits=tuple(limit for limit, _ in call.limits),
        rate_limit_headers="ietf" if call.tells else "none",
    )
    weights = call.weights or ([call.weight] * len(call.limits) if call.weight != 1 else None)
    values = tuple(value for _, value in call.limits)
    ask = Ask(cast("Any", None), call.amount, policy, values, _ignore, tuple(weights) if weights else None)
    key = (call.account_id, call.version, tuple(call.windows), call.rolling)
    if call.account_id and key not in knowns:
        knowns[key] = known_of(*key)
    ask.known = knowns.get(key)
    ask.shape = shapes.setdefault(policy, Shape(policy, None))
    ask.hold_id = call.hold_id
    return ask


def known_of(account_id: str, version: int, rows: Any, rolling: bool) -> Known:
    """``Known`` with windows that need be none of the calendar."""
    limits = []
    for kind, _, _, hard_limit in rows:
        period, time_zone, week_start = kind.split("/")
        limits.append(
            BudgetLimit(
                period=period, hard_limit_microcents=hard_limit, time_zone=time_zone, week_start=int(week_start)
            )
        )
    account = SimpleNamespace(account_id=account_id, version=version, limits=tuple(limits), seeded=0)
    windows = tuple(Window(start, end) for _, start, end, _ in rows)
    return Known(cast("Any", account), None, windows, 1.0 if rolling else 0.0)


def _ignore(_: Verdict) -> None:
    pass
