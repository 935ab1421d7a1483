"""``/_stub/…``: what a test turns and asks. JSON in and out; errors have Stripe's shape. No key is asked for."""

from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from stripe_stub.api import Api
from stripe_stub.delivery import Deliveries
from stripe_stub.errors import invalid
from stripe_stub.faults import Fault, Faults
from stripe_stub.journal import Journal, shown
from stripe_stub.state import Json, State, new_id, now_s
from stripe_stub.switches import Endpoint, Switches
from stripe_stub.versions import NEWEST, checked_version, render

WAIT_S = 10.0  # unless a test says how long
WAIT_MAX_S = 120.0

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Control:
    def __init__(
        self,
        state: State,
        journal: Journal,
        deliveries: Deliveries,
        faults: Faults,
        api: Api,
        start_over: Callable[[], None],
    ) -> None:
        self._state = state
        self._journal = journal
        self._deliveries = deliveries
        self._faults = faults
        self._api = api
        self._start_over = start_over
        self._switches_first = deliveries.switches

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/_stub/reset", self.reset),
            web.get("/_stub/delivery", self.switches),
            web.put("/_stub/delivery", self.turn_switches),
            web.post("/_stub/delivery/wait", self.wait),
            web.get("/_stub/deliveries", self.deliveries),
            web.get("/_stub/endpoints", self.endpoints),
            web.put("/_stub/endpoints", self.replace_endpoints),
            web.put("/_stub/account", self.change_account),
            web.post("/_stub/events", self.make_event),
            web.post("/_stub/events/{id}/deliver", self.deliver),
            web.get("/_stub/faults", self.faults),
            web.put("/_stub/faults", self.replace_faults),
            web.get("/_stub/requests", self.requests),
            web.get("/_stub/objects/{kind}", self.objects),
        ]

    async def reset(self, _: web.Request) -> web.Response:
        """All is as after the start: no objects but the seeded prices, no faults, the first switches."""
        self._deliveries.clear()
        self._deliveries.switches = self._switches_first
        self._faults.replace([])
        self._api.requests.clear()
        self._start_over()
        return web.json_response({"reset": True})

    async def switches(self, _: web.Request) -> web.Response:
        return web.json_response(self._deliveries.switches.as_json())

    async def turn_switches(self, request: web.Request) -> web.Response:
        """The switches that are named; ``{"defaults": true}`` beside them turns all others back."""
        values = await read_object(request)
        switches = Switches() if values.pop("defaults", False) else self._deliveries.switches
        self._deliveries.switches = switches.changed(values)
        return web.json_response(self._deliveries.switches.as_json())

    async def wait(self, request: web.Request) -> web.Response:
        """Until all that is to be delivered was, or was given up: ``{"idle": true}``; false after `timeout_s`."""
        timeout_s = _seconds(await read_object(request), "timeout_s")
        return web.json_response({"idle": await self._deliveries.idle(timeout_s)})

    async def deliveries(self, request: web.Request) -> web.Response:
        rows = self._deliveries.find(request.query.get("event"))
        kind = request.query.get("type")
        return web.json_response({"data": [row.as_json() for row in rows if kind in {None, row.type}]})

    async def endpoints(self, _: web.Request) -> web.Response:
        return web.json_response([endpoint.as_json() for endpoint in self._deliveries.endpoints])

    async def replace_endpoints(self, request: web.Request) -> web.Response:
        """``[{"url", "secrets": […], "api_version"?, "enabled_events"?}]``. What waits for one goes to its new form."""
        self._deliveries.endpoints = Endpoint.parse_all(await _read_json(request))
        return await self.endpoints(request)

    async def change_account(self, request: web.Request) -> web.Response:
        """``{"api_version"}``: how events made from now on are shown when they are read through the API."""
        version = (await read_object(request)).get("api_version")
        if not isinstance(version, str):
            raise invalid("api_version is a text.")
        self._journal.api_version = checked_version(version)
        return web.json_response({"api_version": self._journal.api_version})

    async def make_event(self, request: web.Request) -> web.Response:
        """Any event at all: ``{"type", "object", "id"?, "created"?, "previous_attributes"?, "deliver"?}``."""
        values = await read_object(request)
        kind, thing = values.get("type"), values.get("object")
        if not isinstance(kind, str) or not isinstance(thing, dict):
            raise invalid("An event has a type and an object.")
        data: Json = {"object": thing}
        if "previous_attributes" in values:
            data["previous_attributes"] = values["previous_attributes"]
        event = {
            "id": values.get("id", new_id("evt")),
            "object": "event",
            "api_version": self._journal.api_version,
            "created": values.get("created", now_s()),
            "data": data,
            "livemode": False,
            "pending_webhooks": 0,
            "request": {"id": None, "idempotency_key": None},
            "type": kind,
        }
        if values.get("deliver", True):
            self._journal.publish(event)
        else:
            self._state.add(event)
        return web.json_response(event)

    async def deliver(self, request: web.Request) -> web.Response:
        """Send an event now, whatever the switches say, `times` over and in parallel; answers after the attempts."""
        values = await read_object(request)
        event = self._state.get("event", request.match_info["id"])
        times = values.get("times", 1)
        if not isinstance(times, int) or not 1 <= times <= 1000:
            raise invalid("times is 1 to 1000.")
        deliveries = self._deliveries.send_again(event, times=times)
        await self._deliveries.tried(deliveries, _seconds(values, "wait_s"))
        return web.json_response({"data": [delivery.as_json() for delivery in deliveries]})

    async def faults(self, _: web.Request) -> web.Response:
        return web.json_response(self._faults.as_json())

    async def replace_faults(self, request: web.Request) -> web.Response:
        """``[{"mode", "times"?, "path"?, "method"?, "delay_s"?}]`` (`faults.py`); ``[]``: all is well."""
        rows = await _read_json(request)
        if not isinstance(rows, list):
            raise invalid("Faults are a list.")
        self._faults.replace([Fault.parse(row) for row in rows])
        return await self.faults(request)

    async def requests(self, _: web.Request) -> web.Response:
        """The API's requests, the newest last."""
        return web.json_response({"data": self._api.requests})

    async def objects(self, request: web.Request) -> web.Response:
        """All objects of a kind (`customer`, `checkout.session`, …), the newest first, in the newest form."""
        kind = request.match_info["kind"]
        form = shown if kind == "event" else render
        rows = [form(row, NEWEST) for row in self._state.newest_first(kind)]
        return web.json_response({"data": rows})


async def read_object(request: web.Request) -> dict[str, Any]:
    """The body as a JSON object; an empty body is ``{}``."""
    if not request.body_exists:
        return {}
    values = await _read_json(request)
    if not isinstance(values, dict):
        raise invalid("The body is not a JSON object.")
    return values


async def _read_json(request: web.Request) -> Any:
    try:
        return await request.json()
    except ValueError:
        raise invalid("The body is not JSON.") from None


def _seconds(values: dict[str, Any], name: str) -> float:
    value = values.get(name, WAIT_S)
    if not isinstance(value, (int, float)) or not 0 <= value <= WAIT_MAX_S:
        raise invalid(f"{name} is a number of seconds.")
    return float(value)
