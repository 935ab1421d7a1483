"""Phase 1's Postgres: the pool and the schema."""

from pathlib import Path

import asyncpg

MIGRATIONS = Path(__file__).parent / "migrations"

# Any constant will do, as long as every stub takes the same one: the bytes of "phase1".
MIGRATION_LOCK = 0x706861736531

POOL_CONNECTIONS_MAX = 8  # statements are batched, so a few connections carry hundreds of requests
STATEMENT_TIMEOUT_S = 10.0


async def open_pool(database_url: str) -> asyncpg.Pool:
    """Connect, with at least one connection made, so that a wrong address fails here and not at the first request."""
    return await asyncpg.create_pool(
        database_url, min_size=1, max_size=POOL_CONNECTIONS_MAX, command_timeout=STATEMENT_TIMEOUT_S
    )


async def migrate(database_url: str) -> None:
    """Bring the database to the newest schema. Stubs that start at once wait for each other; each file runs once.

    A file commits by itself (so that ``psql -f`` is whole as well) and may therefore run again if the stub dies
    before it was noted down: files must not mind.
    """
    connection = await asyncpg.connect(database_url)
    try:
        # Goes with the connection, whatever happens.
        await connection.execute("SELECT pg_advisory_lock($1)", MIGRATION_LOCK)
        await connection.execute(
            "CREATE TABLE IF NOT EXISTS phase1_migrations"
            " (name text PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT now())"
        )
        applied = {row["name"] for row in await connection.fetch("SELECT name FROM phase1_migrations")}
        for file in sorted(MIGRATIONS.glob("*.sql")):
            if file.name not in applied:
                await connection.execute(file.read_text())
                await connection.execute("INSERT INTO phase1_migrations (name) VALUES ($1)", file.name)
    finally:
        await connection.close()
