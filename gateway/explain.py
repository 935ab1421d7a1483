"""``castgate explain`` and ``POST /explain``: the way of one call through the rules, without making it.

The same functions decide as for a call: routes, Identify, the facts of the account, and lua/explain.lua, which reads
what admit.lua reads and writes nothing. Asked seldom, so each question opens its own connections and closes them.
"""

import asyncio
import json
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import asyncpg

from gateway.accounts import Account, Accounts
from gateway.admission_batch import Ask, Known, Shape, batch_text, windows_at
from gateway.config import Loaded
from gateway.credentials import Credentials
from gateway.database import QUERIES, Database, StoreError
from gateway.hosted.app import hosted_paths
from gateway.hosted.standing import instant
from gateway.identify import Identify
from gateway.metrics import Metrics
from gateway.policy import answers
from gateway.policy.explanation import (
    ADMITTED,
    HOSTED,
    REFUSED,
    RELAYED,
    BudgetStanding,
    Explanation,
    LimitStanding,
    TierStanding,
    denial_of,
    reason_of,
)
from gateway.policy.free_tier import FreeTier
from gateway.policy.routes import Ambiguous, RouteTable
from gateway.policy.rules import SHADOW, Policy
from gateway.policy.verdicts import StoreUnavailable
from gateway.redis_store import LIMIT_PARTS, RedisLostError, read_script
from gateway.redis_topology import topology_of
from gateway.relay import conformance, heads
from gateway.relay.rate_keys import call_weights, rate_key
from gateway.relay.request import Request
from gateway.tasks import Tasks

