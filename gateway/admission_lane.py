"""One partition's way to Redis: asks queue up while a script call is under way, and go together as the next one.

A lane is a small state machine:

    state     asks                              leaves when
    DOWN      answered without Redis, at once   the breaker lets a probe connect; it does -> DRAINING
    DRAINING  answered without Redis, at once   all that was settled meanwhile has been told -> UP
    UP        sent, one script call at a time   a call fails, or takes longer than the time-out -> DOWN

Only the task that connects waits for a store that is away, never an ask: one that is under way when the store is lost
is answered within the time-out, one that comes later at once. What was on its way may yet be done by Redis: the next
connection begins by raising the worker's epoch, after which the script refuses whatever the old one had sent.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable
from itertools import count
from typing import TYPE_CHECKING

import hiredis
import structlog

from gateway.admission_batch import Ask, batch_text
from gateway.admission_settle import Settled
from gateway.breaker import Breaker
from gateway.redis_store import ADMIT, FACTS, ORPHANS, RedisLink, RedisLostError, Reply, connect, encoded

if TYPE_CHECKING:
    from gateway.metrics import Metrics
    from gateway.tasks import Tasks

DOWN, DRAINING, UP = range(3)

# A worker that is not heard of for hold_ttl is taken for dead; it says that it lives many times in that span.
HEARTBEAT_S = 0.5
# Settling alone waits this long for company; an ask that comes takes it along at once.
SETTLE_DELAY_S = 0.002
# When the time-out is over, replies that came while this process was busy are read first.
GRACE_S = 0.005
# A version without windows is kept for longer than any seed that was read before it can be on its way.
FACTS_TTL_MS = 86_400_000
# Changes of facts that could not be told to Redis; more would be accounts that other workers know by their old facts
# until they read them again.
VERSIONS_MAX = 10_000

_log = structlog.get_logger()
_batch_numbers = count(1)
_NOT_ASKED: tuple[list[Ask], Settled] = ([], Settled())


class Lane:
    """One partition of one worker. ``answered`` hears each reply of the script; ``unanswered`` the asks without one."""

    def __init__(
        self,
        partition: int,
        *,
        url: str,
        worker_id: str,
        timeout_s: float,
        connect_timeout_s: float,
        batch_max: int,
        queue_max: int,
        tasks: "Tasks",
        metrics: "Metrics",
        announce: Callable[[str, str, str], None],
        answered: Callable[["Lane", list[Ask], list[Reply]], None],
        unanswered: Callable[[list[Ask], bool], None],
        test_clock_ms: Callable[[], int] | None = None,
    ) -> None:
        self.worker_id = worker_id
        self.state = DOWN
        self.settled = Settled()
        self.breaker = Breaker(clock=time.monotonic, changed=announce)
        # Rises when Redis is not the process it was: what it knows may be older than what it knew.
        self.generation = 0
        self.up_since_s = 0.0
        self.workers_key = f"cg:{{{partition}}}:workers"
        self._partition = partition
        self._prefix = f"cg:{{{partition}}}:"
        self._url = url
        self._timeout_s = timeout_s
        self._connect_timeout_s = connect_timeout_s
        self._batch_max = batch_max
        self._queue_max = queue_max
        self._tasks = tasks
        self._answered = answered
        self._unanswered = unanswered
        self._test_clock_ms = test_clock_ms
        self._loop = asyncio.get_running_loop()
        self._link: RedisLink | None = None
        self._run_id = b""
        self._epoch = 0
        self._versions: dict[str, int] = {}
        self._closing = False
        self._connecting: asyncio.Task[None] | None = None
        self._asks: list[Ask] = []
        self._flight = _NOT_ASKED
        self._flying = False
        self._command = b""
        self._sent_s = 0.0
        self._reloaded = False
        self._overdue = False
        self._watching = False
        self._settling = False
        self._beat_due = True
        self._beat: asyncio.TimerHandle | None = None
        self._tried = asyncio.Event()
        self._ahead_ms = time.time() * 1000 - self._loop.time() * 1000  # Redis' clock minus the loop's
        keys = f"cg:{{{partition}}}:workers".encode(), f"{self._prefix}h:{worker_id}".encode()
        head = encoded("EVALSHA", ADMIT.sha, 2, *keys)
        self._head = b"*%d\r\n%b$" % (7 if test_clock_ms else 6, head.partition(b"\r\n")[2])
        self._calls = {
            outcome: metrics.counter("castgate_admission_calls_total", outcome=outcome) for outcome in ("ok", "error")
        }
        self._errors = metrics.counter("redis_errors_total")
        self._store_errors = {
            reason: metrics.counter("castgate_store_errors_total", store="redis", reason=reason)
            for reason in ("connect", "lost", "timeout", "reply")
        }
        self._batch_size = metrics.histogram("castgate_admission_batch_size")
        self._duration = metrics.histogram("castgate_admission_duration_seconds")
        self._queue_length = metrics.gauge("castgate_admission_queue_length")

    # --- asks and settles

    @property
    def now_ms(self) -> int:
        """Redis' clock, as far as known here."""
        if self._test_clock_ms:
            return self._test_clock_ms()
        return int(self._loop.time() * 1000 + self._ahead_ms)

    def ask(self, ask: Ask) -> bool:
        """Send the ask, now or with the next call. False where the queue is full: the ask is not taken."""
        if len(self._asks) >= self._queue_max:
            return False
        self._asks.append(ask)
        if not self._flying:
            self._send()
        return True

    def settle_soon(self) -> None:
        """Tell Redis what stands in ``settled``, with the next call or in a moment."""
        if not self._flying and not self._settling and self.state == UP:
            self._settling = True
            self._loop.call_later(SETTLE_DELAY_S, self._settle_now)

    def _settle_now(self) -> None:
        self._settling = False
        if not self._flying and self._link is not None and self.settled.count:
            self._send()

    def _send(self) -> None:
        link = self._link
        assert link is not None
        asks: list[Ask] = []
        if self.state == UP:
            asks = self._asks
            if len(asks) <= self._batch_max:
                self._asks = []
            else:
                asks, self._asks = asks[: self._batch_max], asks[self._batch_max :]
        settled = self.settled.take() if self.settled.count else _NOT_ASKED[1]
        text = batch_text(next(_batch_numbers), self._epoch, self._beat_due, asks, settled.text()).encode()
        tail = b""
        if self._test_clock_ms:
            tail = encoded(self._test_clock_ms()).partition(b"\r\n")[2]
        self._beat_due = False
        self._flight = asks, settled
        self._flying = True
        self._reloaded = self._overdue = False
        self._sent_s = self._loop.time()
        self._command = b"%b%d\r\n%b\r\n%b" % (self._head, len(text), text, tail)
        link.send(self._command, self._replied)
        if not self._watching:
            self._watching = True
            self._loop.call_later(self._timeout_s, self._watch)

    def _replied(self, reply: Reply) -> None:
        if isinstance(reply, hiredis.ReplyError):
            self._refused(str(reply))
            return
        asks, _ = self._flight
        self._flight = _NOT_ASKED
        self._flying = False
        now_s = self._loop.time()
        self._ahead_ms = reply[0] - now_s * 1000
        self._calls["ok"].add()
        self._duration.observe(now_s - self._sent_s)
        self._queue_length.set(len(self._asks))
        if self.state == DRAINING and not self.settled.count:
            self.state = UP
            self.up_since_s = now_s
            self.breaker.succeeded()
            self._tried.set()
        # First the next call, so that Redis works while this process goes on with what was admitted.
        if self._asks or self.settled.count or self._beat_due:
            self._send()
        if asks:
            self._batch_size.observe(len(asks))
            self._answered(self, asks, reply)

    def _refused(self, error: str) -> None:
        link = self._link
        if error.startswith("NOSCRIPT") and not self._reloaded and link is not None:
            # Redis has forgotten its scripts (SCRIPT FLUSH), and so has done nothing: say it all again.
            self._reloaded = True
            link.send(encoded("SCRIPT", "LOAD", ADMIT.source), lambda _: None)
            link.send(self._command, self._replied)
            return
        self._lose("reply", error)

    # --- time

    def _watch(self) -> None:
        """Runs once per time-out, not once per call: a timer for each would cost more than the call's own work."""
        self._watching = False
        if not self._flying:
            return
        left_s = self._sent_s + self._timeout_s - self._loop.time()
        if left_s > 0:
            self._overdue = False
        elif self._overdue:
            self._lose("timeout", f"no answer within {self._timeout_s:g} s")
            return
        else:
            # Perhaps it was this process that had no time: whatever has arrived is read before this is called again.
            self._overdue = True
            left_s = GRACE_S
        self._watching = True
        self._loop.call_later(left_s, self._watch)

    def _tick(self) -> None:
        self._beat = self._loop.call_later(HEARTBEAT_S, self._tick)
        self._beat_due = True
        if self._link is not None and not self._flying and self.state == UP:
            self._send()
        if self._versions and self.state == UP and self._link is not None:
            self._tasks.start(f"admission.facts.{self._partition}", self._tell_late_versions(self._link))

    async def _tell_late_versions(self, link: RedisLink) -> None:
        try:
            await self._tell_versions(link)
        except RedisLostError:
            return  # still in _versions: told on the next connection

    # --- losing Redis, and finding it again

    def start(self) -> None:
        """Begin to connect."""
        self._tick()
        self._connect()

    async def wait_tried(self, timeout_s: float) -> None:
        """Until Redis serves or is known to be away, for as long as that."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._tried.wait()

    @property
    def is_up(self) -> bool:
        """Whether asks are sent to Redis."""
        return self.state == UP

    def _lost(self, reason: str) -> None:
        self._lose("lost", reason)

    def _lose(self, kind: str, reason: str) -> None:
        link, self._link = self._link, None
        if link is None:
            return
        link.close()
        self.state = DOWN
        self._errors.add()
        self._store_errors[kind].add()
        self._calls["error"].add()
        self.breaker.failed(reason)
        (sent, settled), waiting = self._flight, self._asks
        self._flight, self._asks, self._flying = _NOT_ASKED, [], False
        self.settled.put_back(settled)
        if not self._closing:
            self._connect()
        if sent:
            self._unanswered(sent, True)
        if waiting:
            self._unanswered(waiting, False)

    def _connect(self) -> None:
        self._connecting = self._tasks.start(f"admission.connect.{self._partition}", self._reconnect())

    async def _reconnect(self) -> None:
        while True:
            if not self.breaker.allows():
                await asyncio.sleep(self.breaker.wait_s())
                continue
            try:
                link = await connect(self._url, timeout_s=self._connect_timeout_s, lost=self._lost)
            except RedisLostError as error:
                self._connect_failed(str(error))
                continue
            try:
                async with asyncio.timeout(self._connect_timeout_s):
                    await self._greet(link)
            except (RedisLostError, TimeoutError) as error:
                link.close()
                self._connect_failed(str(error) or f"no answer within {self._connect_timeout_s:g} s")
                continue
            self._link = link
            self.state = DRAINING
            self._beat_due = True
            self._send()
            return

    def _connect_failed(self, reason: str) -> None:
        self._errors.add()
        self._store_errors["connect"].add()
        self._tried.set()
        self.breaker.failed(reason)

    async def _greet(self, link: RedisLink) -> None:
        """Scripts, the fence against what an older connection had sent, and whether this is the Redis of before."""
        self._epoch += 1
        await link.call("SCRIPT", "LOAD", ADMIT.source)
        await link.call("HSET", f"{self._prefix}h:{self.worker_id}", "epoch", self._epoch)
        await self._tell_versions(link)
        server: bytes = await link.call("INFO", "server")
        run_id = server.partition(b"run_id:")[2].partition(b"\r\n")[0]
        if self._run_id and run_id != self._run_id:
            self.generation += 1
            _log.warning("redis_replaced", partition=self._partition, effect="accounts are seeded again as they call")
        self._run_id = run_id

    async def close(self, timeout_s: float) -> None:
        """Tell Redis what is settled, as far as that goes in ``timeout_s``, and end the connection."""
        try:
            async with asyncio.timeout(timeout_s):
                while self._link is not None and (self._flying or self.settled.count or self._asks):
                    if not self._flying:
                        self._send()
                    await asyncio.sleep(SETTLE_DELAY_S)
        except TimeoutError:
            _log.warning("admission_not_settled", partition=self._partition, items=self.settled.count)
        self._closing = True
        if self._connecting is not None:
            self._connecting.cancel()
        if self._beat is not None:
            self._beat.cancel()
        link, self._link = self._link, None
        self.state = DOWN
        if link is not None:
            link.close()

    # --- seldom

    async def raise_version(self, account_id: str, version: int) -> bool:
        """Make the facts' version known to all workers. False where Redis is away; it is told when it is back."""
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                await self._raise_version(self._open_link(), account_id, version)
                return True
        except (RedisLostError, TimeoutError):
            if len(self._versions) < VERSIONS_MAX:
                self._versions[account_id] = max(version, self._versions.get(account_id, 0))
            else:
                _log.error("facts_change_not_told", account=account_id, version=version)
            return False

    async def _raise_version(self, link: RedisLink, account_id: str, version: int) -> None:
        await link.call("EVAL", FACTS.source, 1, self.account_key(account_id), version, FACTS_TTL_MS)

    async def _tell_versions(self, link: RedisLink) -> None:
        for account_id, version in list(self._versions.items()):
            await self._raise_version(link, account_id, version)
            if self._versions.get(account_id) == version:
                del self._versions[account_id]

    def account_key(self, account_id: str) -> str:
        """Where the account's state is kept."""
        return f"{self._prefix}a:{account_id}"

    async def orphans(self, silent_ms: int, worker_id: str = "", cursor: str = "0", page: int = 0) -> list[bytes | int]:
        """See ``lua/orphans.lua``. Raises RedisLostError."""
        arguments: list[str | int] = [silent_ms, worker_id, cursor, page]
        if self._test_clock_ms:
            arguments.append(self._test_clock_ms())
        reply: list[bytes | int] = await self.call("EVAL", ORPHANS.source, 1, self.workers_key, *arguments)
        return reply

    async def call(self, *parts: str | int | bytes) -> Reply:
        """The reply of one command, behind whatever is under way. Raises RedisLostError."""
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                return await self._open_link().call(*parts)
        except TimeoutError:
            raise RedisLostError("no answer in time") from None

    def _open_link(self) -> RedisLink:
        if self._link is None:
            raise RedisLostError("Redis is away")
        return self._link
