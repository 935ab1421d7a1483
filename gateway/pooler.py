"""Postgres itself, or a pooler in front of it (pgbouncer in transaction mode, and the like)? Found out, not asked for.

Behind a pooler each transaction may meet another server process. What that changes:
- A prepared statement is on one process, and the next transaction may be on another: none is kept.
- Settings that come with a connection are refused ("unsupported startup parameter"), or ignored where the pooler was
  told to (``ignore_startup_parameters``): none are sent. A transaction of several statements sets them for itself.
- What asyncpg does to learn of array types it does in several transactions, and switches ``jit`` off and on around it:
  perhaps off on one process, and on again on another. So it learns them in one transaction, when it connects.

How it is found out: a server process has told its id when the connection began (BackendKeyData). A pooler tells one
that it made up, for cancel requests, while ``pg_backend_pid()`` is the true one's.
"""

from collections.abc import Callable
from typing import Any

import asyncpg
import structlog

# The array types of our statements that asyncpg does not know by itself.
_LEARN_TYPES = (
    "SELECT NULL::uuid[], NULL::bigint[], NULL::integer[], NULL::smallint[], NULL::boolean[], NULL::numeric[], "
    "NULL::timestamptz[], NULL::date[]"
)
_KEPT_STATEMENTS_MAX = 100

_log = structlog.get_logger()


class Connector:
    """What a pool of connections connects with."""

    def __init__(
        self, server_settings: dict[str, str], *, is_pooled: bool | None, found_out: Callable[[str], None]
    ) -> None:
        """``is_pooled`` None: find out at the first connection, and tell ``found_out`` how, where there is one."""
        self._found_out = found_out
        self._server_settings = server_settings
        self._may_find_out = is_pooled is None
        self.is_pooled = is_pooled

    async def connect(self, *arguments: Any, **more: Any) -> asyncpg.Connection:
        """As asyncpg.connect."""
        if not self.is_pooled:
            direct = await self._connect_to_server(*arguments, **more)
            if direct is not None:
                return direct
        connection: asyncpg.Connection = await asyncpg.connect(*arguments, statement_cache_size=0, **more)
        try:
            async with connection.transaction():
                await connection.fetch(_LEARN_TYPES)
        except BaseException:
            connection.terminate()
            raise
        return connection

    async def _connect_to_server(self, *arguments: Any, **more: Any) -> asyncpg.Connection | None:
        """None: it is a pooler that is there."""
        try:
            connection: asyncpg.Connection = await asyncpg.connect(
                *arguments,
                statement_cache_size=_KEPT_STATEMENTS_MAX,
                server_settings=self._server_settings,
                **more,
            )
        except asyncpg.ProtocolViolationError as error:
            if not self._may_find_out or "startup parameter" not in str(error):
                raise
            self._found(str(error))
            return None
        if self.is_pooled is not None:
            return connection
        try:
            # By no name: it must not be kept, and needs no transaction to stay with one process.
            asked = await connection.prepare("SELECT pg_backend_pid()", name="")
            pid = await asked.fetchval()
        except BaseException:
            connection.terminate()
            raise
        if pid == connection.get_server_pid():
            self.is_pooled = False
            return connection
        connection.terminate()
        self._found("its process ids are not the server's")
        return None

    def _found(self, reason: str) -> None:
        if not self.is_pooled:  # several connections may find it out at once
            self.is_pooled = True
            self._found_out(reason)


def say_so(where: str) -> Callable[[str], None]:
    """What a gateway does when it has found one at that address: a line in its log. Commands keep it to themselves."""

    def found_out(reason: str) -> None:
        _log.info("postgres_behind_pooler", address=where, reason=reason, effect="none are kept prepared")

    return found_out
