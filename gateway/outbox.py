"""Messages for the operator's webhook: from the table webhook_outbox to the receiver, at least once.

A message waits in the table until the receiver has taken it (2xx), by whichever worker: one claims what is due for as
long as an attempt may take (a lease), delivers, and writes down what came of it. A worker that dies in between leaves a
lease that ends; a receiver whose 2xx was lost gets the message again, with the same webhook-id.

    state      ends by
    waiting    2xx → delivered; attempts_max, age_max or 410 → dead; anything else → waiting, later
    delivered  -
    dead       castgate outbox retry → waiting

Nothing of the answer but its status and Retry-After is used; no redirect is followed; certificates are verified.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import asyncpg
import httpx
import structlog

from gateway.build import build_version
from gateway.database import QUERIES, Database, StoreError
from gateway.policy.answers import instant_text
from gateway.policy.money import cents_text
from gateway.policy.periods import FOREVER_MS
from gateway.policy.thresholds import SOFT
from gateway.webhook_signature import signed_headers

if TYPE_CHECKING:
    from gateway.config.settings_accounts import BudgetWebhook
    from gateway.metrics import Metrics
    from gateway.tasks import Tasks

# Delivered at the same time by one worker; the next ones are claimed when all of them are over.
BATCH_MAX = 4
# How often a worker looks for what others left; what it wrote itself it delivers at once.
POLL_S = 5.0
# A lease is longer than an attempt by what writing down its end may take.
LEASE_EXTRA_S = 10.0
# Until the next attempt: twice as long after each, within these, and anything from half to all of it.
BACKOFF_MIN_S = 5.0
BACKOFF_MAX_S = 7200.0
# After a batch of which nothing was taken: a long queue is not to be hurled at a receiver that is down.
FAILED_PAUSE_S = 1.0
ERROR_CHARACTERS_MAX = 200
_CLOSE_TIMEOUT_S = 2.0
_TYPE = "budget.threshold_reached"

_log = structlog.get_logger()


class Outbox:
    """One worker's deliveries."""

    def __init__(
        self, database: Database, settings: BudgetWebhook, tasks: Tasks, metrics: Metrics, *, poll_s: float = POLL_S
    ) -> None:
        """``settings`` has a URL."""
        assert settings.url is not None
        self._database = database
        self._settings = settings
        self._url = settings.url
        self._receiver = urlsplit(settings.url).hostname or ""  # all of it that is ever shown: paths may be secrets
        self._tasks = tasks
        self._poll_s = poll_s
        self._woken = asyncio.Event()
        self._closing = False
        self._task: asyncio.Task[None] | None = None
        self._failing = False
        self._client = httpx.AsyncClient(
            timeout=settings.timeout_s,
            follow_redirects=False,
            headers={"Content-Type": "application/json", "User-Agent": f"castgate/{build_version()}"},
            # A body is not read, however short: what is left of its connection is closed.
            limits=httpx.Limits(max_connections=BATCH_MAX, max_keepalive_connections=0),
        )
        self._attempts = {
            result: metrics.counter("castgate_webhook_attempts_total", result=result)
            for result in ("delivered", "failed", "dead")
        }

    def start(self) -> None:
        """Delivers from now on."""
        self._task = self._tasks.start("outbox.deliver", self._run())

    def wake(self) -> None:
        """There is something to deliver."""
        self._woken.set()

    async def close(self) -> None:
        """Ends; what is on its way may arrive for a short time, else another worker delivers it again."""
        self._closing = True
        self._woken.set()
        if self._task is not None:
            _, pending = await asyncio.wait({self._task}, timeout=_CLOSE_TIMEOUT_S)
            for task in pending:
                task.cancel()
                await asyncio.wait({task}, timeout=_CLOSE_TIMEOUT_S)
        await self._client.aclose()

    async def _run(self) -> None:
        while not self._closing:
            self._woken.clear()
            taken = await self.deliver_due()
            if taken is True:
                continue
            pause_s = self._poll_s * random.uniform(0.5, 1.0) if taken is None else FAILED_PAUSE_S
            try:
                async with asyncio.timeout(pause_s):
                    await self._woken.wait()
            except TimeoutError:
                continue

    async def deliver_due(self) -> bool | None:
        """Tries what is due, at most BATCH_MAX of it: whether any was taken; None where there was nothing to try."""
        try:
            rows = await self._database.fetch(
                QUERIES["outbox_claim"], BATCH_MAX, self._settings.timeout_s + LEASE_EXTRA_S
            )
        except (StoreError, asyncpg.PostgresError) as error:
            _log.debug("outbox_not_read", error=str(error))  # that Postgres is away is said elsewhere
            return None
        if not rows:
            return None
        return any(await asyncio.gather(*map(self._deliver, rows)))

    async def _deliver(self, row: asyncpg.Record) -> bool:
        error, asked_s = await self._post(row["id"], body_of(row))
        is_last = (
            row["attempts"] >= self._settings.attempts_max
            or row["age_s"] >= self._settings.age_max_s
            or error == _answered(httpx.codes.GONE)
        )
        try:
            if not error:
                self._attempts["delivered"].add()
                await self._database.execute(QUERIES["outbox_delivered"], row["id"])
            elif is_last:
                # Counted only by whoever ends it: an attempt that comes too late ends nothing.
                if await self._database.fetchrow(QUERIES["outbox_dead"], row["id"], row["attempts"], error):
                    self._attempts["dead"].add()
                    _log.error(
                        "webhook_dead",
                        message=row["id"],
                        account=row["account_id"],
                        attempts=row["attempts"],
                        error=error,
                        mend="castgate outbox retry",
                    )
            else:
                self._attempts["failed"].add()
                pause_s = max(backoff_s(row["attempts"]), asked_s)
                await self._database.execute(QUERIES["outbox_failed"], row["id"], row["attempts"], error, pause_s)
        except (StoreError, asyncpg.PostgresError) as failure:
            _log.warning("outbox_not_written", message=row["id"], error=str(failure), effect="delivered again")
        self._report(error)
        return not error

    async def _post(self, message_id: str, body: bytes) -> tuple[str, float]:
        """What went wrong, or nothing; and for how long the receiver asks to be left alone."""
        headers = signed_headers(self._settings.secrets, message_id, int(time.time()), body)
        try:
            async with (
                asyncio.timeout(self._settings.timeout_s),  # of all of it; httpx' own is of each step
                self._client.stream("POST", self._url, content=body, headers=headers) as answer,
            ):
                return "" if answer.is_success else _answered(answer.status_code), _asked_s(answer)
        except TimeoutError:
            return f"no answer within {self._settings.timeout_s:g} s", 0.0
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError, ValueError) as failure:
            return f"{type(failure).__name__}: {failure}"[:ERROR_CHARACTERS_MAX], 0.0

    def _report(self, error: str) -> None:
        """One line when deliveries begin to fail, and one when they work again."""
        if bool(error) != self._failing:
            self._failing = bool(error)
            if error:
                _log.warning("webhook_failing", receiver=self._receiver, error=error)
            else:
                _log.info("webhook_recovered", receiver=self._receiver)


