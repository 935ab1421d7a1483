"""The service itself: a cast takes a text and gives a text, and leaves a row in `casts` before it is answered."""

import json
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any

import asyncpg
from aiohttp import web

from upstream_stub.batch import Batch
from upstream_stub.bodies import read_object, storable
from upstream_stub.faults import Streaming
from upstream_stub.identity import Identity
from upstream_stub.rate_limit import RateLimit
from upstream_stub.refusals import bad_request

STATUS = "completed"
RESULT_CHARACTERS_MAX = 200
STREAM_STEPS = 3
LIST_DEFAULT, LIST_MAX = 50, 500

_INSERT = (
    "INSERT INTO casts (id, user_id, input, status, result, elapsed_ms)"
    " SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::text[], $6::integer[])"
)
# Columns by name: another owner of this database may have added some.
_LIST = (
    "SELECT id, input, status, result, elapsed_ms, created_at FROM casts"
    " WHERE user_id = $1 ORDER BY created_at DESC, id LIMIT $2"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Cast:
    id: uuid.UUID
    user_id: uuid.UUID
    input: str
    result: str
    elapsed_ms: int

    def shown(self) -> bytes:
        shown = {"id": str(self.id), "status": STATUS, "result": self.result, "elapsed_ms": self.elapsed_ms}
        return json.dumps(shown).encode()


class Casts:
    def __init__(self, pool: asyncpg.Pool, identity: Identity, rate_limit: RateLimit) -> None:
        self._pool = pool
        self._identity = identity
        self._rate_limit = rate_limit
        self._inserts = Batch("insert casts", self._insert)

    async def create(self, request: web.Request) -> web.StreamResponse:
        started_s = time.monotonic()
        user_id = await self._identity.user_id(request)
        await self._rate_limit.take(user_id)
        text = storable(_input(await read_object(request)), "The input")
        if "text/event-stream" in request.headers.get("Accept", ""):
            headers = {"Content-Type": "text/event-stream", "Cache-Control": "no-store"}
            return Streaming(self._events(user_id, text, started_s), headers=headers)
        cast = await self._make(user_id, text, started_s)
        return web.Response(body=cast.shown(), content_type="application/json")

    async def list(self, request: web.Request) -> web.Response:
        user_id = await self._identity.user_id(request)
        rows = await self._pool.fetch(_LIST, user_id, _limit(request))
        body = json.dumps({"casts": [_row_shown(row) for row in rows]}).encode()
        return web.Response(body=body, content_type="application/json")

    async def _make(self, user_id: uuid.UUID, text: str, started_s: float) -> Cast:
        cast = Cast(
            id=uuid.uuid4(),
            user_id=user_id,
            input=text,
            result=f"cast: {text[:RESULT_CHARACTERS_MAX]}",
            elapsed_ms=int((time.monotonic() - started_s) * 1000),
        )
        await self._inserts.ask(cast)
        return cast

    async def _events(self, user_id: uuid.UUID, text: str, started_s: float) -> AsyncGenerator[bytes, None]:
        for step in range(1, STREAM_STEPS + 1):
            yield b"event: progress\ndata: " + json.dumps({"step": step, "of": STREAM_STEPS}).encode() + b"\n\n"
        cast = await self._make(user_id, text, started_s)
        yield b"event: done\ndata: " + cast.shown() + b"\n\n"

    async def _insert(self, casts: Sequence[Cast]) -> Sequence[None]:
        await self._pool.execute(
            _INSERT,
            [cast.id for cast in casts],
            [cast.user_id for cast in casts],
            [cast.input for cast in casts],
            [STATUS] * len(casts),
            [cast.result for cast in casts],
            [cast.elapsed_ms for cast in casts],
        )
        return [None] * len(casts)


def _input(body: dict[str, Any]) -> str:
    """The text under ``input``; Phase 1 takes any object, and one without such a text is cast as it is."""
    text = body.get("input")
    return text if isinstance(text, str) else json.dumps(body)


def _limit(request: web.Request) -> int:
    text = request.query.get("limit", str(LIST_DEFAULT))
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and int(text) >= 1):
        raise bad_request("limit is a whole number from 1 on.")
    return min(int(text), LIST_MAX)


def _row_shown(row: asyncpg.Record) -> dict[str, Any]:
    return {
        "id": str(row["id"]),
        "input": row["input"],
        "status": row["status"],
        "result": row["result"],
        "elapsed_ms": row["elapsed_ms"],
        "created_at": row["created_at"].isoformat(timespec="microseconds"),
    }
