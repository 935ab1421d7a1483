"""State over restarts: one JSON file, written anew shortly after a change and at the end."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from stripe_stub.delivery import Deliveries
from stripe_stub.idempotency import IdempotencyKeys
from stripe_stub.state import State

WRITE_EVERY_S = 0.5  # what a killed stand-in may forget

log = logging.getLogger("stripe_stub")


class Keeping:
    def __init__(self, path: Path, state: State, keys: IdempotencyKeys, deliveries: Deliveries) -> None:
        self._path = path
        self._state = state
        self._keys = keys
        self._deliveries = deliveries
        self._written = state.revision

    def load(self) -> None:
        """Raises ValueError for a file that is not this stand-in's, and OSError."""
        if not self._path.exists():
            return
        try:
            kept = json.loads(self._path.read_bytes())
            self._state.load(kept["objects"])
            self._keys.load(kept["idempotency_keys"])
            self._deliveries.load(kept["deliveries"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{self._path} is not a file of this stand-in: {error!r}") from error

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # The task is owned here: made, ended and waited for in this function.
        task = asyncio.get_running_loop().create_task(self._run(), name="keeping")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])
            self._write(self._text())

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(WRITE_EVERY_S)
            if self._written != self._state.revision:
                self._written = self._state.revision
                try:
                    await asyncio.to_thread(self._write, self._text())
                except OSError as error:
                    log.warning("cannot write %s: %s", self._path, error)

    def _text(self) -> str:
        return json.dumps(
            {
                "objects": self._state.dump(),
                "idempotency_keys": self._keys.dump(),
                "deliveries": self._deliveries.dump(),
            }
        )

    def _write(self, text: str) -> None:
        """All of it or nothing: a file beside it takes its place."""
        beside = self._path.with_name(f"{self._path.name}.new")
        beside.write_text(text)
        beside.replace(self._path)
