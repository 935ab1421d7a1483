"""A circuit breaker: who asks a store that is away is told so at once; one call at a time finds out whether it is back.

Theory. A call that waits for a dead store costs its time-out; a thousand calls that wait cost the gateway. So after
``failures_max`` failures in a row nobody is let through any more (OPEN). After a pause one call is (HALF_OPEN): the
probe. Its success lets everybody through (CLOSED); its failure starts the next pause, twice as long, up to a bound. A
call that was under way when the circuit opened may still report: that changes nothing, it speaks of an earlier time. A
probe that never reports is given up after the pause that a failure would have cost.

    state      event                          next       also
    CLOSED     succeeded                      CLOSED     forget failures
    CLOSED     failed, fewer than the bound   CLOSED     count it
    CLOSED     failed                         OPEN       first pause
    OPEN       succeeded, failed              OPEN
    OPEN       allows, pause over             HALF_OPEN  the asker is the probe
    HALF_OPEN  succeeded                      CLOSED
    HALF_OPEN  failed                         OPEN       pause doubled
    HALF_OPEN  allows, pause over             HALF_OPEN  the asker is the next probe
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from gateway.metrics import Metrics

CLOSED = "closed"
OPEN = "open"
HALF_OPEN = "half_open"

# Short enough that a restarted store serves again before anybody looks; a probe costs one connection attempt.
PAUSE_S = 0.1
PAUSE_MAX_S = 1.0

_log = structlog.get_logger()


class Breaker:
    """The breaker of one store. ``clock`` gives seconds that never fall; ``changed`` hears (before, after, reason)."""

    def __init__(
        self,
        *,
        clock: Callable[[], float],
        changed: Callable[[str, str, str], None] = lambda *_: None,
        failures_max: int = 1,
        pause_s: float = PAUSE_S,
        pause_max_s: float = PAUSE_MAX_S,
    ) -> None:
        self.state = CLOSED
        self._clock = clock
        self._changed = changed
        self._failures_max = failures_max
        self._failures = 0
        self._pause_first_s = pause_s
        self._pause_max_s = pause_max_s
        self._pause_s = pause_s
        self._due = 0.0

    def allows(self) -> bool:
        """False while calls must fail at once. Where True, the caller tells the outcome."""
        if self.state == CLOSED:
            return True
        if self._clock() < self._due:
            return False
        self._due = self._clock() + self._pause_s
        self._become(HALF_OPEN, "")
        return True

    def wait_s(self) -> float:
        """How long until ``allows`` may be True."""
        return 0.0 if self.state == CLOSED else max(0.0, self._due - self._clock())

    def hurry(self) -> None:
        """Somebody has reason to hope: the next probe need not wait for the pause to be over."""
        self._due = self._clock()

    def succeeded(self) -> None:
        """The store answered a call that was allowed."""
        if self.state == OPEN:
            return
        self._failures = 0
        self._pause_s = self._pause_first_s
        self._become(CLOSED, "")

    def failed(self, reason: str = "") -> None:
        """The store did not answer a call that was allowed."""
        if self.state == OPEN:
            return
        if self.state == CLOSED:
            self._failures += 1
            if self._failures < self._failures_max:
                return
        else:
            self._pause_s = min(2 * self._pause_s, self._pause_max_s)
        self._due = self._clock() + self._pause_s
        self._become(OPEN, reason)

    def _become(self, state: str, reason: str) -> None:
        before, self.state = self.state, state
        if before != state:
            self._changed(before, state, reason)


def announcer(store: str, metrics: "Metrics") -> Callable[[str, str, str], None]:
    """For ``Breaker(changed=…)``: one line in the log and the metrics when ``store`` is lost, and when it is back.

    Where breakers share one (each partition of Redis has its own), the store is lost with the first that opens, and
    back with the last that closes.
    """
    up = metrics.gauge("castgate_store_up", store=store)
    up.set(1)
    not_closed = metrics.gauge("castgate_breakers_open", store=store)
    lost = 0

    def changed(before: str, after: str, reason: str) -> None:
        nonlocal lost
        if before == CLOSED:
            lost += 1
            up.set(0)
            not_closed.set(lost)
            if lost == 1:
                _log.warning("store_lost", store=store, reason=reason)
        elif after == CLOSED:
            lost -= 1
            up.set(lost == 0)
            not_closed.set(lost)
            if not lost:
                _log.warning("store_back", store=store)
        elif after == OPEN:
            _log.debug("store_still_lost", store=store, reason=reason)

    return changed
