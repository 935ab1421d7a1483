"""The admin listener: ``/metrics`` for Prometheus, ``/healthz`` and ``/readyz`` for whoever keeps the gateway running.

Where ``admin.token`` is set, every path asks for it (``Authorization: Bearer …``), also one that is not there; but for
those of ``admin.open_paths``, as not every scraper and probe can carry one.

It lives in the supervisor, so it answers while workers start, die and drain. A lost store makes the gateway degraded,
not unready: casts go on without it, and taking every replica out of service for one dead database would stop them all.
"""

import hmac
import socket
from collections.abc import Awaitable, Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from aiohttp import web
from aiohttp.typedefs import Middleware

from gateway.metrics_scrape import exposition, gauge_values

if TYPE_CHECKING:
    from gateway.config.settings_connections import Admin

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
LetsIn = Callable[[web.Request], bool]
# A question that is asked here is one call's head, or a budget.
_BODY_BYTES_MAX = 64 * 1024
# A sync under way may take a quarter of an hour, and can be done again.
_SHUTDOWN_TIMEOUT_S = 2.0
_NO_STORE = {"Cache-Control": "no-store"}
_STATUS_KEY: web.AppKey[Callable[[], "Status"]] = web.AppKey("status")
_RUNTIME_DIR_KEY: web.AppKey[Path] = web.AppKey("runtime_dir", Path)


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """The supervisor at one moment."""

    draining: bool
    workers_wanted: int
    workers_alive: int
    workers_ready: int


async def serve_admin(
    listener: socket.socket,
    status: Callable[[], Status],
    runtime_dir: Path,
    routes: Iterable[web.AbstractRouteDef] = (),
    *,
    settings: "Admin",
    lets_in: LetsIn = lambda _: False,
) -> web.AppRunner:
    """Serve on a listening socket until the runner's ``cleanup``; ``routes`` beside our own."""
    token = settings.token.get_secret_value() if settings.token else None
    app = make_app(status, runtime_dir, routes, token=token, open_paths=settings.open_paths, lets_in=lets_in)
    # handler_cancellation off: an operator who closes the page must not stop a budget's change between its commit and
    # the word to every gateway, nor a sync in its middle.
    runner = web.AppRunner(
        app, access_log=None, handler_cancellation=False, keepalive_timeout=75.0, shutdown_timeout=_SHUTDOWN_TIMEOUT_S
    )
    await runner.setup()
    await web.SockSite(runner, listener).start()
    return runner


def make_app(
    status: Callable[[], Status],
    runtime_dir: Path,
    routes: Iterable[web.AbstractRouteDef] = (),
    *,
    token: str | None = None,
    open_paths: Collection[str] = (),
    lets_in: LetsIn = lambda _: False,
) -> web.Application:
    """The application alone; ``token`` None lets everybody in, as ``lets_in`` does who has no token to show."""
    doors = [_door(token, open_paths, lets_in)] if token is not None else []
    app = web.Application(middlewares=[*doors, _errors_as_json], client_max_size=_BODY_BYTES_MAX)
    app[_STATUS_KEY] = status
    app[_RUNTIME_DIR_KEY] = runtime_dir
    app.router.add_get("/metrics", _metrics)
    app.router.add_get("/healthz", _healthz)
    app.router.add_get("/readyz", _readyz)
    app.router.add_routes(routes)
    return app


def readiness(status: Status, stores: dict[str, str]) -> tuple[int, dict[str, object]]:
    """The answer of ``/readyz``: 503 only where no worker could serve a call, or calls should go elsewhere."""
    if status.draining:
        name = "draining"
    elif status.workers_ready == 0:
        name = "starting"
    elif status.workers_ready < status.workers_wanted or "down" in stores.values():
        name = "degraded"
    else:
        name = "ready"
    workers = {"ready": status.workers_ready, "alive": status.workers_alive, "wanted": status.workers_wanted}
    return 503 if name in ("draining", "starting") else 200, {"status": name, "workers": workers, "stores": stores}


async def _metrics(request: web.Request) -> web.Response:
    made = exposition(request.app[_RUNTIME_DIR_KEY], ",".join(request.headers.getall("Accept", ())))
    return web.Response(body=made.body, headers={"Content-Type": made.content_type, **_NO_STORE})


async def _healthz(request: web.Request) -> web.Response:
    """Whether this process and at least one worker run; a restart would help where they do not."""
    alive = request.app[_STATUS_KEY]().workers_alive > 0
    return web.json_response(
        {"status": "ok" if alive else "no worker"}, status=200 if alive else 503, headers=_NO_STORE
    )


async def _readyz(request: web.Request) -> web.Response:
    up = gauge_values(request.app[_RUNTIME_DIR_KEY], "castgate_store_up")
    stores = {store: "up" if value else "down" for (store, *_), value in sorted(up.items())}
    code, body = readiness(request.app[_STATUS_KEY](), stores)
    return web.json_response(body, status=code, headers=_NO_STORE)


def _listed(methods: Iterable[str]) -> str:
    return " and ".join(sorted(methods))


def _door(token: str, open_paths: Collection[str], lets_in: LetsIn) -> Middleware:
    wanted = f"Bearer {token}".encode()

    @web.middleware
    async def let_in(request: web.Request, handler: Handler) -> web.StreamResponse:
        shown = request.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
        if request.path in open_paths or hmac.compare_digest(shown, wanted) or lets_in(request):
            return await handler(request)
        return web.json_response(
            {"error": "unauthorized", "message": "This listener asks for the admin token (Authorization: Bearer …)."},
            status=401,
            headers={"WWW-Authenticate": "Bearer", **_NO_STORE},
        )

    return let_in


@web.middleware
async def _errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except web.HTTPNotFound:
        paths = sorted({resource.canonical for resource in request.app.router.resources()})
        message = f"The admin listener has {', '.join(paths[:-1])} and {paths[-1]}."
        return web.json_response({"error": "not_found", "message": message}, status=404)
    except web.HTTPMethodNotAllowed as refusal:
        return web.json_response(
            {"error": "invalid_request", "message": f"{request.path} answers {_listed(refusal.allowed_methods)}."},
            status=405,
            headers={"Allow": ", ".join(sorted(refusal.allowed_methods))},
        )
