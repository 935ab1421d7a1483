"""``castgate migrate``: the files of ``migrations/``, in order, once each, whoever runs them and however many at once.

A file is plain SQL that psql can run: its first statement is BEGIN, its last is COMMIT. Here that pair is taken off,
and what lies between runs in one transaction with the row that records it, under an advisory lock: so a crash leaves
both or neither, and the second of two runs finds everything done.

A file that somebody ran with psql has no row. It is recognised by its tables: if all that it makes are there, with the
columns it would give them (tried in a scratch schema that is rolled back), it is recorded, not run; if they differ,
nothing is touched and the difference is told. (Other things than tables a file should make so that it may run twice,
such as CREATE OR REPLACE FUNCTION.) One that makes functions alone is recognised by them: run once more it could bring
back what a newer file has replaced. Likewise a rollback by psql: when none of the newest files' tables and functions
exists any more, but those that the rollback itself makes, those files count as not applied.

``casts`` is Phase 1's, and may appear after us; so its column ``cost_cents`` is looked after at the end of every run.
"""

import contextlib
import hashlib
import os
import re
import socket
import sysconfig
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import asyncpg

from gateway.database import address_of

CONNECT_TIMEOUT_S = 5.0
CLOSE_TIMEOUT_S = 2.0
# How long to wait for another run of ``castgate migrate``: it may be making an index on a large table.
WAIT_FOR_OTHERS_S = 60
# Whoever queues for a table's lock makes everybody behind it wait: give up before casts suffer for long.
TABLE_LOCK_TIMEOUT_S = 5
COST_COLUMN_SINCE = 4  # the number of the file that first adds casts.cost_cents

_LOCK_KEY = int.from_bytes(hashlib.sha256(b"castgate migrate").digest()[:8], "big", signed=True)
_FILE_NAME = re.compile(r"(?P<number>\d{4})_[a-z0-9_]+")
_WRAPPED = re.compile(r"\A(?P<head>(?:\s+|--[^\n]*\n)*)BEGIN;(?P<body>.*)COMMIT;\s*\Z", re.DOTALL)
_COMMENT_OR_QUOTED_BODY = re.compile(r"--[^\n]*|\$(\w*)\$.*?\$\1\$", re.DOTALL)
_ADD_COLUMN = re.compile(r"\bADD COLUMN\b(?! IF NOT EXISTS)")
_CREATED_TABLE = re.compile(r"^\s*CREATE TABLE (?:IF NOT EXISTS )?(\w+)", re.MULTILINE)
_CREATED_FUNCTION = re.compile(r"^\s*CREATE (?:OR REPLACE )?FUNCTION (\w+)", re.MULTILINE)

_MAKE_RECORD = """
    CREATE TABLE IF NOT EXISTS castgate_migrations (
        number     integer PRIMARY KEY,
        name       text NOT NULL,
        checksum   text NOT NULL,          -- SHA-256 of the file
        applied_at timestamptz NOT NULL DEFAULT now()
    )"""
_COST_COLUMN_MISSING = """
    SELECT EXISTS (SELECT FROM pg_class WHERE oid = to_regclass('casts') AND relkind IN ('r', 'p'))
       AND NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass('casts')
                                                  AND attname = 'cost_cents' AND NOT attisdropped)"""
_ADD_COST_COLUMN = "ALTER TABLE casts ADD COLUMN IF NOT EXISTS cost_cents numeric(18, 6)"
_PRESENT = """
    SELECT name FROM unnest($1::text[]) AS name WHERE to_regclass(name) IS NOT NULL
    UNION ALL
    SELECT name FROM unnest($2::text[]) AS name
    WHERE EXISTS (SELECT FROM pg_proc WHERE proname = name AND pg_function_is_visible(oid))"""
_COLUMNS = """
    SELECT attname, format_type(atttypid, atttypmod) || CASE WHEN attnotnull THEN ' not null' ELSE '' END AS type
    FROM pg_attribute WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped"""


