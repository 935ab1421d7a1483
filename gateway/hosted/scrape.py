"""``GET /metrics`` on the public listener, where the configuration publishes it; the admin listener always has it."""

from aiohttp import web

from gateway.hosted.answers import NO_STORE
from gateway.hosted.services import SERVICES

PATH = "/metrics"


async def get_metrics(request: web.Request) -> web.Response:
    """The sum over all workers; 404 where ``metrics.public`` is false, as if it were not there."""
    services = request.app[SERVICES]
    if not services.settings().metrics.public:
        raise web.HTTPNotFound
    exposition = services.render_metrics(request.headers.get("Accept", ""))
    return web.Response(body=exposition.body, headers={**NO_STORE, "Content-Type": exposition.content_type})