def body_of(row: asyncpg.Record) -> bytes:
    """The message of an announcement: the same bytes for each attempt. Amounts are exact numbers, not floats."""
    start_ms, end_ms = (int(row[name].timestamp()) * 1000 for name in ("window_start", "window_end"))
    has_end = end_ms < FOREVER_MS
    told = {
        "account_id": row["account_id"],
        "plan": row["plan"],
        "period": row["period"],
        "timezone": row["time_zone"],
        "threshold": row["threshold"],
        "threshold_percent": None if row["threshold"] == SOFT else int(row["threshold"]),
        "window_start": instant_text(start_ms) if has_end else None,
        "resets_at": instant_text(end_ms) if has_end else None,
    }
    amounts = ", ".join(
        f'"{name}_cents": {cents_text(row[f"{name}_microcents"])}' for name in ("threshold", "limit", "used")
    )
    at = instant_text(int(row["announced_at"].timestamp() * 1000))
    data = f"{json.dumps(told)[:-1]}, {amounts}}}"
    return f'{{"type": "{_TYPE}", "timestamp": "{at}", "data": {data}}}'.encode()


def backoff_s(attempt: int) -> float:
    """How long to wait after so many attempts."""
    return min(BACKOFF_MIN_S * 2.0 ** min(attempt - 1, 30), BACKOFF_MAX_S) * random.uniform(0.5, 1.0)


def _answered(status: int) -> str:
    return f"the receiver answers {int(status)}"


def _asked_s(answer: httpx.Response) -> float:
    text = answer.headers.get("Retry-After", "")
    return min(float(text), BACKOFF_MAX_S) if text.isascii() and text.isdigit() and len(text) < 10 else 0.0
