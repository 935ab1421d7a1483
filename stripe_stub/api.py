"""One call of the API, in order: fault, key, version, parameters, idempotency, endpoint, rendering, expansion."""

import asyncio
import base64
import binascii
import json
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass

from aiohttp import web

from stripe_stub.errors import ApiError, invalid
from stripe_stub.expand import expand, leave_out
from stripe_stub.faults import Fault, Faults, cut
from stripe_stub.forms import Parameters, parse_form
from stripe_stub.idempotency import Answer, IdempotencyKeys
from stripe_stub.journal import Journal
from stripe_stub.state import Json, State, new_id
from stripe_stub.versions import checked_version, render

REQUESTS_KEPT_MAX = 2000

log = logging.getLogger("stripe_stub")


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """What an endpoint gets."""

    parameters: Parameters
    path: Mapping[str, str]  # the ids in it
    url: str  # the path of the request: lists carry it
    origin: str  # scheme://host:port by which the caller knows this server, for links to the hosted pages


Endpoint = Callable[[Call], Json]


class Api:
    """Makes aiohttp handlers of endpoints. Endpoints never await, so each is one step that nothing comes between."""

    def __init__(
        self, state: State, journal: Journal, faults: Faults, keys: IdempotencyKeys, secret_key: str | None
    ) -> None:
        self._state = state
        self._journal = journal
        self._faults = faults
        self._keys = keys
        self._secret_key = secret_key  # None: any sk_… or rk_… will do
        self.requests: list[Json] = []  # the newest last; for tests to look at

    def handler(
        self, endpoint: Endpoint, known: Collection[str] = ()
    ) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        """`known` are the names of all top-level parameters of the endpoint; others are refused, as Stripe does."""
        names = frozenset({*known, "expand"})

        async def handle(request: web.Request) -> web.StreamResponse:
            return await self._answer(request, endpoint, names)

        return handle

    async def unknown(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, _no_endpoint(request), None)

    async def _answer(
        self, request: web.Request, endpoint: Endpoint, known: Collection[str] | None
    ) -> web.StreamResponse:
        request_id = new_id("req")
        noted = self._note(request, request_id)
        fault = self._faults.take(request.method, request.path)
        replayed = False
        try:
            if (instead := await self._faults.before(request, fault)) is not None:
                noted["status"] = instead.status if isinstance(instead, web.Response) else None
                return instead
            self._check_key(request)
            version = checked_version(request.headers.get("Stripe-Version", self._journal.api_version))
            text = request.query_string
            if request.method != "GET" and request.body_exists:
                text = (await request.read()).decode("utf-8", "strict")
            values = parse_form(text)
            noted["parameters"] = values
            parameters = Parameters(values)
            if known is not None:
                parameters.refuse_unknown(known)
            call = Call(parameters=parameters, path=dict(request.match_info), url=request.path, origin=_origin(request))
            key = request.headers.get("Idempotency-Key") if request.method == "POST" else None
            if key is None:
                await _be_slow(fault)
                answer = self._execute(endpoint, call, version, request_id, None)
            else:
                asked = f"{request.path}?{json.dumps(values, sort_keys=True)}"
                earlier = self._keys.earlier_answer(key, asked)
                if earlier is not None:
                    answer, replayed = earlier, True
                else:
                    with self._keys.under_way(key, asked) as kept:
                        await _be_slow(fault)
                        answer = self._execute(endpoint, call, version, request_id, key)
                        if answer.status < 400 or answer.status in {402, 500}:
                            kept.append(answer)
        except ApiError as error:
            answer = _error_answer(error, request_id)
        except UnicodeDecodeError:
            answer = _error_answer(invalid("The parameters are not valid UTF-8."), request_id)
        noted["status"], noted["replayed"] = answer.status, replayed
        if fault is not None and fault.mode == "drop":
            return cut(request)
        return self._response(request, answer, request_id, replayed=replayed)

    def _execute(self, endpoint: Endpoint, call: Call, version: str, request_id: str, key: str | None) -> Answer:
        try:
            with self._journal.caused_by(request_id, key):
                body: Json = render(endpoint(call), version)
            paths = call.parameters.texts("expand")
            leave_out(body, paths)
            expand(body, paths, lambda identifier: self._shown(identifier, version))
        except ApiError as error:
            return _error_answer(error, request_id)
        except Exception:
            log.exception("%s failed", call.url)
            return _error_answer(ApiError(500, "api_error", "The stand-in made a mistake; see its log."), request_id)
        finally:
            self._state.touch()
        return Answer(status=200, body=json.dumps(body, indent=2), request_id=request_id)

    def _shown(self, identifier: str, version: str) -> Json | None:
        thing = self._state.find_any(identifier)
        return None if thing is None else render(thing, version)

    def _check_key(self, request: web.Request) -> None:
        scheme, _, value = request.headers.get("Authorization", "").partition(" ")
        secret = value.strip()
        if scheme.lower() == "basic":
            try:
                secret = base64.b64decode(secret).decode().partition(":")[0]
            except (binascii.Error, UnicodeDecodeError):
                secret = ""
        if not secret:
            raise ApiError(
                401,
                "invalid_request_error",
                "You did not provide an API key. You need to provide your API key in the Authorization header, using "
                "Bearer auth (e.g. 'Authorization: Bearer YOUR_SECRET_KEY').",
            )
        wrong = secret != self._secret_key if self._secret_key else not secret.startswith(("sk_", "rk_"))
        if wrong:
            masked = f"{secret[:8]}{'*' * 8}" if len(secret) > 16 else "*" * 8
            raise ApiError(401, "invalid_request_error", f"Invalid API Key provided: {masked}", code="api_key_invalid")

    def _note(self, request: web.Request, request_id: str) -> Json:
        noted: Json = {
            "id": request_id,
            "method": request.method,
            "path": request.path,
            "headers": {
                name: request.headers[name]
                for name in ("Stripe-Version", "Idempotency-Key", "User-Agent", "X-Stripe-Client-Telemetry")
                if name in request.headers
            },
            "parameters": None,
            "status": None,
            "replayed": False,
        }
        self.requests.append(noted)
        del self.requests[:-REQUESTS_KEPT_MAX]
        return noted

    def _response(self, request: web.Request, answer: Answer, request_id: str, *, replayed: bool) -> web.StreamResponse:
        headers = {"Request-Id": request_id, "Cache-Control": "no-cache, no-store"}
        for name in ("Stripe-Version", "Idempotency-Key"):
            if name in request.headers:
                headers[name] = request.headers[name]
        if replayed:
            headers |= {"Idempotent-Replayed": "true", "Original-Request": answer.request_id}
        return web.Response(
            status=answer.status, body=answer.body.encode(), content_type="application/json", headers=headers
        )


def _error_answer(error: ApiError, request_id: str) -> Answer:
    return Answer(status=error.status, body=json.dumps(error.body(), indent=2), request_id=request_id)


def _no_endpoint(request: web.Request) -> Endpoint:
    def refuse(_: Call) -> Json:
        raise ApiError(
            404,
            "invalid_request_error",
            f"Unrecognized request URL ({request.method}: {request.path}). Please see https://stripe.com/docs.",
        )

    return refuse


async def _be_slow(fault: Fault | None) -> None:
    if fault is not None and fault.mode == "slow":
        await asyncio.sleep(fault.delay_s)


def _origin(request: web.Request) -> str:
    return f"{request.scheme}://{request.host}"
