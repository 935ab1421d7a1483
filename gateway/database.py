"""Postgres as the gateway sees it: there, or away. Connections, time-outs, circuit breaker, named statements.

Nothing connects before the first statement, so the gateway starts while Postgres is away, and each call tries again.
Whatever means "Postgres cannot answer now" (refused, hanging, shutting down, out of connections, read-only, disk full)
is a StoreError and counts against the breaker; any other error is an asyncpg.PostgresError and is the statement's own
fault. A time-out cuts the connection; the server's own statement_timeout ends what it was still doing.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from importlib.resources import files
from types import MappingProxyType
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

import asyncpg

from gateway.breaker import Breaker, announcer
from gateway.pooler import Connector, say_so

if TYPE_CHECKING:
    from gateway.config.settings_stores import Database as DatabaseSettings
    from gateway.metrics import Metrics

    PoolConnection = asyncpg.pool.PoolConnectionProxy[asyncpg.Record]

# A connection nobody used for so long is closed: a pool grown by a burst shrinks again.
_IDLE_S = 300.0
_CLOSE_TIMEOUT_S = 2.0
# One long statement of one caller (a year of usage) must not shut everybody out; three in a row are no accident.
_FAILURES_IN_A_ROW_MAX = 3
# The server ends a statement a little after we stopped waiting, so that ours is the time-out that is reported.
_SERVER_TIMEOUT_EXTRA_S = 0.5
# SQLSTATE classes and codes (PostgreSQL manual, appendix A) that are no fault of the statement: the server cannot now.
_AWAY_CLASSES = frozenset({"08", "53", "57", "58"})  # connection, resources, operator intervention, system error
_AWAY_CODES = frozenset({"25006"})  # read_only_sql_transaction: we were led to a standby
# Our own parameters in a database URL; what asyncpg does not know it would send to the server as a setting.
_PGBOUNCER_PARAMETER = "pgbouncer"


class StoreError(Exception):
    """Postgres is away: nothing is known to have happened. The text is one line, with an address and no secret."""


def read_queries(text: str) -> Mapping[str, str]:
    """The statements of a queries.sql by name. Raises ValueError for one without a comment, or a name used twice."""
    queries: dict[str, str] = {}
    for block in re.split(r"^-- name:", text, flags=re.MULTILINE)[1:]:
        name, _, rest = block.partition("\n")
        name = name.strip()
        comment = re.match(r"(?:--.*\n)*", rest)
        sql = rest[comment.end() :].strip().removesuffix(";") if comment else ""
        if name in queries:
            raise ValueError(f"statement {name} is there twice")
        if not sql or not comment or not comment.group():
            raise ValueError(f"statement {name} lacks a comment or its SQL")
        queries[name] = sql
    return MappingProxyType(queries)


QUERIES = read_queries(files("gateway").joinpath("queries.sql").read_text(encoding="utf-8"))


class Database:
    """A bounded pool of connections to one Postgres, for one event loop."""

    def __init__(
        self,
        url: str,
        *,
        breaker: Breaker,
        metrics: Metrics,
        connections_max: int = 8,
        connect_timeout_s: float = 1.0,
        acquire_timeout_s: float = 1.0,
        statement_timeout_s: float = 2.0,
        found_pooler: Callable[[str], None] = lambda _: None,
    ) -> None:
        """``?pgbouncer=true`` or ``false`` in the URL says whether there is a pooler in front of Postgres; without it
        that is found out (pooler.py), and ``found_pooler`` is told how.
        """
        self._url, is_pooled = _without_own_parameters(url)
        self._where = address_of(url)
        self._statement_timeout_s = statement_timeout_s
        self._connector = Connector(self._server_settings(), is_pooled=is_pooled, found_out=found_pooler)
        self._breaker = breaker
        self._in_use = metrics.gauge("db_pool_in_use")
        self._connections_max = connections_max
        self._connect_timeout_s = connect_timeout_s
        self._acquire_timeout_s = acquire_timeout_s
        self._pool: asyncpg.Pool[asyncpg.Record] | None = None
        self._closed = False

    @classmethod
    def from_settings(cls, settings: DatabaseSettings, metrics: Metrics) -> Database:
        """The database of ``config.yaml``, behind a breaker of its own."""
        breaker = Breaker(
            clock=time.monotonic, changed=announcer("postgres", metrics), failures_max=_FAILURES_IN_A_ROW_MAX
        )
        return cls(
            settings.url,
            breaker=breaker,
            metrics=metrics,
            connections_max=settings.pool_max,
            connect_timeout_s=settings.connect_timeout_s,
            acquire_timeout_s=settings.acquire_timeout_s,
            statement_timeout_s=settings.statement_timeout_s,
            found_pooler=say_so(address_of(settings.url)),
        )

    async def fetch(self, sql: str, *values: object, timeout_s: float | None = None) -> list[asyncpg.Record]:
        """All rows of one statement, in a transaction of its own. Raises StoreError, asyncpg.PostgresError."""
        async with self.connection(timeout_s=timeout_s) as connection:
            return await connection.fetch(sql, *values)

    async def fetchrow(self, sql: str, *values: object, timeout_s: float | None = None) -> asyncpg.Record | None:
        """The first row, or None. Raises StoreError, asyncpg.PostgresError."""
        async with self.connection(timeout_s=timeout_s) as connection:
            return await connection.fetchrow(sql, *values)

    async def execute(self, sql: str, *values: object, timeout_s: float | None = None) -> str:
        """The command tag, e.g. ``UPDATE 1``. Raises StoreError, asyncpg.PostgresError."""
        async with self.connection(timeout_s=timeout_s) as connection:
            return await connection.execute(sql, *values)

    @asynccontextmanager
    async def transaction(self, *, timeout_s: float | None = None) -> AsyncIterator[PoolConnection]:
        """A connection in a READ COMMITTED transaction: committed after the block, rolled back by an exception."""
        async with (
            self.connection(timeout_s=timeout_s) as connection,
            connection.transaction(isolation="read_committed"),
        ):
            if self._connector.is_pooled:
                await connection.execute(self._transaction_settings())
            yield connection

    @asynccontextmanager
    async def connection(self, *, timeout_s: float | None = None) -> AsyncIterator[PoolConnection]:
        """A connection for the time of the block, which may take ``timeout_s`` in all (default: statement time-out).

        The block talks to Postgres and to nothing else: its OSError and TimeoutError are taken for Postgres'.
        """
        if not self._breaker.allows():
            raise StoreError(f"Postgres at {self._where} is away: not tried again yet")
        cut = _Cut(timeout_s or self._statement_timeout_s)
        try:
            connection = await self._acquire()
            healthy = False
            try:
                with cut.after(connection):
                    yield connection
                healthy = True
            except Exception as error:
                healthy = isinstance(error, asyncpg.PostgresError) or _why_away(error) is None
                raise
            finally:
                await self._release(connection, healthy=healthy)
        except Exception as error:
            reason = cut.reason or _why_away(error)
            if reason is None:
                self._breaker.succeeded()
                raise
            self._breaker.failed(reason)
            raise StoreError(f"Postgres at {self._where} is away: {reason}") from error
        self._breaker.succeeded()

    async def close(self) -> None:
        """Closes every connection; what still runs is given a short time."""
        self._closed = True
        pool, self._pool = self._pool, None
        if pool is None:
            return
        try:
            async with asyncio.timeout(_CLOSE_TIMEOUT_S):
                await pool.close()
        except (TimeoutError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            pool.terminate()

    async def _acquire(self) -> PoolConnection:
        if self._closed:
            raise StoreError("the pool is closed")
        if self._pool is None:
            self._pool = asyncpg.create_pool(
                self._url,
                min_size=0,
                max_size=self._connections_max,
                max_inactive_connection_lifetime=_IDLE_S,
                timeout=self._connect_timeout_s,
                connection_class=_Connection,
                connect=self._connector.connect,
            )
        # With min_size=0 this connects to nothing; it is idempotent, also for two callers at once.
        await self._pool
        connection = await self._pool.acquire(timeout=self._acquire_timeout_s)
        self._in_use.add(1)
        return connection

    async def _release(self, connection: PoolConnection, *, healthy: bool) -> None:
        self._in_use.add(-1)
        if not healthy:
            connection.terminate()
        if self._pool is not None:
            await self._pool.release(connection)

    def _server_settings(self) -> dict[str, str]:
        return {"application_name": "castgate", **self._timeouts()}

    def _transaction_settings(self) -> str:
        """The same for one transaction, where a pooler gives us nothing that lasts longer."""
        return "; ".join(f"SET LOCAL {name} = {value}" for name, value in self._timeouts().items())

    def _timeouts(self) -> dict[str, str]:
        timeout_ms = f"{round((self._statement_timeout_s + _SERVER_TIMEOUT_EXTRA_S) * 1000)}"
        # A worker that is stopped inside a transaction must not keep its locks.
        return {"statement_timeout": timeout_ms, "idle_in_transaction_session_timeout": timeout_ms}


class _Cut:
    """Ends a block that takes too long by cutting its connection, whatever the block is waiting for.

    Cancelling instead would leave asyncpg waiting for the server to confirm, which a hung server never does.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self.reason: str | None = None

    @contextmanager
    def after(self, connection: PoolConnection) -> Iterator[None]:
        timer = asyncio.get_running_loop().call_later(self._timeout_s, self._now, connection)
        try:
            yield
        finally:
            timer.cancel()

    def _now(self, connection: PoolConnection) -> None:
        self.reason = f"no answer within {self._timeout_s:g} s"
        connection.terminate()