class MigrateError(Exception):
    """Why nothing, or nothing more, was done; one line for the person at the terminal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Migration:
    """One numbered file. ``body`` and ``rollback_body`` lack BEGIN and COMMIT; None: there is no rollback file."""

    number: int
    name: str
    checksum: str
    body: str
    rollback_body: str | None

    @property
    def tables(self) -> tuple[str, ...]:
        """The tables that the file makes."""
        return tuple(_CREATED_TABLE.findall(_COMMENT_OR_QUOTED_BODY.sub("", self.body)))

    @property
    def functions(self) -> tuple[str, ...]:
        """The functions that the file makes."""
        return _functions_in(self.body)

    @property
    def own_functions(self) -> tuple[str, ...]:
        """Those of them that are gone with the file: a rollback makes those of older files as they were."""
        restored = _functions_in(self.rollback_body or "")
        return tuple(name for name in self.functions if name not in restored)


def _functions_in(body: str) -> tuple[str, ...]:
    return tuple(_CREATED_FUNCTION.findall(_COMMENT_OR_QUOTED_BODY.sub("", body)))


def default_folder() -> Path:
    """``migrations/`` beside the package (a checkout), else what was installed with it, else in the current folder."""
    beside = Path(__file__).resolve().parent.parent / "migrations"
    installed = Path(sysconfig.get_path("data"), "share", "castgate", "migrations")  # pyproject.toml, data-files
    return next((folder for folder in (beside, installed) if folder.is_dir()), Path("migrations"))


def read_migrations(folder: Path) -> tuple[Migration, ...]:
    """Every migration of ``folder`` in order. Raises MigrateError for a folder or a file that cannot be used."""
    found: dict[int, Migration] = {}
    for path in sorted(folder.glob("*.sql")):
        if path.name.endswith(".rollback.sql"):
            continue
        match = _FILE_NAME.fullmatch(path.stem)
        if match is None:
            raise MigrateError(f"{path}: expected a name such as 0007_subject.sql")
        number = int(match["number"])
        if number in found:
            raise MigrateError(f"{path}: the number {number:04d} is already taken by {found[number].name}.sql")
        rollback = path.with_suffix(".rollback.sql")
        found[number] = Migration(
            number=number,
            name=path.stem,
            checksum=hashlib.sha256(path.read_bytes().replace(b"\r\n", b"\n")).hexdigest(),
            body=_unwrapped(path),
            rollback_body=_unwrapped(rollback) if rollback.exists() else None,
        )
    if not found:
        raise MigrateError(f"no migrations found in {folder}")
    return tuple(found[number] for number in sorted(found))


async def migrate(
    url: str,
    migrations: Sequence[Migration],
    *,
    to: int | None = None,
    dry_run: bool = False,
    report: Callable[[str], None],
) -> None:
    """Apply what is not applied, up to number ``to``; ``report`` gets a line for each thing done.

    With ``dry_run`` everything is done and then rolled back. Raises MigrateError.
    """
    wanted = [one for one in migrations if to is None or one.number <= to]
    async with _connection(url, dry_run=dry_run) as connection:
        done = 0
        while True:
            async with _locked_transaction(connection, report):
                applied = await _applied(connection, migrations, report, record=True)
                pending = [one for one in wanted if one.number not in applied]
                if not pending:
                    done += await _add_cost_column(connection, applied, report)
                    break
                await _apply(connection, pending[0], report)
                done += 1
        if not done:
            report("up to date")


async def roll_back(
    url: str,
    migrations: Sequence[Migration],
    *,
    to: int | None = None,
    dry_run: bool = False,
    report: Callable[[str], None],
) -> None:
    """Undo the newest applied migration, or with ``to`` all above that number, newest first. Raises MigrateError."""
    known = {one.number: one for one in migrations}
    async with _connection(url, dry_run=dry_run) as connection:
        done = 0
        while to is not None or done == 0:
            async with _locked_transaction(connection, report):
                applied = await _applied(connection, migrations, report, record=False)
                newest = max((number for number in applied if to is None or number > to), default=None)
                if newest is None:
                    break
                migration = known.get(newest)
                if migration is None or migration.rollback_body is None:
                    raise MigrateError(
                        f"{applied[newest]} cannot be rolled back: there is no {applied[newest]}.rollback.sql"
                    )
                await _execute(connection, migration.rollback_body, f"{migration.name}.rollback.sql")
                await connection.execute("DELETE FROM castgate_migrations WHERE number = $1", newest)
                report(f"rolled back {migration.name}")
                done += 1
        if not done:
            report("nothing to roll back")


def _unwrapped(path: Path) -> str:
    match = _WRAPPED.match(path.read_text(encoding="utf-8").replace("\r\n", "\n"))
    if match is None:
        raise MigrateError(f"{path}: expected BEGIN; as its first statement and COMMIT; as its last")
    return match["head"] + match["body"]


@asynccontextmanager
async def _connection(url: str, *, dry_run: bool) -> "AsyncIterator[asyncpg.Connection[asyncpg.Record]]":
    parts = urlsplit(url)
    # Ours, for the gateway's pool; Postgres would refuse it as a setting.
    parameters = [pair for pair in parse_qsl(parts.query, keep_blank_values=True) if pair[0] != "pgbouncer"]
    try:
        # No statement cache: a pooler in front of Postgres may hand each transaction to another server process.
        connection: asyncpg.Connection[asyncpg.Record] = await asyncpg.connect(
            urlunsplit(parts._replace(query=urlencode(parameters))), timeout=CONNECT_TIMEOUT_S, statement_cache_size=0
        )
    except (ValueError, asyncpg.exceptions.ClientConfigurationError) as error:
        raise MigrateError(f"the database URL cannot be used: {_why(error)}") from error
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise MigrateError(f"cannot reach Postgres at {address_of(url)}: {_why(error)}") from error
    try:
        if not dry_run:
            yield connection
            return
        trial = connection.transaction()
        await trial.start()
        try:
            yield connection
        finally:
            await trial.rollback()
    except (OSError, asyncpg.InterfaceError) as error:
        raise MigrateError(f"lost Postgres at {address_of(url)}: {_why(error)}") from error
    except asyncpg.PostgresError as error:
        raise MigrateError(_why(error)) from error
    finally:
        with contextlib.suppress(OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
            await connection.close(timeout=CLOSE_TIMEOUT_S)


@asynccontextmanager
async def _locked_transaction(
    connection: "asyncpg.Connection[asyncpg.Record]", report: Callable[[str], None]
) -> AsyncIterator[None]:
    """A transaction that no other run of this program shares; the lock goes with it, also through a pooler."""
    async with connection.transaction():
        await connection.execute(f"SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = '{WAIT_FOR_OTHERS_S}s'")
        if not await connection.fetchval("SELECT pg_try_advisory_xact_lock($1)", _LOCK_KEY):
            report("another castgate migrate is at work: waiting for it")
            try:
                await connection.execute("SELECT pg_advisory_xact_lock($1)", _LOCK_KEY)
            except asyncpg.LockNotAvailableError:
                message = f"another castgate migrate is still at work after {WAIT_FOR_OTHERS_S} s"
                raise MigrateError(message) from None
        await connection.execute(f"SET LOCAL lock_timeout = '{TABLE_LOCK_TIMEOUT_S}s'")
        yield


async def _applied(
    connection: "asyncpg.Connection[asyncpg.Record]",
    migrations: Sequence[Migration],
    report: Callable[[str], None],
    *,
    record: bool,
) -> dict[int, str]:
    """Numbers and names of what is applied. Raises MigrateError where a file changed since."""
    if await connection.fetchval("SELECT to_regclass('castgate_migrations') IS NULL"):
        if not record:
            return {}
        await connection.execute(_MAKE_RECORD)
    rows = await connection.fetch("SELECT number, name, checksum FROM castgate_migrations")
    applied = {row["number"]: row["name"] for row in rows}
    for migration in reversed(migrations):
        # Only the newest can be told by what they made: that of an older one may have been dropped by a newer.
        if migration.number not in applied:
            continue
        left = migration.tables, migration.own_functions
        if not any(left) or await _present(connection, *left):
            break
        await connection.execute("DELETE FROM castgate_migrations WHERE number = $1", migration.number)
        report(f"{migration.name} was rolled back by hand")
        del applied[migration.number]
    checksums = {row["number"]: row["checksum"] for row in rows}
    for migration in migrations:
        if migration.number in applied and checksums[migration.number] != migration.checksum:
            raise MigrateError(
                f"{migration.name}.sql was changed after it was applied: restore it, and put the change into a new file"
            )
    return applied


async def _apply(
    connection: "asyncpg.Connection[asyncpg.Record]", migration: Migration, report: Callable[[str], None]
) -> None:
    found = await _present(connection, migration.tables, migration.functions)
    present = [table for table in migration.tables if table in found]
    if present:
        await _check_made_by_hand(connection, migration, present)
    if present or (migration.functions and not migration.tables and found.issuperset(migration.functions)):
        report(f"{migration.name} was applied by hand: recorded")
    else:
        await _execute(connection, migration.body, f"{migration.name}.sql")
        report(f"applied {migration.name}")
    await connection.execute(
        "INSERT INTO castgate_migrations (number, name, checksum) VALUES ($1, $2, $3)",
        migration.number,
        migration.name,
        migration.checksum,
    )


async def _check_made_by_hand(
    connection: "asyncpg.Connection[asyncpg.Record]", migration: Migration, present: Sequence[str]
) -> None:
    """MigrateError unless the tables that are there are those the file makes; more columns are a later file's."""
    missing = [table for table in migration.tables if table not in present]
    if missing:
        raise MigrateError(
            f"{migration.name}.sql cannot be applied: the table {present[0]} is there already, {missing[0]} is not"
        )
    trial = connection.transaction()
    await trial.start()
    await connection.execute("CREATE SCHEMA castgate_scratch")
    await connection.execute(
        "SELECT set_config('search_path', 'castgate_scratch, ' || current_setting('search_path'), true)"
    )
    # Columns that it gives to tables of older files are there.
    await _execute(connection, _ADD_COLUMN.sub("ADD COLUMN IF NOT EXISTS", migration.body), f"{migration.name}.sql")
    expected = {table: await _columns(connection, table) for table in present}
    await trial.rollback()
    for table, columns in expected.items():
        found = await _columns(connection, table)
        for column, kind in columns.items():
            if found.get(column) != kind:
                raise MigrateError(
                    f"{migration.name}.sql cannot be applied: the table {table} is there already, "
                    f"but its column {column} is {found.get(column, 'missing')}, not {kind}"
                )


