"""What is measured of a worker from aside, a few times a second, so that no request pays for it."""

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway.config import Settings
    from gateway.ledger import Ledger
    from gateway.metrics import Metrics
    from gateway.relay.relay import Relay

# Short enough to meet most stalls that a client would notice; four wake-ups a second cost nothing.
INTERVAL_S = 0.25


class Vitals:
    """The event loop, the ledger and the pools of one worker."""

    def __init__(self, *, settings: "Settings", metrics: "Metrics", relay: "Relay", ledger: "Ledger") -> None:
        self._relay = relay
        self._ledger = ledger
        self._delay = metrics.histogram("castgate_event_loop_delay_seconds")
        self._lag = metrics.gauge("castgate_ledger_lag_seconds")
        self._flushes = metrics.counter("castgate_ledger_flushes_total", result="ok")
        self._busy = metrics.gauge("castgate_upstream_connections_busy")
        self._waiting = metrics.gauge("castgate_upstream_waiting")
        metrics.gauge("castgate_upstream_connections_max").set(
            settings.upstream.connections_max * len(settings.upstream.addresses)
        )
        metrics.gauge("castgate_database_pool_max").set(settings.database.pool_max)
        self._lag.set(0)
        self._flushes_seen = self._flushes.value
        self._idle_since_s = 0.0

    async def watch_forever(self) -> None:
        """Measures until it is cancelled."""
        loop = asyncio.get_running_loop()
        self._idle_since_s = loop.time()
        while True:
            due_s = loop.time() + INTERVAL_S
            await asyncio.sleep(INTERVAL_S)
            now_s = loop.time()
            # How late we were woken is how late everything else was that waited for its turn.
            self._delay.observe(max(now_s - due_s, 0.0))
            self.look(now_s)

    def look(self, now_s: float) -> None:
        """Measure once."""
        # An event is written within milliseconds, so what counts is for how long none was while some waited.
        if not len(self._ledger) or self._flushes.value != self._flushes_seen:
            self._flushes_seen = self._flushes.value
            self._idle_since_s = now_s
        self._lag.set(now_s - self._idle_since_s)
        pool = self._relay.upstream_pool
        self._busy.set(pool.busy)
        self._waiting.set(pool.waiting)