class _Connection(asyncpg.Connection):
    """Nothing here sets anything on a connection for longer than a transaction, so a release needs no round trip."""

    def get_reset_query(self) -> str:
        return ""


def _why_away(error: BaseException) -> str | None:
    """One line on why Postgres cannot answer; None where it did answer and the error is about something else."""
    if isinstance(error, StoreError):
        return str(error)
    if isinstance(error, TimeoutError):
        return "no connection in time"
    if isinstance(error, asyncpg.PostgresError):
        code: str = error.sqlstate or ""
        at_connect = isinstance(error, asyncpg.InvalidAuthorizationSpecificationError | asyncpg.InvalidCatalogNameError)
        away = at_connect or code[:2] in _AWAY_CLASSES or code in _AWAY_CODES
        return str(error).partition("\n")[0] if away else None
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    if isinstance(error, asyncpg.InterfaceError | asyncpg.InternalClientError):
        return str(error).partition("\n")[0]
    return None


def address_of(url: str) -> str:
    """Host, port and database of a URL: never its user, password or parameters."""
    try:
        parts = urlsplit(url)
        parameters = dict(parse_qsl(parts.query))
        host = parts.hostname or parameters.get("host", "localhost")
        port = parts.port or parameters.get("port", "5432")
    except ValueError:
        return "an address that cannot be read"
    return f"{unquote(host)}:{port}{unquote(parts.path)}"


def _without_own_parameters(url: str) -> tuple[str, bool | None]:
    """The URL for asyncpg, and whether it says that a pooler is there; None: it does not say."""
    parts = urlsplit(url)
    parameters = parse_qsl(parts.query, keep_blank_values=True)
    kept = [(name, value) for name, value in parameters if name != _PGBOUNCER_PARAMETER]
    if kept == parameters:
        return url, None
    asked = (_PGBOUNCER_PARAMETER, "true") in parameters
    return urlunsplit(parts._replace(query=urlencode(kept))), asked
