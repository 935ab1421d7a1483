"""``/v1/budgets``: an account's own budgets, and what they come to beside its plan's.

A change is one statement, which also raises the account's facts version; then admission is told, and only then does
the client hear of it. So the first call admitted after the answer, by any gateway, honours the change.
``PUT`` replaces the whole budget: what its body leaves out goes back to its default.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from aiohttp import web

from gateway.accounts import Account
from gateway.database import QUERIES
from gateway.hosted.answers import NO_STORE, Cents, Problem, RefusedError, answer
from gateway.hosted.body import read_json_object
from gateway.hosted.budget_body import WEEKDAYS, BudgetBody, read_budget
from gateway.hosted.caller import caller_of
from gateway.hosted.free_tiers import free_tiers_of
from gateway.hosted.query import Query, Reading, period, read_query
from gateway.hosted.services import SERVICES, Services
from gateway.hosted.standing import Standing, standing_of
from gateway.policy.answers import instant_text
from gateway.policy.budgets import BudgetLimit
from gateway.policy.periods import FOREVER_MS, PERIODS

PARAMETERS = ("period",)
_PERIOD_EXPECTED = f"one of {', '.join(PERIODS)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """A limit, and whose it is."""

    limit: BudgetLimit
    soft_limit_microcents: int | None
    source: str  # account | plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """All of an account's budgets and where they stand, at one moment."""

    plan: str
    budgets: Sequence[Budget]  # the account's own, then the plan's over windows that none of those covers
    limits: Sequence[BudgetLimit]  # all that are checked, a plan's ceiling over an own budget's window included
    standing: Standing


async def list_budgets(request: web.Request) -> web.Response:
    """The account's own budgets, then the plan's ceilings over windows that no own budget covers."""
    account = await caller_of(request)
    query = read_query(request, PARAMETERS)
    wanted = _read_period(query)
    services = request.app[SERVICES]
    picture = await _picture_of(services, account)
    shown = [_shown(budget, picture) for budget in picture.budgets if wanted in (None, budget.limit.period)]
    told: dict[str, object] = {"account_id": account.account_id, "plan": picture.plan, "budgets": shown}
    tiers = await free_tiers_of(services, account)
    if tiers:
        told["free_tiers"] = tiers
    return answer(told)


async def create_budget(request: web.Request) -> web.Response:
    """201 with the budget; 409 where the period has one already."""
    account = await caller_of(request)
    read_query(request, ())
    body = read_budget(await read_json_object(request))
    if not await _change(request.app[SERVICES], "budget_insert", account, body):
        problem = Problem(field="period", found=f'"{body.period}"', expected="a period that has no budget yet")
        message = f"The {body.period} budget exists already; PUT replaces it."
        raise RefusedError(409, "conflict", message, problems=(problem,))
    location = {"Location": f"/v1/budgets?period={body.period}"}
    return answer(await _own(request, account, body.period), status=201, headers=location)


async def replace_budget(request: web.Request) -> web.Response:
    """200 with the budget; 404 where the period has none."""
    account = await caller_of(request)
    read_query(request, ())
    body = read_budget(await read_json_object(request))
    if not await _change(request.app[SERVICES], "budget_update", account, body):
        raise _no_budget(body.period)
    return answer(await _own(request, account, body.period))


async def delete_budget(request: web.Request) -> web.Response:
    """204; 404 where the period has none. What the plan allows stays in force."""
    account = await caller_of(request)
    query = read_query(request, PARAMETERS)
    wanted = _read_period(query, required=True)
    services = request.app[SERVICES]
    record = await services.database.fetchrow(QUERIES["budget_delete"], account.account_id, wanted)
    if record is None:
        raise _no_budget(str(wanted))
    await services.admission.facts_changed(account.account_id, record["facts_version"])
    return web.Response(status=204, headers=NO_STORE)


def _read_period(query: Query, *, required: bool = False) -> str | None:
    reading = Reading(query)
    wanted = reading.get("period", period, _PERIOD_EXPECTED, None)
    if required and "period" not in query:
        reading.wrong("period", "nothing", _PERIOD_EXPECTED)
    reading.close()
    return wanted


def _no_budget(missing: str) -> RefusedError:
    problem = Problem(field="period", found=f'"{missing}"', expected="a period that has a budget")
    message = f"The account has no {missing} budget of its own; POST creates it."
    return RefusedError(404, "not_found", message, problems=(problem,))


async def _change(services: Services, statement: str, account: Account, body: BudgetBody) -> bool:
    """Write a budget and tell admission; False where the statement found nothing to do."""
    limit = body.limit
    record = await services.database.fetchrow(
        QUERIES[statement],
        account.account_id,
        limit.period,
        limit.hard_limit_microcents,
        body.soft_limit_cents,
        limit.time_zone,
        limit.week_start,
    )
    if record is None:
        return False
    await services.admission.facts_changed(account.account_id, record["facts_version"])
    return True


async def _own(request: web.Request, account: Account, period: str) -> dict[str, object]:
    """The account's own budget of a period, as just written."""
    picture = await _picture_of(request.app[SERVICES], account)
    for budget in picture.budgets:
        if budget.source == "account" and budget.limit.period == period:
            return _shown(budget, picture)
    # Somebody else's DELETE came between the write and this read.
    raise _no_budget(period)


async def _picture_of(services: Services, account: Account) -> Picture:
    records = await services.database.fetch(QUERIES["budgets_of_account"], account.account_id)
    plan = services.rules().plan_of(records[0]["plan"])
    own = [
        Budget(
            limit=BudgetLimit(
                period=record["period"],
                hard_limit_microcents=record["hard_limit_microcents"],
                time_zone=record["time_zone"],
                week_start=record["week_start"],
            ),
            soft_limit_microcents=record["soft_limit_microcents"],
            source="account",
        )
        for record in records
        if record["period"] is not None
    ]
    covered = {budget.limit.kind for budget in own}
    ceilings = [
        Budget(limit=limit, soft_limit_microcents=None, source="plan")
        for limit in plan.budgets
        if limit.kind not in covered
    ]
    budgets = sorted(own, key=_order) + sorted(ceilings, key=_order)
    limits = [*(budget.limit for budget in own), *plan.budgets]
    return Picture(
        plan=plan.name, budgets=budgets, limits=limits, standing=await standing_of(services, account, limits)
    )


def _order(budget: Budget) -> int:
    return PERIODS.index(budget.limit.period)


def _shown(budget: Budget, picture: Picture) -> dict[str, object]:
    limit, standing = budget.limit, picture.standing
    window = standing.windows[limit.kind]
    endless = window.end_ms >= FOREVER_MS
    # An own budget and a plan's ceiling of one period bound the same spending even where their zones, and so their
    # windows, differ; each is checked in its own window, and what is left is the least that any of them leaves.
    together = [other for other in picture.limits if other.period == limit.period]
    return {
        "period": limit.period,
        "hard_limit_cents": Cents(limit.hard_limit_microcents),
        "soft_limit_cents": None if budget.soft_limit_microcents is None else Cents(budget.soft_limit_microcents),
        "timezone": limit.time_zone,
        "week_start": WEEKDAYS[limit.week_start - 1],
        "source": budget.source,
        "effective_limit_cents": Cents(min(other.hard_limit_microcents for other in together)),
        "used_cents": Cents(standing.used_microcents[limit.kind]),
        "held_cents": Cents(standing.held_microcents),
        "remaining_cents": Cents(standing.remaining_microcents(together)),
        "window_start": None if endless else instant_text(window.start_ms),
        "resets_at": None if endless else instant_text(window.end_ms),
    }
