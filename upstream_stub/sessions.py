"""Log in and log out: a session is a random cookie, of which the database keeps the SHA-256 and the end."""

import asyncio
import json
from datetime import timedelta

import asyncpg
from aiohttp import web

from upstream_stub.bodies import read_object
from upstream_stub.hashing import hash_password, new_session_token, password_matches, sha256_hex
from upstream_stub.identity import SESSION_COOKIE
from upstream_stub.refusals import RefusalError, unauthorized

SESSION_LIFETIME = timedelta(days=7)

# scrypt takes 16 MiB each time: more at once would cost memory and gain nothing.
PASSWORD_CHECKS_MAX = 4

_USER_BY_EMAIL = "SELECT id, email, password_hash FROM users WHERE email = $1"
_END_OLD_SESSIONS = "DELETE FROM sessions WHERE user_id = $1 AND expires_at <= now()"
_BEGIN_SESSION = "INSERT INTO sessions (token_sha256, user_id, expires_at) VALUES ($1, $2, now() + $3)"
_END_SESSION = "DELETE FROM sessions WHERE token_sha256 = $1"


class Sessions:
    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool
        self._password_checks = asyncio.Semaphore(PASSWORD_CHECKS_MAX)
        # Tried when there is no such user, so that a wrong email takes as long as a wrong password.
        self._no_password = hash_password(new_session_token())

    async def log_in(self, request: web.Request) -> web.Response:
        body = await read_object(request)
        email, password = body.get("email"), body.get("password")
        if not isinstance(email, str) or not isinstance(password, str):
            raise RefusalError(422, "unprocessable", "Log in with an email and a password.")
        user = await self._pool.fetchrow(_USER_BY_EMAIL, email.lower()) if _may_be_stored(email) else None
        async with self._password_checks:
            stored = user["password_hash"] if user else self._no_password
            good = await asyncio.to_thread(password_matches, password, stored)
        if user is None or not good:
            raise unauthorized("The email or the password is wrong.")
        token = new_session_token()
        await self._pool.execute(_END_OLD_SESSIONS, user["id"])
        await self._pool.execute(_BEGIN_SESSION, sha256_hex(token), user["id"], SESSION_LIFETIME)
        answer = json.dumps({"user_id": str(user["id"]), "email": user["email"]}).encode()
        response = web.Response(body=answer, content_type="application/json")
        response.set_cookie(SESSION_COOKIE, token, httponly=True, path="/")
        return response

    async def log_out(self, request: web.Request) -> web.Response:
        """Also without a session, or with one that is over: who logs out is logged out."""
        token = request.cookies.get(SESSION_COOKIE)
        if token is not None:
            await self._pool.execute(_END_SESSION, sha256_hex(token))
        response = web.Response(status=204)
        response.del_cookie(SESSION_COOKIE, path="/")
        return response


def _may_be_stored(email: str) -> bool:
    # Postgres would refuse the parameter itself; no user has such an email.
    return email.isprintable() and email.encode("utf-8", "ignore").decode() == email
