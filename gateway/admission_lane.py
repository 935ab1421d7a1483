"""One partition's way to Redis: asks queue up while a script call is under way, and go together as the next one.

A lane is a small state machine:

    state      asks                      leaves when
    DOWN       are decided elsewhere     the breaker lets a probe connect; it does -> JOINING
    JOINING    are decided elsewhere     it is known whether Redis lost data -> RESTORING, or -> DRAINING if not
    RESTORING  are decided elsewhere     every worker's holds are in place again (admission_restore) -> HANDOVER
    HANDOVER   wait, for milliseconds    all workers have come so far -> DRAINING; one does not come -> RESTORING
    DRAINING   wait, for milliseconds    what was settled meanwhile is told -> UP
    UP         sent, one call at a time  Redis lost data -> JOINING
    all                                  a call fails, or takes longer than the time-out -> DOWN

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
from gateway.admission_restore import Fleet, Membership
from gateway.admission_settle import Settled
from gateway.breaker import Breaker
from gateway.redis_store import ADMIT, FACTS, ORPHANS, RedisLink, RedisLostError, Reply, encoded
from gateway.vigil import Vigil

if TYPE_CHECKING:
    from gateway.metrics import Metrics
    from gateway.redis_topology import Topology
    from gateway.tasks import Tasks

DOWN, JOINING, RESTORING, HANDOVER, DRAINING, UP = range(6)

# A worker that is not heard of for hold_ttl is taken for dead; it says that it lives many times in that span.
HEARTBEAT_S = 0.5
# Settling alone waits this long for company; an ask that comes takes it along at once.
SETTLE_DELAY_S = 0.002
# When the time-out is over, replies that came while this process was busy are read first.
GRACE_S = 0.005
# While calls are under way Redis hears of us so often, see admission_postgres.ENTER_S.
KEEP_S = 0.008
# After so many script calls in a row with one ask at most, the next one's reply is waited for awake.
ALONE_MIN = 8
# Generations that end as fast as they begin are no reason to keep Redis busy.
REJOIN_S = 0.01
# A connection that lasted so long is tried again at once when it breaks: most that break are no outage.
HURRY_S = 1.0
# Changes of facts that could not be told to Redis; more would be accounts that other workers know by their old facts
# until they read them again.
VERSIONS_MAX = 10_000

_log = structlog.get_logger()
_batch_numbers = count(1)
_NOT_ASKED: tuple[list[Ask], Settled] = ([], Settled())


class Lane:
    """One partition of one worker. ``answered`` hears each reply of the script; ``unanswered`` the asks without one.

    ``holds`` gives this worker's open holds in this partition, ``has_holds`` whether there are any in all, ``is_open``
    whether one is, by its id. What ``quiesce`` returns is done when no ask that came before is being decided elsewhere
    any more. ``left`` hears why asks cannot be taken any more, ``served`` that they can, and whether Redis has lost
    what it knew since it last did.
    """

    def __init__(
        self,
        partition: int,
        *,
        topology: "Topology",
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
        holds: Callable[["Lane"], list[Ask]],
        has_holds: Callable[[], object],
        is_open: Callable[[str], bool],
        fleet: Fleet,
        quiesce: Callable[[], "asyncio.Future[None] | None"],
        left: Callable[[str], None],
        served: Callable[["Lane", bool], None],
        test_clock_ms: Callable[[], int] | None = None,
    ) -> None:
        self.worker_id = worker_id
        self.state = DOWN
        self.settled = Settled()
        self.breaker = Breaker(clock=time.monotonic, changed=announce)
        # Rises when Redis is not the process it was: what it knows may be older than what it knew.
        self.generation = 0
        self._served_generation = 0
        self.up_since_s = 0.0
        self.served = 0  # calls of the script that were answered
        self.workers_key = f"cg:{{{partition}}}:workers"
        self._partition = partition
        self._prefix = f"cg:{{{partition}}}:"
        self._topology = topology
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
        self._quiesce = quiesce
        self._left = left
        self._served = served
        # Calls were admitted elsewhere since Redis last served; set by who decides there.
        self.was_elsewhere = False
        self._is_joining = False
        self._keeping = False
        self._has_holds = has_holds
        # The number of the call whose answers are being given out.
        self._number = 0
        self._number_answered = 0
        self._versions: dict[str, int] = {}
        self._closing = False
        self._connecting: asyncio.Task[None] | None = None
        self._asks: list[Ask] = []
        self._flight = _NOT_ASKED
        self._flying = False
        self._sending = False
        self._vigil = Vigil(self._loop)
        self._alone = 0  # script calls in a row that carried one ask at most
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
        guards = topology.guard_keys(self._prefix)
        self._membership = Membership(
            self._prefix,
            worker_id,
            holds=lambda: holds(self),
            is_open=is_open,
            fleet=fleet,
            clock_ms=test_clock_ms,
            guards=guards,
        )
        keys = self.workers_key, f"{self._prefix}h:{worker_id}", *guards
        head = encoded("EVALSHA", ADMIT.sha, len(keys), *keys)
        self._head = b"*%d\r\n%b$" % (len(keys) + (5 if test_clock_ms else 4), head.partition(b"\r\n")[2])
        self._ok = metrics.counter("castgate_admission_calls_total", outcome="ok")
        self._failed = metrics.counter("castgate_admission_calls_total", outcome="error")
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
        """Send the ask, with this turn's others or with the next call. False where the queue is full: not taken."""
        if len(self._asks) >= self._queue_max:
            return False
        self._asks.append(ask)
        if not self._flying and not self._sending and self.state == UP:
            # What else has arrived in this turn of the loop goes along: one script call in place of two.
            self._sending = True
            self._loop.call_soon(self._send_asks)
        return True

    def _send_asks(self) -> None:
        self._sending = False
        if self._asks and not self._flying and self.state == UP:
            self._send()

    def settle_soon(self) -> None:
        """Tell Redis what stands in ``settled``, with the next call or in a moment."""
        if not self._flying and not self._settling and self.state >= RESTORING:
            self._settling = True
            self._loop.call_later(SETTLE_DELAY_S, self._settle_now)

    def settle_at_once(self) -> None:
        """The same without waiting for company: every worker's next verdict is to know of it."""
        if not self._flying and self.state >= RESTORING:
            self._send()

    def _settle_now(self) -> None:
        self._settling = False
        if not self._flying and self.state >= RESTORING and self.settled.count:
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
        self._number = next(_batch_numbers)
        member = self._membership
        beat = member.generation if self._beat_due else ""
        text = batch_text(self._number, member.epoch, beat, member.seq_known, asks, settled.text()).encode()
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
        if len(asks) > 1:
            self._alone = 0
        elif asks:
            self._alone += 1
            if self._alone > ALONE_MIN:
                self._vigil.begin()
        if not self._watching:
            self._watching = True
            self._loop.call_later(self._timeout_s, self._watch)

    def _replied(self, reply: Reply) -> None:
        if isinstance(reply, hiredis.ReplyError):
            self._refused(str(reply))
            return
        self._vigil.end()
        asks, _ = self._flight
        self._flight = _NOT_ASKED
        self._flying = False
        now_s = self._loop.time()
        took_s = now_s - self._sent_s
        self._ahead_ms = reply[0] - now_s * 1000
        self.served += 1
        self._number_answered = self._number
        if self.state == DRAINING and not self.settled.count:
            self._serve()
        # First the next call, so that Redis works while this process goes on with what was admitted. Where serving
        # began just now it may be under way.
        if (
            not self._flying
            and self.state >= RESTORING
            and ((self._asks and self.state == UP) or self.settled.count or self._beat_due)
        ):
            self._send()
        if asks:
            self._answered(self, asks, reply)
            self._batch_size.observe(len(asks))
        # Counting comes last: by then what was admitted is on its way.
        self._ok.add()
        self._duration.observe(took_s)
        self._queue_length.set(len(self._asks))

    def _refused(self, error: str) -> None:
        link = self._link
        if error.startswith("NOSCRIPT") and not self._reloaded and link is not None:
            # Redis has forgotten its scripts (SCRIPT FLUSH), and so has done nothing: say it all again.
            self._reloaded = True
            link.send(encoded("SCRIPT", "LOAD", ADMIT.source), lambda _: None)
            link.send(self._command, self._replied)
            return
        if error.startswith("LOST"):
            self._distrust(error)
        else:
            self._lose("reply", error)

    def took_holds(self) -> None:
        """The call that was answered last took a hold."""
        self._membership.seq_known = self._number_answered
        if not self._keeping:
            self._keeping = True
            self._loop.call_later(KEEP_S, self._keep)

    def _keep(self) -> None:
        """While calls are under way this worker must notice soon that Redis is gone, to tell others what it holds."""
        if self.state != UP or not self._has_holds():
            self._keeping = False
            return
        self._keeping = True
        self._loop.call_later(KEEP_S, self._keep)
        if not self._flying and self._loop.time() - self._sent_s > KEEP_S:
            self._send()

    def _serve(self) -> None:
        self.state = UP
        self.was_elsewhere = False
        self.up_since_s = self._loop.time()
        self.breaker.succeeded()
        self._tried.set()
        if not self._keeping:
            self._keep()
        anew, self._served_generation = self._served_generation != self.generation, self.generation
        self._served(self, anew)

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
        if self.state >= RESTORING and not self._flying:
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
        self._failed.add()
        self.breaker.failed(reason)
        if self.up_since_s and self._loop.time() - self.up_since_s > HURRY_S:
            self.breaker.hurry()
        self.up_since_s = 0.0
        if not self._closing:
            self._left(reason)
            self._connect()
        self._give_back(was_sent=True)

    def _give_back(self, *, was_sent: bool) -> None:
        """What was asked is decided elsewhere, what was settled is told later."""
        (sent, settled), waiting = self._flight, self._asks
        self._flight, self._asks, self._flying = _NOT_ASKED, [], False
        self.settled.put_back(settled)
        if sent:
            self._unanswered(sent, was_sent)
        if waiting:
            self._unanswered(waiting, False)

    def _distrust(self, reason: str) -> None:
        """Redis answers, but does not know what it knew."""
        link = self._link
        if link is None:
            return
        _log.debug("redis_distrusted", partition=self._partition, reason=reason)
        self.state = JOINING
        self._left(reason)
        if not self._is_joining:
            self._connecting = self._tasks.start(f"admission.join.{self._partition}", self._join(link))
        self._give_back(was_sent=False)

    def _connect(self) -> None:
        self._connecting = self._tasks.start(f"admission.connect.{self._partition}", self._reconnect())

    async def _reconnect(self) -> None:
        while True:
            if not self.breaker.allows():
                await asyncio.sleep(self.breaker.wait_s())
                continue
            try:
                link = await self._topology.connect(self._partition, lost=self._lost)
            except RedisLostError as error:
                self._connect_failed(str(error))
                continue
            self._link = link
            await self._join(link)
            return

    async def _join(self, link: RedisLink) -> None:
        """From a connection to one that serves; where it breaks before, ``_lose`` has begun anew."""
        self._is_joining = True
        try:
            while not await self._restored(link):
                if self._link is link:
                    self.state = JOINING
                waiting, self._asks = self._asks, []
                self._unanswered(waiting, False)
                await asyncio.sleep(REJOIN_S)
        except (RedisLostError, TimeoutError) as error:
            if self._link is link:
                self._is_joining = False
                self._lose("connect", str(error) or f"no answer within {self._connect_timeout_s:g} s")
            return
        finally:
            if self._link is link:
                self._is_joining = False
        self.state = DRAINING
        self._beat_due = True
        if not self._flying:
            self._send()

    async def _restored(self, link: RedisLink) -> bool:
        """False where another generation began meanwhile. Raises RedisLostError, TimeoutError."""
        member = self._membership
        if self._link is not link:
            raise RedisLostError("connection closed")
        self.state = JOINING
        async with asyncio.timeout(self._connect_timeout_s):
            await link.call("SCRIPT", "LOAD", ADMIT.source)
            joined = await member.join(link, was_elsewhere=self.was_elsewhere)
            await self._tell_versions(link)
        if joined.why not in ("", "elsewhere") and self.generation:
            _log.warning("redis_lost_data", partition=self._partition, found=joined.why)
        if not joined.is_whole:
            self.generation += 1

        def hand_over() -> "asyncio.Future[None] | None":
            if self._link is not link:
                raise RedisLostError("connection closed")
            self.state = HANDOVER
            return self._quiesce()

        def take_back() -> None:
            if self._link is not link:
                raise RedisLostError("connection closed")
            if self.state == HANDOVER:
                self.state = RESTORING
                waiting, self._asks = self._asks, []
                self._unanswered(waiting, False)

        if joined.is_whole:
            waiting = hand_over()
            if waiting is not None:
                await waiting
            # Had one of those that were being decided just then been admitted, Redis would not know it.
            return self._link is link and self.state == HANDOVER and not self.was_elsewhere
        self.state = RESTORING
        try:
            self.settled.forget_holds(self.worker_id)
            self.settled.remove(self.worker_id, await member.foreign(link), posted=False)
            self.settle_soon()
            await member.restore(link, joined, hand_over, take_back)
        except RedisLostError as error:
            if str(error).startswith("LOST") and self._link is link:
                return False
            raise
        return self.state == HANDOVER  # else it was distrusted meanwhile

    def _connect_failed(self, reason: str) -> None:
        self._left(reason)
        self._errors.add()
        self._store_errors["connect"].add()
        self._tried.set()
        self.breaker.failed(reason)

    async def close(self, timeout_s: float) -> None:
        """Tell Redis what is settled, as far as that goes in ``timeout_s``, and end the connection."""
        try:
            async with asyncio.timeout(timeout_s):
                while self._link is not None and (self._flying or self.settled.count or (self._asks and self.is_up)):
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
        await link.call("EVAL", FACTS.source, 1, self.workers_key, account_id, version)

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
