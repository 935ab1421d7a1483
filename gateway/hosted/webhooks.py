"""``POST /webhooks/stripe``: what Stripe tells.

In order: the raw bytes, bounded; the signature over exactly these; the event in them; its effect, committed; the
answer. Anything but 2xx makes Stripe send the event again, for three days: so 2xx means that the effect is in
Postgres, 503 that it could not be put there, and 400 that these bytes are no event of Stripe's.
"""

import json
from collections.abc import Sequence

import structlog
from aiohttp import web

from gateway.billing import BusyError
from gateway.database import StoreError
from gateway.hosted.answers import Problem, RefusedError, answer, invalid
from gateway.hosted.services import SERVICES, Services
from gateway.hosted.signature import SignatureError, verify
from gateway.metrics import Counter, Metrics
from gateway.policy.stripe_events import HANDLED, OTHER, Event, EventError, read_event

# Stripe's largest events are some 50 KiB. The application's own bound is for bodies of 150 bytes.
BODY_BYTES_MAX = 256 * 1024
HEADER = "Stripe-Signature"
# What a delivery came to beside the results of billing.apply; labels of the metric.
BAD_SIGNATURE = "bad_signature"
INVALID = "invalid"
ERROR = "error"

_log = structlog.get_logger()


class Webhooks:
    """The secrets that deliveries may be signed with, and the counters of what they came to."""

    def __init__(self, secrets: Sequence[str], metrics: Metrics) -> None:
        self.secrets = tuple(secrets)
        self._metrics = metrics
        self._counters: dict[tuple[str, str], Counter] = {}

    def count(self, label: str, result: str) -> None:
        """One more delivery. ``label`` is a type that is handled, or OTHER: never what a request says."""
        key = (label if label in HANDLED else OTHER, result)
        counter = self._counters.get(key)
        if counter is None:
            counter = self._counters[key] = self._metrics.counter("stripe_webhook_total", type=key[0], result=result)
        counter.add()


async def take_event(request: web.Request) -> web.Response:
    """200 once the event's effect is committed, or was before; 400 for what is not Stripe's; 503: send it again."""
    services = request.app[SERVICES]
    billing, webhooks = services.billing, services.webhooks
    if billing is None or webhooks is None:
        raise RefusedError(
            503, "billing_disabled", "Billing is switched off on this gateway; send the event again later."
        )
    event = await _verified(request, services, webhooks)
    try:
        result = await billing.apply(event)
    except (StoreError, BusyError) as error:
        webhooks.count(event.label, ERROR)
        _log.warning("webhook_not_handled", type=event.label, event_id=event.id, error=str(error))
        message = "The event could not be stored just now; send it again."
        raise RefusedError(503, "overloaded", message, headers={"Retry-After": "1"}) from None
    except Exception:
        webhooks.count(event.label, ERROR)
        raise  # 500: Stripe sends it again, too
    webhooks.count(event.label, result)
    _log.info("webhook_handled", type=event.label, event_id=event.id, result=result)
    return answer({"received": True, "result": result})


async def _verified(request: web.Request, services: Services, webhooks: Webhooks) -> Event:
    """The event that Stripe has signed; raises RefusedError (400)."""
    try:
        body = await _read_body(request)
        headers = request.headers.getall(HEADER, ())
        if len(headers) != 1:
            raise SignatureError(f"one {HEADER} header")
        verify(headers[0], body, webhooks.secrets, services.now_ms() / 1000)
        return read_event(_parsed(body))
    except SignatureError as error:
        webhooks.count(OTHER, BAD_SIGNATURE)
        problem = Problem(field=HEADER, found="something else", expected=error.expected)
        message = f"The request is not signed by Stripe: expected {error.expected}."
        raise RefusedError(400, "invalid_signature", message, problems=(problem,)) from None
    except EventError as error:
        webhooks.count(OTHER, INVALID)
        raise invalid(Problem(field=error.field, found="something else", expected=error.expected)) from None
    except RefusedError:
        webhooks.count(OTHER, INVALID)
        raise


async def _read_body(request: web.Request) -> bytes:
    """The bytes as they came, at most BODY_BYTES_MAX of them: more is not read."""
    too_large = Problem(field="body", found="more", expected=f"at most {BODY_BYTES_MAX} bytes")
    if (request.content_length or 0) > BODY_BYTES_MAX:
        raise _unread(too_large)
    body = bytearray()
    try:
        while piece := await request.content.readany():
            body += piece
            if len(body) > BODY_BYTES_MAX:
                raise _unread(too_large)
    except (web.RequestPayloadError, ConnectionError):
        raise invalid(Problem(field="body", found="a broken transfer", expected="a whole body")) from None
    return bytes(body)


def _unread(problem: Problem) -> RefusedError:
    """400, and the connection ends: the rest of the body is not waited for."""
    refused = invalid(problem)
    return RefusedError(
        refused.status, refused.code, refused.message, problems=refused.problems, headers={"Connection": "close"}
    )


def _parsed(body: bytes) -> object:
    try:
        # Python's own limits (digits of a number, depth) are errors like any other here.
        return json.loads(body.decode())
    except (ValueError, RecursionError):
        raise EventError("body", "JSON in UTF-8") from None
