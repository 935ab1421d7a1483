"""A demo user with a key, for ``./dev up`` and for tests: made if missing, found again if there.

``python -m upstream_stub.seed --database-url …`` prints it as one JSON object.
"""

import argparse
import asyncio
import dataclasses
import json
import os
import sys
import uuid
from dataclasses import dataclass

import asyncpg

from upstream_stub.database import migrate
from upstream_stub.hashing import API_KEY_PREFIX, hash_password, password_matches, sha256_hex
from upstream_stub.keys import create_key

DEMO_EMAIL = "demo@example.com"
DEMO_PASSWORD = "open sesame"  # noqa: S105  told to everybody
DEMO_KEY_NAME = "demo"

# DO UPDATE, and not NOTHING, so that two seeds at once both get the row.
_ENSURE_USER = (
    "INSERT INTO users (id, email, password_hash) VALUES ($1, $2, $3)"
    " ON CONFLICT (email) DO UPDATE SET email = excluded.email RETURNING id, password_hash"
)
_USER_BY_EMAIL = "SELECT id, password_hash FROM users WHERE email = $1"
_CHANGE_HASH = "UPDATE users SET password_hash = $2 WHERE id = $1"
_OWNER_OF_KEY = "SELECT user_id FROM api_keys WHERE key_sha256 = $1"


@dataclass(frozen=True, kw_only=True, slots=True)
class SeededAccount:
    """`account_id` is the user's id, as the statements in this package's docstring give it."""

    account_id: str
    email: str
    password: str
    api_key: str


async def seed(
    database_url: str, *, email: str = DEMO_EMAIL, password: str = DEMO_PASSWORD, api_key: str | None = None
) -> SeededAccount:
    """Ensure that the user exists with this password and this key (a new key each time, if none is given).

    Brings the schema with it, so it also serves where no stub is started. Raises ValueError if the key does not
    begin with ``ck_`` or is somebody else's.
    """
    if api_key is not None and not api_key.startswith(API_KEY_PREFIX):
        raise ValueError(f"an API key begins with {API_KEY_PREFIX}")
    await migrate(database_url)
    connection = await asyncpg.connect(database_url)
    try:
        user_id = await _ensure_user(connection, email.lower(), password)
        key = await _ensure_key(connection, user_id, api_key)
    finally:
        await connection.close()
    return SeededAccount(account_id=str(user_id), email=email.lower(), password=password, api_key=key)


async def _ensure_user(connection: asyncpg.Connection, email: str, password: str) -> uuid.UUID:
    user = await connection.fetchrow(_USER_BY_EMAIL, email)
    if user is None:
        user = await connection.fetchrow(_ENSURE_USER, uuid.uuid4(), email, hash_password(password))
        assert user is not None
    if not password_matches(password, user["password_hash"]):
        await connection.execute(_CHANGE_HASH, user["id"], hash_password(password))
    user_id: uuid.UUID = user["id"]
    return user_id


async def _ensure_key(connection: asyncpg.Connection, user_id: uuid.UUID, api_key: str | None) -> str:
    if api_key is not None:
        owner = await connection.fetchval(_OWNER_OF_KEY, sha256_hex(api_key))
        if owner == user_id:
            return api_key
        if owner is not None:
            raise ValueError("this API key is another user's")
    try:
        _, key = await create_key(connection, user_id, DEMO_KEY_NAME, api_key)
    except asyncpg.UniqueViolationError:
        # Somebody else was seeding the same key between the two statements.
        if await connection.fetchval(_OWNER_OF_KEY, sha256_hex(api_key or "")) != user_id:
            raise ValueError("this API key is another user's") from None
        return api_key or ""
    return key


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m upstream_stub.seed", description="Make Phase 1's demo account.")
    parser.add_argument("--database-url", default=os.environ.get("DATABASE_URL"), help="default: $DATABASE_URL")
    parser.add_argument("--email", default=DEMO_EMAIL)
    parser.add_argument("--password", default=DEMO_PASSWORD)
    parser.add_argument("--api-key", help="this key and no other, the same at every start")
    arguments = parser.parse_args()
    if not arguments.database_url:
        parser.error("--database-url or DATABASE_URL is needed")
    try:
        account = asyncio.run(
            seed(arguments.database_url, email=arguments.email, password=arguments.password, api_key=arguments.api_key)
        )
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, ValueError) as error:
        sys.exit(f"upstream_stub.seed: {error}")
    sys.stdout.write(json.dumps(dataclasses.asdict(account)) + "\n")


if __name__ == "__main__":
    main()
