"""What the console shows and changes of accounts: read from Postgres; a change is told to every gateway by Redis."""

import re
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import structlog

from gateway.console.audit import BUDGET_REMOVED, BUDGET_SET, Audit, Operator
from gateway.console.holds import Holds
from gateway.database import QUERIES, Database
from gateway.hosted.answers import RefusedError
from gateway.hosted.budget_body import WEEKDAYS, BudgetBody
from gateway.hosted.standing import instant
from gateway.policy.money import cents_text
from gateway.policy.periods import window_at
from gateway.policy.rules import Rules

if TYPE_CHECKING:
    import asyncpg

NEAR_MAX = 8
FOUND_MAX = 8
CASTS_MAX = 20
EVENTS_MAX = 20
# Somebody else may make or take away the same budget in between.
_ATTEMPTS_MAX = 3
_NOT_PLAIN = re.compile(r"[\\%_]")

_log = structlog.get_logger()


class Accounts:
    """The console's side of Postgres. Everything raises StoreError where it is away."""

    def __init__(
        self,
        database: Database,
        rules: Callable[[], Rules],
        tell: Callable[[str, int], Awaitable[None]],
        *,
        audit: Audit,
        holds: Holds,
    ) -> None:
        self._database = database
        self._rules = rules
        self._tell = tell
        self._audit = audit
        self._holds = holds

    async def near_limits(self) -> list[dict[str, object]]:
        """Accounts and windows, those that have used most of their limit first."""
        rules = self._rules()
        ceilings = [(plan.name, limit) for plan in rules.plans.values() for limit in plan.budgets]
        rows = await self._database.fetch(
            QUERIES["console_near_limits"],
            [plan for plan, _ in ceilings],
            [limit.period for _, limit in ceilings],
            [limit.time_zone for _, limit in ceilings],
            [limit.week_start for _, limit in ceilings],
            [limit.hard_limit_microcents for _, limit in ceilings],
            rules.default_plan,
            NEAR_MAX,
        )
        return [
            {
                "account": row["account_id"],
                "plan": row["plan"],
                "period": row["period"],
                "used_cents": cents_text(row["used_microcents"]),
                "limit_cents": cents_text(row["limit_microcents"]),
                "share": row["used_microcents"] / row["limit_microcents"],
                "resets_at": _when(row["resets_at"]) if row["period"] != "total" else None,
            }
            for row in rows
        ]

    async def search(self, beginning: str) -> list[str]:
        """Accounts whose id begins so."""
        pattern = _NOT_PLAIN.sub(lambda match: f"\\{match[0]}", beginning) + "%"
        return [row["account_id"] for row in await self._database.fetch(QUERIES["console_search"], pattern, FOUND_MAX)]

    async def picture(self, account_id: str) -> dict[str, object]:
        """All of one account, whether it was ever seen or not."""
        billing = await self._database.fetchrow(QUERIES["console_account"], account_id)
        assert billing is not None
        days = await self._database.fetch(QUERIES["console_days"], account_id)
        casts = await self._database.fetch(QUERIES["console_casts"], account_id, CASTS_MAX)
        plan, budgets = await self._budgets(account_id)
        return {
            "account": account_id,
            "plan": plan,
            "status": billing["status"] or "none",
            "plan_until": _when(billing["plan_until"]),
            "stripe_customer": billing["stripe_customer_id"],
            "stripe_subscription": billing["stripe_subscription_id"],
            "budgets": budgets,
            "days": [
                {"day": row["day"].isoformat(), "calls": row["calls"], "cents": cents_text(row["microcents"])}
                for row in days
            ],
            "casts": [
                {
                    "at": _when(row["occurred_at"]),
                    "policy": row["policy"],
                    "cents": cents_text(row["cost_microcents"]),
                    "status": row["upstream_status"],
                    "outcome": row["outcome"],
                    "id": row["cast_id"] or row["request_id"] or row["id"].hex,
                }
                for row in casts
            ],
            "holds": await self._holds.of(account_id),
            "events": await self.events(account_id),
            "audit": await self._audit.entries(account_id),
        }

    async def events(self, account_id: str | None) -> list[dict[str, object]]:
        """The newest events from Stripe."""
        rows = await self._database.fetch(QUERIES["console_webhooks"], account_id, EVENTS_MAX)
        return [
            {
                "id": row["id"],
                "type": row["type"],
                "at": datetime.fromtimestamp(row["created_s"], UTC).isoformat(),
                "handled_at": _when(row["recorded_at"]),
                "account": row["account_id"],
                "subscription": row["subscription_id"],
                "status": row["status"],
            }
            for row in rows
        ]

    async def set_budget(self, account_id: str, body: BudgetBody, operator: Operator) -> None:
        """Makes or replaces an own budget; the next call on any gateway goes by it."""
        limit = body.limit
        values = (
            account_id,
            limit.period,
            limit.hard_limit_microcents,
            body.soft_limit_cents,
            limit.time_zone,
            limit.week_start,
        )
        for _ in range(_ATTEMPTS_MAX):
            async with self._audit.change() as connection:
                before = await connection.fetchval(QUERIES["audit_budget"], account_id, limit.period)
                statement = "budget_insert" if before is None else "budget_update"
                version = await connection.fetchval(QUERIES[statement], *values)
                if version is not None:
                    after = await connection.fetchval(QUERIES["audit_budget"], account_id, limit.period)
                    await self._audit.write(connection, operator, BUDGET_SET, account_id, before, after)
            if version is not None:
                break
        else:
            raise RefusedError(409, "conflict", "Somebody else is changing this budget; try again.")
        cents = cents_text(limit.hard_limit_microcents)
        _log.warning(
            "console_budget_set", account=account_id, period=limit.period, hard_limit_cents=cents, by=operator.address
        )
        await self._tell(account_id, version)

    async def remove_budget(self, account_id: str, period: str, operator: Operator) -> bool:
        """Takes an own budget back; False where there is none."""
        async with self._audit.change() as connection:
            before = await connection.fetchval(QUERIES["audit_budget"], account_id, period)
            if before is None:
                return False
            version = await connection.fetchval(QUERIES["budget_delete"], account_id, period)
            await self._audit.write(connection, operator, BUDGET_REMOVED, account_id, before, None)
        _log.warning("console_budget_removed", account=account_id, period=period, by=operator.address)
        await self._tell(account_id, version)
        return True

    async def _budgets(self, account_id: str) -> tuple[str, list[dict[str, object]]]:
        """The plan, and each limit that counts: the account's own, and the plan's."""
        records = await self._database.fetch(QUERIES["budgets_of_account"], account_id)
        plan = self._rules().plan_of(records[0]["plan"])
        limits: list[tuple[str, Any]] = [("account", row) for row in records if row["period"] is not None]
        limits += [
            (
                "plan",
                {
                    "period": one.period,
                    "hard_limit_microcents": one.hard_limit_microcents,
                    "soft_limit_microcents": None,
                    "time_zone": one.time_zone,
                    "week_start": one.week_start,
                },
            )
            for one in plan.budgets
        ]
        used = await self._used(account_id, [limit for _, limit in limits])
        return plan.name, [
            {
                "source": source,
                "period": limit["period"],
                "time_zone": limit["time_zone"],
                "week_start": WEEKDAYS[limit["week_start"] - 1],
                "limit_cents": cents_text(limit["hard_limit_microcents"]),
                "soft_limit_cents": _cents(limit["soft_limit_microcents"]),
                "used_cents": cents_text(amount),
                "share": amount / limit["hard_limit_microcents"] if limit["hard_limit_microcents"] else 1.0,
            }
            for (source, limit), amount in zip(limits, used, strict=True)
        ]

    async def _used(self, account_id: str, limits: "list[asyncpg.Record | dict[str, Any]]") -> list[int]:
        if not limits:
            return []
        now_ms = int(datetime.now(UTC).timestamp() * 1000)
        windows = [window_at(one["period"], one["time_zone"], one["week_start"], now_ms) for one in limits]
        rows = await self._database.fetch(
            QUERIES["used_in_windows"],
            account_id,
            [one["period"] for one in limits],
            [one["time_zone"] for one in limits],
            [one["week_start"] for one in limits],
            [instant(window.start_ms) for window in windows],
            [instant(window.end_ms) for window in windows],
        )
        return [row["used_microcents"] for row in rows]


def _cents(microcents: int | None) -> str | None:
    return None if microcents is None else cents_text(microcents)


def _when(at: datetime | None) -> str | None:
    return at.astimezone(UTC).isoformat(timespec="seconds") if at is not None else None
