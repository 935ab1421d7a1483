"""What the stand-in remembers: objects as the newest API version shows them, by kind, in the order they were made.

Keys that begin with an underscore are the stand-in's own notes on an object (which card a customer has); they are kept
with it and never shown (`versions.render`).
"""

import secrets
import time
from collections.abc import Iterator
from typing import Any

from stripe_stub.errors import no_such

Json = dict[str, Any]

OBJECTS_OF_A_KIND_MAX = 20_000  # the oldest go: a stand-in may be left running for weeks


def now_s() -> int:
    """Stripe's times are whole seconds."""
    return int(time.time())


def new_id(prefix: str) -> str:
    return f"{prefix}_{secrets.token_hex(12)}"


class State:
    def __init__(self) -> None:
        self._kinds: dict[str, dict[str, Json]] = {}
        self.revision = 0  # rises with every change, so that whoever writes it down sees that there was one

    def add(self, thing: Json) -> Json:
        kind = self._kinds.setdefault(thing["object"], {})
        kind[thing["id"]] = thing
        if len(kind) > OBJECTS_OF_A_KIND_MAX:
            del kind[next(iter(kind))]
        self.touch()
        return thing

    def remove(self, thing: Json) -> None:
        del self._kinds[thing["object"]][thing["id"]]
        self.touch()

    def touch(self) -> None:
        self.revision += 1

    def find(self, kind: str, identifier: str) -> Json | None:
        return self._kinds.get(kind, {}).get(identifier)

    def find_any(self, identifier: str) -> Json | None:
        return next((kind[identifier] for kind in self._kinds.values() if identifier in kind), None)

    def get(self, kind: str, identifier: str, *, param: str = "id") -> Json:
        """Raises Stripe's answer for what is not there."""
        thing = self.find(kind, identifier)
        if thing is None:
            raise no_such(kind, identifier, param=param)
        return thing

    def newest_first(self, kind: str) -> Iterator[Json]:
        return reversed(self._kinds.get(kind, {}).values())

    def clear(self) -> None:
        self._kinds.clear()
        self.touch()

    def dump(self) -> list[Json]:
        return [thing for kind in self._kinds.values() for thing in kind.values()]

    def load(self, things: list[Json]) -> None:
        for thing in things:
            self.add(thing)