async def _add_cost_column(
    connection: "asyncpg.Connection[asyncpg.Record]", applied: dict[int, str], report: Callable[[str], None]
) -> int:
    if COST_COLUMN_SINCE not in applied or not await connection.fetchval(_COST_COLUMN_MISSING):
        return 0
    await _execute(connection, _ADD_COST_COLUMN, "casts.cost_cents")
    report("added casts.cost_cents")
    return 1


async def _execute(connection: "asyncpg.Connection[asyncpg.Record]", sql: str, what: str) -> None:
    try:
        await connection.execute(sql)
    except asyncpg.LockNotAvailableError:
        raise MigrateError(f"{what}: a table was in use for {TABLE_LOCK_TIMEOUT_S} s; try again") from None
    except asyncpg.PostgresError as error:
        raise MigrateError(f"{what}: {_why(error)}") from error


async def _present(
    connection: "asyncpg.Connection[asyncpg.Record]", tables: Sequence[str], functions: Sequence[str]
) -> set[str]:
    """Which of them are there."""
    rows = await connection.fetch(_PRESENT, tables, functions)
    return {row["name"] for row in rows}


async def _columns(connection: "asyncpg.Connection[asyncpg.Record]", table: str) -> dict[str, str]:
    return {row["attname"]: row["type"] for row in await connection.fetch(_COLUMNS, table)}


def _why(error: BaseException) -> str:
    """One line. asyncio words the same refusal differently for one address and for several; the number is the same."""
    if isinstance(error, socket.gaierror):
        return "no such host"
    if isinstance(error, TimeoutError):
        return f"no answer within {CONNECT_TIMEOUT_S:g} s"
    if isinstance(error, OSError) and (number := error.errno or _errno_in(str(error))):
        return os.strerror(number)
    return str(error).partition("\n")[0] or type(error).__name__


def _errno_in(text: str) -> int:
    match = re.search(r"\[Errno (\d+)\]", text)
    return int(match[1]) if match else 0