EXPLAIN = read_script("parts", "input", "reads", "accounts", "limits", "explain", parts=("tiers", *LIMIT_PARTS))
HEADERS_MAX = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A call that somebody might make. ``account_id`` stands in for credentials, which operators do not have."""

    method: str
    target: str
    headers: Sequence[tuple[str, str]] = ()
    key: str | None = None
    session: str | None = None
    account_id: str | None = None
    address: str = "127.0.0.1"


async def explain(loaded: Loaded, question: Question) -> Explanation:
    """What ``loaded`` says to the call. Raises StoreError while Postgres is away, asyncpg.PostgresError."""
    rules, settings = loaded.rules, loaded.settings
    api_key = settings.identity.api_key
    fields = heads.request_fields(api_key.header, api_key.alternative_header)
    request = _request(question, loaded, fields)
    told: dict[str, Any] = {"version": rules.version, "method": question.method, "target": question.target}
    if request.target.partition(b"?")[0] in hosted_paths(metrics_public=settings.metrics.public):
        return Explanation(verdict=HOSTED, why="this is an endpoint of the gateway itself, under no policy", **told)
    if request.refusal is not None:
        why = json.loads(request.refusal.body)
        reason = f"{why['message']} {why['details']}" if "details" in why else why["message"]
        return Explanation(verdict=REFUSED, status=request.refusal.status, why=reason, **told)
    routes = RouteTable(rules.policies)
    match = conformance.match(request, routes)
    if match is None:
        return Explanation(verdict=RELAYED, why="no policy matches: the call is relayed untouched", **told)
    if isinstance(match, Ambiguous):
        why = f"some servers read this path as {match.policy.path}, which policy {match.policy.name} is for"
        if not isinstance(routes.match(request.method, request.target), Ambiguous):
            why = f"a field that some servers take for method or path leads to policy {match.policy.name}"
        return Explanation(verdict=REFUSED, status=400, why=why, policy=match.policy, **told)
    told["policy"] = match
    if request.has_two_credentials:
        return Explanation(verdict=REFUSED, status=400, why="found a credential field twice", **told)
    async with AsyncExitStack() as cleanup:
        tasks = Tasks()
        metrics = Metrics()  # nobody reads these
        cleanup.callback(metrics.close)
        database = Database.from_settings(settings.database, metrics)
        cleanup.push_async_callback(database.close)
        cleanup.push_async_callback(tasks.drain, 0)
        accounts = Accounts(database, lambda: rules, tasks)
        identify = Identify(database, accounts, settings.identity, tasks, metrics)
        doubt = identify.doubt_about(request.authorization, request.api_key, request.cookie)
        if doubt is not None:
            return Explanation(verdict=REFUSED, status=400, why=doubt, **told)
        credentials = identify.credentials_from(request.authorization, request.api_key, request.cookie)
        account, told["identified_by"] = await _account(question, accounts, identify, credentials)
        if account is not None:
            told |= {"account_id": account.account_id, "plan": account.plan}
        elif match.unidentified is None:
            why = "nobody is known by these credentials: the call is relayed, and the service behind decides"
            return Explanation(verdict=RELAYED, why=why, **told)
        policy = match if account is not None else match.unidentified
        assert policy is not None
        lines = request.lines
        account_id = account.account_id if account is not None else ""
        values = tuple(
            rate_key(limit.key, policy, account_id, lines, credentials, question.address.encode())
            for limit in policy.rate_limits
        )
        weights = call_weights(policy, request, fields)
        return await _decided(loaded, policy, account, values, weights, database, told)


async def _decided(
    loaded: Loaded,
    policy: Policy,
    account: Account | None,
    values: tuple[str, ...],
    weights: tuple[int, ...],
    database: Database,
    told: dict[str, Any],
) -> Explanation:
    hold = policy.cost.hold_microcents if account is not None else 0
    shape = Shape(policy, loaded.rules.plan_of(account.plan) if account is not None else None)
    notes: list[str] = []
    taken: list[tuple[int, int]] | None
    try:
        ask = Ask(account, hold, policy, values, _nobody, weights)
        now_ms, held, used, taken, tier = await _standing(loaded, account, ask, shape)
    except RedisLostError as error:
        notes.append(f"Redis is away ({error}): what is under way and the rate limits are not known")
        now_ms, held, used, taken, tier = time.time_ns() // 1_000_000, 0, {}, None, ()
    free: TierStanding | None = None
    if account is not None and shape.tier is not None:
        free = await _tier_standing(account, shape, shape.tier, tier, database, now_ms)
        hold = free.need_microcents
    budgets: list[BudgetStanding] = []
    if account is not None:
        if len(used) < len(account.limits):
            used = {**await _from_ledger(account, database, now_ms), **used}
        windows = windows_at(account.limits, now_ms)
        budgets = [
            BudgetStanding(limit=limit, window=window, used_microcents=used[limit.kind], held_microcents=held)
            for limit, window in zip(account.limits, windows, strict=True)
        ]
    limits = [
        LimitStanding(limit=limit, number=number, value=value, weight=weight, taken=count, wait_ms=wait_ms)
        for limit, number, value, weight, (count, wait_ms) in zip(
            policy.rate_limits, shape.limits, values, weights, taken or [(0, 0)] * len(values), strict=True
        )
    ]
    denial, passed = denial_of(policy, budgets, limits, hold, now_ms)
    notes += passed
    if taken is None:  # admission does not look at the ledger's sums then, but asks the policy
        denial = StoreUnavailable(retry_after_ms=1000) if policy.on_store_failure == "deny" else None
    told |= {"budgets": budgets, "limits": limits, "notes": notes, "denial": denial, "tier": free}
    if denial is None:
        if account is None:
            return Explanation(verdict=RELAYED, why="nobody is known by these credentials; the limits pass", **told)
        why = "every budget and limit passes" if taken is not None else "the policy says on_store_failure: allow"
        return Explanation(verdict=ADMITTED, why=why, **told)
    if policy.mode == SHADOW:
        return Explanation(
            verdict=ADMITTED, why=f"only because the policy is in shadow mode: {reason_of(denial)}", **told
        )
    return Explanation(verdict=REFUSED, status=answers.denial(denial).status, why=reason_of(denial), **told)


def _request(question: Question, loaded: Loaded, fields: heads.Fields) -> Request:
    """The head as the relay would see it."""
    api_key, session = loaded.settings.identity.api_key, loaded.settings.identity.session
    request = Request()
    request.method, request.target = question.method.encode(), question.target.encode("utf-8", "surrogateescape")
    headers = list(question.headers)
    if question.key is not None:
        headers.append((api_key.header, f"{api_key.scheme} {question.key}" if api_key.scheme else question.key))
    if question.session is not None:
        headers.append(("Cookie", f"{session.cookie}={question.session}"))
    for name, value in headers:
        raw_name, raw_value = name.encode(), value.encode("utf-8", "surrogateescape")
        field = fields[raw_name]
        if field == heads.OTHER:
            request.lines.append(b"%b: %b\r\n" % (raw_name, raw_value))
        else:
            request.take_field(field, raw_name, raw_value)
    return request


async def _account(
    question: Question, accounts: Accounts, identify: Identify, credentials: Credentials | None
) -> tuple[Account | None, str | None]:
    """Whose call it is, and by what that is known."""
    if question.account_id is not None:
        account = accounts.get(question.account_id)
        await accounts.load([account])
        return account, "its id"
    if credentials is None:
        return None, None
    owner = await identify.owner_of(credentials)
    if owner is None:
        return None, None
    return owner, "API key" if credentials.api_key or credentials.alternative_key else "session"


def _nobody(_: object) -> None:
    """Nobody waits for the verdict: the ask is only written down."""


async def _standing(
    loaded: Loaded, account: Account | None, ask: Ask, shape: Shape
) -> tuple[int, int, dict[str, int], list[tuple[int, int]], Sequence[int]]:
    """Redis' time, what the account holds, what it used by kind of window (those that Redis knows), how far each
    rate limit is taken and how long it has no room, and the free tier as ``lua/explain.lua`` says it.

    Raises RedisLostError.
    """
    settings = loaded.settings.redis
    name = account.account_id if account is not None else ask.rate_keys[0] if ask.rate_keys else ""
    partition = crc32(name.encode("utf-8", "surrogatepass")) % settings.partitions
    link = await topology_of(settings).connect(partition, lost=lambda _: None)
    try:
        async with asyncio.timeout(settings.connect_timeout_s):
            seconds, micros = await link.call("TIME")
            now_ms = int(seconds) * 1000 + int(micros) // 1000
            windows = windows_at(account.limits, now_ms) if account is not None else ()
            ask.shape, ask.hold_id = shape, ""
            ask.known = Known(account, None, windows) if account is not None else None
            if account is not None and ask.known is not None and shape.tier is not None:
                ask.known, ask.units = ask.known.of_tier(account, shape, shape.tier, now_ms), shape.tier.hold_units
            text = batch_text(-1, 0, "", 0, [ask], "")
            keys = f"cg:{{{partition}}}:workers", f"cg:{{{partition}}}:h:explain"
            now_ms, _, held, used, taken, tier = await link.call("EVAL", EXPLAIN.source, 2, *keys, text)
    except TimeoutError:
        raise RedisLostError(f"no answer within {settings.connect_timeout_s:g} s") from None
    finally:
        link.close()
    limits = account.limits if account is not None else ()
    known = {
        limit.kind: amount
        for limit, window, (start, amount) in zip(limits, windows, used, strict=True)
        if start == window.start_ms
    }
    return now_ms, held, known, [(count, wait_ms) for count, wait_ms in taken], tier


async def _tier_standing(
    account: Account, shape: Shape, tier: FreeTier, told: Sequence[int], database: Database, now_ms: int
) -> TierStanding:
    """By what Redis ``told``, or the ledger where it did not. Raises StoreError."""
    window = tier.window_at(now_ms)
    if told:
        used, held, need = told
    else:
        asked = (account.account_id, shape.policy.name, shape.tier_kind, window.start_ms, window.end_ms)
        [row] = await database.fetch(QUERIES["free_units_used"], *([value] for value in asked))
        used, held = row["used_units"], 0
        over = max(0, min(tier.hold_units, used + tier.hold_units - tier.units))
        need = -(-over * tier.hold_microcents // tier.hold_units)
    return TierStanding(tier=tier, window=window, used_units=used, held_units=held, need_microcents=need)


async def _from_ledger(account: Account, database: Database, now_ms: int) -> dict[str, int]:
    """What the account used by kind of window, summed up from the ledger. Raises StoreError."""
    limits = account.limits
    windows = windows_at(limits, now_ms)
    records = await database.fetch(
        QUERIES["used_in_windows"],
        account.account_id,
        [limit.period for limit in limits],
        [limit.time_zone for limit in limits],
        [limit.week_start for limit in limits],
        [instant(window.start_ms) for window in windows],
        [instant(window.end_ms) for window in windows],
    )
    return {limit.kind: record["used_microcents"] for limit, record in zip(limits, records, strict=True)}


FAULTS = (StoreError, asyncpg.PostgresError)


def question_of(body: object) -> Question:
    """The body of ``POST /explain``. Raises ValueError that says what was expected."""
    if not isinstance(body, dict):
        raise ValueError("expected a JSON object")  # noqa: TRY004  one error for all that a client may get wrong
    texts = {"method", "path", "key", "session", "account", "address"}
    for name, value in body.items():
        if name not in texts | {"headers"}:
            raise ValueError(f"unknown key {json.dumps(name)}, expected {', '.join(sorted(texts))} and headers")
        if name in texts and not (isinstance(value, str) and value.isprintable()):
            raise ValueError(f"{name}: expected a text")
    headers = body.get("headers", {})
    if (
        not isinstance(headers, dict)
        or len(headers) > HEADERS_MAX
        or not all(isinstance(value, str) and value.isprintable() and name.isascii() for name, value in headers.items())
    ):
        raise ValueError(f"headers: expected an object of at most {HEADERS_MAX} names and texts")
    if "path" not in body:
        raise ValueError("path: expected the target of a call, such as /v1/cast")
    return Question(
        method=body.get("method", "POST"),
        target=body["path"],
        headers=tuple(headers.items()),
        key=body.get("key"),
        session=body.get("session"),
        account_id=body.get("account"),
        address=body.get("address", "127.0.0.1"),
    )
