"""Accounts by the hundred thousand, each with a key and a monthly budget, made where they are kept: in Postgres."""

import asyncio
import hashlib
import uuid
from collections.abc import Callable
from pathlib import Path

import asyncpg

# Far from what a bench spends.
LIMIT_MICROCENTS = 1_000_000_000_000_000
_KEY_PREFIX = "ck_bench_"
_KEY_DIGITS = 8  # keys are of one length, as bench.generators needs them
_BATCH = 20_000
STATEMENT_TIMEOUT_S = 120.0

_ID = "md5('bench-' || number)::uuid"
_STATEMENTS = (
    "INSERT INTO users (id, email, password_hash)"
    f" SELECT {_ID}, 'bench-' || number || '@example.com', 'none'"
    " FROM generate_series($1::bigint, $2::bigint) AS number",
    "INSERT INTO api_keys (id, user_id, name, prefix, key_sha256)"
    f" SELECT {_ID}, {_ID}, 'bench', 'ck_bench',"
    f" encode(sha256(('{_KEY_PREFIX}' || lpad(number::text, {_KEY_DIGITS}, '0'))::bytea), 'hex')"
    " FROM generate_series($1::bigint, $2::bigint) AS number",
    "INSERT INTO billing_accounts (account_id, facts_version)"
    f" SELECT ({_ID})::text, 1 FROM generate_series($1::bigint, $2::bigint) AS number",
)
_BUDGETS = (
    "INSERT INTO budgets (account_id, period, hard_limit_microcents)"
    f" SELECT ({_ID})::text, period, {LIMIT_MICROCENTS}"
    " FROM generate_series($1::bigint, $2::bigint) AS number, unnest($3::text[]) AS period"
)


def key_of(number: int) -> str:
    """The API key of account ``number``."""
    return f"{_KEY_PREFIX}{number:0{_KEY_DIGITS}}"


def account_id_of(number: int) -> str:
    """Its id."""
    return str(uuid.UUID(hashlib.md5(f"bench-{number}".encode(), usedforsecurity=False).hexdigest()))


def add_accounts(
    database_url: str,
    first: int,
    count: int,
    periods: tuple[str, ...] = ("monthly",),
    added: Callable[[int], None] = lambda _: None,
) -> None:
    """Accounts number ``first`` and on; ``added`` is told their number."""
    asyncio.run(_add(database_url, first, count, periods, added))


def write_keys(keys_file: Path, first: int, count: int) -> None:
    """Their keys, one a line."""
    keys_file.touch(mode=0o600)
    keys_file.write_text("".join(f"{key_of(number)}\n" for number in range(first, first + count)))


async def _add(
    database_url: str, first: int, count: int, periods: tuple[str, ...], added: Callable[[int], None]
) -> None:
    connection = await asyncpg.connect(database_url, command_timeout=STATEMENT_TIMEOUT_S)
    try:
        for begin in range(first, first + count, _BATCH):
            last = min(begin + _BATCH, first + count) - 1
            async with connection.transaction():
                for statement in _STATEMENTS:
                    await connection.execute(statement, begin, last)
                await connection.execute(_BUDGETS, begin, last, list(periods))
            added(last - first + 1)
        await connection.execute("ANALYZE users, api_keys, billing_accounts, budgets")
    finally:
        await connection.close()
