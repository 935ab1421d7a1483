"""API keys of a user: create (the secret is told once), list, delete."""

import json
import uuid
from typing import Any

import asyncpg
from aiohttp import web

from upstream_stub.bodies import read_object, storable
from upstream_stub.hashing import new_api_key, sha256_hex
from upstream_stub.identity import Identity
from upstream_stub.refusals import RefusalError

NAME_CHARACTERS_MAX = 200
PREFIX_CHARACTERS = 9  # "ck_" and six digits

_CREATE = (
    "INSERT INTO api_keys (id, user_id, name, prefix, key_sha256) VALUES ($1, $2, $3, $4, $5)"
    " RETURNING id, name, prefix, created_at"
)
_LIST = "SELECT id, name, prefix, created_at FROM api_keys WHERE user_id = $1 ORDER BY created_at, id"
_DELETE = "DELETE FROM api_keys WHERE id = $1 AND user_id = $2 RETURNING id"


class Keys:
    def __init__(self, pool: asyncpg.Pool, identity: Identity) -> None:
        self._pool = pool
        self._identity = identity

    async def create(self, request: web.Request) -> web.Response:
        user_id = await self._identity.user_id(request)
        name = (await read_object(request)).get("name", "")
        if not isinstance(name, str) or len(name) > NAME_CHARACTERS_MAX:
            raise RefusalError(
                422, "unprocessable", f"A key's name is a text of at most {NAME_CHARACTERS_MAX} characters."
            )
        row, key = await create_key(self._pool, user_id, storable(name, "The name"))
        return _json({**_shown(row), "key": key}, status=201)

    async def list(self, request: web.Request) -> web.Response:
        user_id = await self._identity.user_id(request)
        return _json({"keys": [_shown(row) for row in await self._pool.fetch(_LIST, user_id)]})

    async def delete(self, request: web.Request) -> web.Response:
        user_id = await self._identity.user_id(request)
        try:
            key_id = uuid.UUID(request.match_info["id"])
        except ValueError:
            raise _not_found() from None
        if await self._pool.fetchrow(_DELETE, key_id, user_id) is None:
            raise _not_found()
        return web.Response(status=204)


async def create_key(
    database: asyncpg.Pool | asyncpg.Connection, user_id: uuid.UUID, name: str, key: str | None = None
) -> tuple[asyncpg.Record, str]:
    """Store a key, a new random one unless it is given; its row and the secret itself."""
    key = key or new_api_key()
    row = await database.fetchrow(_CREATE, uuid.uuid4(), user_id, name, key[:PREFIX_CHARACTERS], sha256_hex(key))
    assert row is not None
    return row, key


def _shown(row: asyncpg.Record) -> dict[str, Any]:
    return {
        "id": str(row["id"]),
        "name": row["name"],
        "prefix": row["prefix"],
        "created_at": row["created_at"].isoformat(timespec="microseconds"),
    }


def _not_found() -> RefusalError:
    return RefusalError(404, "not_found", "There is no such key.")


def _json(body: dict[str, Any], status: int = 200) -> web.Response:
    return web.Response(status=status, body=json.dumps(body).encode(), content_type="application/json")
