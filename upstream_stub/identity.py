"""Who asks: API key or session cookie → user id. Nothing is cached: a deleted key is refused from then on."""

import uuid
from collections.abc import Sequence

import asyncpg
from aiohttp import web

from upstream_stub.batch import Batch
from upstream_stub.hashing import sha256_hex
from upstream_stub.refusals import unauthorized

SESSION_COOKIE = "session"

_USERS_BY_KEY = "SELECT key_sha256 AS hash, user_id FROM api_keys WHERE key_sha256 = ANY($1::text[])"
_USERS_BY_SESSION = (
    "SELECT token_sha256 AS hash, user_id FROM sessions WHERE token_sha256 = ANY($1::text[]) AND expires_at > now()"
)


class Identity:
    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool
        self._keys = Batch("users by key", self._by_key)
        self._sessions = Batch("users by session", self._by_session)

    async def user_id(self, request: web.Request) -> uuid.UUID:
        """The user who asks. The first kind of credential present decides; raises a 401 if it is not good."""
        user: uuid.UUID | None
        if (authorization := request.headers.get("Authorization")) is not None:
            scheme, _, key = authorization.partition(" ")
            if scheme.lower() != "bearer":
                raise unauthorized("The Authorization header is not a Bearer key.")
            user = await self._keys.ask(sha256_hex(key.strip()))
        elif (key_header := request.headers.get("X-API-Key")) is not None:
            user = await self._keys.ask(sha256_hex(key_header))
        elif (token := request.cookies.get(SESSION_COOKIE)) is not None:
            user = await self._sessions.ask(sha256_hex(token))
        else:
            raise unauthorized("No API key and no session.")
        if user is None:
            raise unauthorized("The API key or session is not valid.")
        return user

    async def _by_key(self, hashes: Sequence[str]) -> Sequence[uuid.UUID | None]:
        return await self._look_up(_USERS_BY_KEY, hashes)

    async def _by_session(self, hashes: Sequence[str]) -> Sequence[uuid.UUID | None]:
        return await self._look_up(_USERS_BY_SESSION, hashes)

    async def _look_up(self, statement: str, hashes: Sequence[str]) -> Sequence[uuid.UUID | None]:
        found = {row["hash"]: row["user_id"] for row in await self._pool.fetch(statement, list(set(hashes)))}
        return [found.get(each) for each in hashes]
