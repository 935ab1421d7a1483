"""The application: which path is answered by what, and how everything that goes wrong becomes an answer.

To the relay this is one more upstream; it sends here what ``hosted_paths`` names.
"""

from collections.abc import Awaitable, Callable

import structlog
from aiohttp import web

from gateway.database import StoreError
from gateway.hosted import billing, budgets, openapi, scrape, usage, webhooks
from gateway.hosted.answers import NO_STORE, Problem, RefusedError, failure, refusal, store_away
from gateway.hosted.body import BODY_BYTES_MAX, too_large
from gateway.hosted.services import SERVICES, Services

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

ROUTES: dict[str, dict[str, Handler]] = {
    "/v1/budgets": {
        "GET": budgets.list_budgets,
        "POST": budgets.create_budget,
        "PUT": budgets.replace_budget,
        "DELETE": budgets.delete_budget,
    },
    "/v1/usage": {"GET": usage.get_usage},
    "/v1/openapi.json": {"GET": openapi.get_document},
    "/v1/billing/checkout": {"POST": billing.start_checkout},
    "/v1/billing/portal": {"POST": billing.open_portal},
    "/webhooks/stripe": {"POST": webhooks.take_event},
    scrape.PATH: {"GET": scrape.get_metrics},
}
_log = structlog.get_logger()


def hosted_paths(*, metrics_public: bool) -> frozenset[bytes]:
    """The canonical paths that are the gateway's own; ``/metrics`` is the upstream's unless ours is published there."""
    return frozenset(path.encode() for path in ROUTES if metrics_public or path != scrape.PATH)


def create_app(services: Services) -> web.Application:
    """The application over ``services``."""
    app = web.Application(middlewares=[_answer_errors], client_max_size=BODY_BYTES_MAX)
    app[SERVICES] = services
    app.on_response_prepare.append(_hide_versions)
    for path, handlers in ROUTES.items():
        resource = app.router.add_resource(path)
        methods = sorted([*handlers, *(["HEAD"] if "GET" in handlers else []), "OPTIONS"])
        for method, handler in handlers.items():
            resource.add_route(method, handler)
        if "GET" in handlers:
            resource.add_route("HEAD", handlers["GET"])
        resource.add_route("OPTIONS", _options(", ".join(methods)))
    return app


async def _hide_versions(_: web.Request, response: web.StreamResponse) -> None:
    """What Python and aiohttp this is helps only those who look for holes in it."""
    response.headers.popall("Server", None)


def _options(allow: str) -> Handler:
    async def answer_options(_: web.Request) -> web.Response:
        # No Access-Control fields: pages of other origins are not to call with this account's cookie.
        return web.Response(status=204, headers={**NO_STORE, "Allow": allow})

    return answer_options


@web.middleware
async def _answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every error is JSON; what nobody foresaw is logged, and told to nobody else."""
    try:
        return await handler(request)
    except RefusedError as refused:
        return refusal(refused)
    except ConnectionError:
        # The client left in the middle of its body: nobody reads this answer, and it is nobody's fault.
        return refusal(RefusedError(400, "invalid_request", "The request's body did not arrive in full."))
    except StoreError as error:
        _log.warning("hosted request without its store", path=request.path, error=str(error))
        return refusal(store_away())
    except web.HTTPMethodNotAllowed as error:
        allow = ", ".join(sorted(error.allowed_methods))
        problem = Problem(field="method", found=error.method, expected=f"one of {allow}")
        message = f"{request.path} does not know the method {error.method}."
        return refusal(RefusedError(405, "invalid_request", message, problems=(problem,), headers={"Allow": allow}))
    except web.HTTPNotFound:
        return refusal(RefusedError(404, "not_found", "The gateway has nothing at this path."))
    except web.HTTPRequestEntityTooLarge:
        return refusal(too_large())
    except Exception:  # noqa: BLE001  the last resort of every request
        _log.exception("hosted request failed", method=request.method, path=request.path)
        return failure()
