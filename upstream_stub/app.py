"""The application: what answers where, and what it stands on."""

from collections.abc import AsyncIterator
from dataclasses import dataclass

from aiohttp import web
from redis.asyncio import Redis

from upstream_stub import database, probes
from upstream_stub.casts import Casts
from upstream_stub.faults import misbehave
from upstream_stub.identity import Identity
from upstream_stub.keys import Keys
from upstream_stub.live import Live
from upstream_stub.rate_limit import RateLimit
from upstream_stub.refusals import refuse
from upstream_stub.sessions import Sessions

BODY_BYTES_MAX = 1024 * 1024  # of JSON bodies; /v1/blob and /v1/mirror read any length as it comes
REDIS_TIMEOUT_S = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    database_url: str
    redis_url: str
    rate_limit_per_minute: int = 60  # 0: off


async def build_app(settings: Settings) -> web.Application:
    """The application over a migrated database. Raises what asyncpg raises when Postgres is not there."""
    await database.migrate(settings.database_url)
    pool = await database.open_pool(settings.database_url)
    redis = Redis.from_url(settings.redis_url, socket_timeout=REDIS_TIMEOUT_S, socket_connect_timeout=REDIS_TIMEOUT_S)

    async def close_stores(_: web.Application) -> AsyncIterator[None]:
        yield
        await redis.aclose()
        await pool.close()

    identity = Identity(pool)
    sessions = Sessions(pool)
    keys = Keys(pool, identity)
    casts = Casts(pool, identity, RateLimit(redis, settings.rate_limit_per_minute))
    live = Live()

    app = web.Application(middlewares=[misbehave, refuse], client_max_size=BODY_BYTES_MAX)
    app.cleanup_ctx.append(close_stores)
    app.on_shutdown.append(live.close)
    app.add_routes(
        [
            web.post("/v1/auth/login", sessions.log_in),
            web.post("/v1/auth/logout", sessions.log_out),
            web.post("/v1/keys", keys.create),
            web.get("/v1/keys", keys.list),
            web.delete("/v1/keys/{id}", keys.delete),
            web.post("/v1/cast", casts.create),
            web.get("/v1/casts", casts.list),
            web.get("/v1/live", live.echo, allow_head=False),
            web.get("/health", _health),
            web.get("/v1/blob", probes.blob),
            web.post("/v1/blob", probes.digest),
            web.post("/v1/mirror", probes.mirror),
            web.route("*", "/v1/echo", probes.echo),
            web.route("*", "/v1/echo/{rest:.*}", probes.echo),
            web.route("*", "/v1/raw/{name}", probes.raw),
        ]
    )
    return app


async def _health(_: web.Request) -> web.Response:
    return web.Response(body=b'{"status": "ok"}', content_type="application/json")
