"""Events: what happened, as Stripe records it, and who is told.

An event keeps the object as it was at that moment in the newest form; `shown` gives it the form of a version.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy

from stripe_stub.expand import leave_out
from stripe_stub.state import Json, State, new_id, now_s
from stripe_stub.versions import render, render_changes


class Journal:
    def __init__(self, state: State, api_version: str) -> None:
        self._state = state
        self._cause: Json = {"id": None, "idempotency_key": None}
        self.api_version = api_version  # the account's default: how events are shown when read through the API
        self.tell: Callable[[Json], None] = lambda _: None  # set by whoever delivers

    @contextmanager
    def caused_by(self, request_id: str, idempotency_key: str | None) -> Iterator[None]:
        """Events recorded inside name this request. Never across an await: there is one cause at a time."""
        before, self._cause = self._cause, {"id": request_id, "idempotency_key": idempotency_key}
        try:
            yield
        finally:
            self._cause = before

    def record(self, kind: str, thing: Json, previous: Json | None = None) -> Json:
        """An event of type `kind` about `thing` as it is now; `previous` are the old values of what changed."""
        data: Json = {"object": deepcopy(thing)}
        if previous is not None:
            data["previous_attributes"] = deepcopy(previous)
        event = {
            "id": new_id("evt"),
            "object": "event",
            "api_version": self.api_version,
            "created": now_s(),
            "data": data,
            "livemode": False,
            "pending_webhooks": 0,
            "request": dict(self._cause),
            "type": kind,
        }
        return self.publish(event)

    def publish(self, event: Json) -> Json:
        """Record an event that is complete, and have it delivered."""
        self._state.add(event)
        self.tell(event)
        return event

    @contextmanager
    def change(self, thing: Json, kind: str) -> Iterator[Json]:
        """Inside, `thing` is changed; afterwards the event `kind` tells what it was before, unless all is as it was."""
        before = deepcopy(thing)
        yield thing
        previous = {key: before.get(key) for key, value in thing.items() if before.get(key) != value}
        if previous:
            self._state.touch()
            self.record(kind, thing, {key: value for key, value in previous.items() if not key.startswith("_")})


def shown(event: Json, version: str) -> Json:
    """The event as an endpoint of `version` gets it. Its `api_version` says so."""
    data: Json = {"object": render(event["data"]["object"], version)}
    leave_out(data["object"], [])
    if "previous_attributes" in event["data"]:
        kind = event["data"]["object"].get("object", "")
        data["previous_attributes"] = render_changes(kind, event["data"]["previous_attributes"], version)
    return {**event, "api_version": version, "data": data}
