"""Accounts by the hundred thousand, each with a key and a monthly budget, made where they are kept: in Postgres."""

import asyncio
from pathlib import Path

import asyncpg

# Far from what a bench spends.
LIMIT_MICROCENTS = 1_000_000_000_000_000
KEY_PREFIX = "ck_bench_"
BATCH = 50_000
STATEMENT_TIMEOUT_S = 120.0

_ID = "md5('bench-' || number)::uuid"
_STATEMENTS = (
    "INSERT INTO users (id, email, password_hash)"
    f" SELECT {_ID}, 'bench-' || number || '@example.com', 'none'"
    " FROM generate_series($1::bigint, $2::bigint) AS number",
    "INSERT INTO api_keys (id, user_id, name, prefix, key_sha256)"
    f" SELECT {_ID}, {_ID}, 'bench', 'ck_bench', encode(sha256(('{KEY_PREFIX}' || number)::bytea), 'hex')"
    " FROM generate_series($1::bigint, $2::bigint) AS number",
    "INSERT INTO billing_accounts (account_id, facts_version)"
    f" SELECT ({_ID})::text, 1 FROM generate_series($1::bigint, $2::bigint) AS number",
)
_BUDGETS = (
    "INSERT INTO budgets (account_id, period, hard_limit_microcents)"
    f" SELECT ({_ID})::text, period, {LIMIT_MICROCENTS}"
    " FROM generate_series($1::bigint, $2::bigint) AS number, unnest($3::text[]) AS period"
)


def add_accounts(
    database_url: str, first: int, count: int, keys_file: Path | None = None, periods: tuple[str, ...] = ("monthly",)
) -> None:
    """Accounts number ``first`` and on; ``keys_file`` gets their keys, one a line."""
    asyncio.run(_add(database_url, first, count, periods))
    if keys_file is not None:
        keys_file.touch(mode=0o600)
        keys_file.write_text("".join(f"{KEY_PREFIX}{number}\n" for number in range(first, first + count)))


async def _add(database_url: str, first: int, count: int, periods: tuple[str, ...]) -> None:
    connection = await asyncpg.connect(database_url, command_timeout=STATEMENT_TIMEOUT_S)
    try:
        for begin in range(first, first + count, BATCH):
            last = min(begin + BATCH, first + count) - 1
            async with connection.transaction():
                for statement in _STATEMENTS:
                    await connection.execute(statement, begin, last)
                await connection.execute(_BUDGETS, begin, last, list(periods))
        await connection.execute("ANALYZE users, api_keys, billing_accounts, budgets")
    finally:
        await connection.close()
