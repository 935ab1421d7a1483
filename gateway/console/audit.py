"""What operators did, and to whom: an entry for each change, in the change's own transaction (``audit_entries``).

Where what was done has transactions of its own (an event that is handled again), the entry is there before it begins,
with what was asked, and gets what came of it at the end: one that has no ``ended`` is one whose end nobody has seen.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC
from typing import TYPE_CHECKING, Any

import asyncpg
import structlog

from gateway.database import QUERIES, Database, StoreError
from gateway.hosted.answers import RefusedError
from gateway.policy.money import cents_text

if TYPE_CHECKING:
    from gateway.database import PoolConnection

# The actions there are.
BUDGET_SET = "budget_set"
BUDGET_REMOVED = "budget_removed"
EXPLAINED = "explained"
EVENT_REPLAYED = "event_replayed"
BILLING_SYNCED = "billing_synced"

ENTRIES_MAX = 200
ENTRIES_SHOWN = 20
_ID_MAX = 2**63 - 1
_IN_MICROCENTS = "_microcents"

_NO_TABLE = "There is no table for the audit yet, and nothing is done without: run castgate migrate."

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """Who did it, as far as is known: the name of the token that was shown, and the address it came from."""

    token: str
    address: str


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What is known of an act when it is over."""

    facts: dict[str, object]
    account_id: str | None = None
    before: str | None = None  # JSON


class Audit:
    """The entries. Everything raises StoreError where Postgres is away, and RefusedError where the table is missing."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def write(
        self,
        connection: "PoolConnection",
        operator: Operator,
        action: str,
        account_id: str | None,
        before: str | None,
        after: str | None,
    ) -> int:
        """An entry, in the connection's transaction; ``before`` and ``after`` are JSON. Its id."""
        values = account_id, operator.token, operator.address, action, before, after
        written: int = await connection.fetchval(QUERIES["audit_write"], *values)
        return written

    @asynccontextmanager
    async def change(self) -> "AsyncIterator[PoolConnection]":
        """The transaction of a change and of its entry."""
        try:
            async with self._database.transaction() as connection:
                await connection.execute(QUERIES["billing_lock_timeout"])
                yield connection
        except asyncpg.UndefinedTableError:
            raise RefusedError(503, "overloaded", _NO_TABLE) from None
        except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError):
            raise RefusedError(409, "conflict", "Somebody else is changing this account; try again.") from None

    async def note(
        self, operator: Operator, action: str, account_id: str | None, after: Mapping[str, object] | None
    ) -> int:
        """An entry of something that changes nothing. Its id."""
        async with self.change() as connection:
            told = None if after is None else json.dumps(after)
            return await self.write(connection, operator, action, account_id, None, told)

    @asynccontextmanager
    async def act(self, operator: Operator, action: str, **asked: object) -> AsyncIterator[Outcome]:
        """An entry that is there before the block begins, and says at its end what came of it."""
        entry = await self.note(operator, action, None, asked)
        outcome = Outcome(facts=dict(asked))
        try:
            yield outcome
        except asyncio.CancelledError:
            await self._ended(entry, outcome, "broken off: the gateway was stopped")
            raise
        except Exception as error:
            await self._ended(entry, outcome, f"failed: {str(error) or type(error).__name__}")
            raise
        await self._ended(entry, outcome, "well")

    async def _ended(self, entry: int, outcome: Outcome, how: str) -> None:
        after = json.dumps({**outcome.facts, "ended": how})
        try:
            await self._database.execute(QUERIES["audit_outcome"], entry, outcome.account_id, outcome.before, after)
        except (StoreError, asyncpg.PostgresError) as error:  # it is done all the same
            _log.warning("audit_outcome_not_written", entry=entry, after=after, error=str(error))

    async def entries(
        self, account_id: str | None, *, before_id: int = _ID_MAX, entries_max: int = ENTRIES_SHOWN
    ) -> list[dict[str, object]]:
        """The newest entries before ``before_id``, of an account or of all. Amounts are cents."""
        try:
            rows = await self._database.fetch(QUERIES["audit_entries"], account_id, before_id, entries_max)
        except asyncpg.UndefinedTableError:
            raise RefusedError(503, "overloaded", _NO_TABLE) from None
        return [
            {
                "id": row["id"],
                "at": row["at"].astimezone(UTC).isoformat(timespec="seconds"),
                "account": row["account_id"],
                "token": row["token"],
                "address": row["address"],
                "action": row["action"],
                "before": _shown(row["before"]),
                "after": _shown(row["after"]),
            }
            for row in rows
        ]


def page_of(query: Mapping[str, str]) -> tuple[str | None, int, int]:
    """Account, before which id, and how many, of the query of ``GET /audit``. Raises RefusedError."""
    unknown = sorted(set(query) - {"account", "before", "limit"})
    if unknown:
        message = f"Found {json.dumps(unknown[0])}, expected account, before and limit."
        raise RefusedError(400, "invalid_request", message)
    numbers = []
    for name, otherwise, highest in (("before", _ID_MAX, _ID_MAX), ("limit", ENTRIES_SHOWN, ENTRIES_MAX)):
        text = query.get(name, str(otherwise))
        if not (text.isascii() and text.isdecimal() and len(text) < 20 and 1 <= int(text) <= highest):
            message = f"{name}: found {json.dumps(text[:40])}, expected a number from 1 to {highest}."
            raise RefusedError(400, "invalid_request", message)
        numbers.append(int(text))
    account_id = query.get("account")
    if account_id is not None and "\0" in account_id:  # which no text in Postgres has
        raise RefusedError(400, "invalid_request", f"account: found {json.dumps(account_id[:40])}, expected an id.")
    return account_id, numbers[0], numbers[1]


def _shown(text: str | None) -> Any:
    """Facts as they were kept, with amounts in cents."""
    facts = None if text is None else json.loads(text)
    if not isinstance(facts, dict):
        return facts
    return {
        f"{name.removesuffix(_IN_MICROCENTS)}_cents" if name.endswith(_IN_MICROCENTS) else name: cents_text(value)
        if name.endswith(_IN_MICROCENTS) and isinstance(value, int)
        else value
        for name, value in facts.items()
    }
