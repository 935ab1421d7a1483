"""The admin listener: ``/metrics`` for Prometheus, ``/healthz`` and ``/readyz`` for whoever keeps the gateway running.

It lives in the supervisor, so it answers while workers start, die and drain. A lost store makes the gateway degraded,
not unready: casts go on without it, and taking every replica out of service for one dead database would stop them all.
"""

import socket
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from gateway.metrics import exposition, gauge_values

# A question that is asked here is one call's head.
_BODY_BYTES_MAX = 64 * 1024
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
) -> web.AppRunner:
    """Serve on a listening socket until the runner's ``cleanup``; ``routes`` beside our own."""
    app = make_app(status, runtime_dir, routes)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, keepalive_timeout=75.0)
    await runner.setup()
    await web.SockSite(runner, listener).start()
    return runner


def make_app(
    status: Callable[[], Status], runtime_dir: Path, routes: Iterable[web.AbstractRouteDef] = ()
) -> web.Application:
    """The application alone."""
    app = web.Application(middlewares=[_errors_as_json], client_max_size=_BODY_BYTES_MAX)
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


@web.middleware
async def _errors_as_json(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
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
