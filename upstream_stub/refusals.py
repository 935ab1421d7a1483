"""Every answer that is not what was asked for, as Phase 1 writes it: JSON, a code and a sentence."""

import json
import logging
from collections.abc import Mapping

from aiohttp import web
from aiohttp.typedefs import Handler

log = logging.getLogger("upstream_stub")


class RefusalError(Exception):
    """Raised anywhere below a handler; `refuse` turns it into the answer."""

    def __init__(self, status: int, error: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.error = error
        self.message = message
        self.headers = headers

    def response(self) -> web.Response:
        body = json.dumps({"error": self.error, "message": self.message}).encode()
        return web.Response(status=self.status, body=body, content_type="application/json", headers=self.headers)


def unauthorized(message: str) -> RefusalError:
    return RefusalError(401, "unauthorized", message, {"WWW-Authenticate": "Bearer"})


def bad_request(message: str) -> RefusalError:
    return RefusalError(400, "bad_request", message)


@web.middleware
async def refuse(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Give refusals, aiohttp's own ones (404, 405, 413) and mistakes of the stub one form."""
    try:
        return await handler(request)
    except RefusalError as refusal:
        return refusal.response()
    except web.HTTPException as error:
        kept = {name: value for name, value in error.headers.items() if name == "Allow"}
        return RefusalError(error.status, error.reason.lower().replace(" ", "_"), f"{error.reason}.", kept).response()
    except ConnectionError:
        raise  # the client has gone; there is nobody to answer
    except Exception:
        log.exception("%s %s failed", request.method, request.path)
        return RefusalError(500, "internal_error", "Something went wrong.").response()
