"""One worker process: where everything is put together, and the order in which it starts and stops.

Start: configuration, stores (which connect when they are first needed: a missing one delays nothing), services, relay,
listener. Stop: accept no more, let exchanges finish, flush the ledger, settle the holds, close the pools.
"""

from __future__ import annotations

import asyncio
import gc
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from gateway.accounts import Accounts
from gateway.admission import Admission
from gateway.billing import Billing
from gateway.billing_sync import sync_at_start
from gateway.database import Database, StoreError
from gateway.drift import DriftWatch
from gateway.exemplars import Exemplars
from gateway.fleet import Fleet
from gateway.hosted.app import hosted_paths
from gateway.hosted.server import HostedServer
from gateway.hosted.services import Services
from gateway.hosted.webhooks import Webhooks
from gateway.identify import Identify
from gateway.ledger import Ledger, event_id
from gateway.maintain import MonthsAhead
from gateway.metrics import Metrics
from gateway.metrics_families import FAMILIES
from gateway.metrics_scrape import exposition
from gateway.observer import Observer
from gateway.otlp import Spans
from gateway.payments import Payments
from gateway.policy.routes import RouteTable
from gateway.policy.rules import Rules
from gateway.relay import heads
from gateway.relay.client import ClientConnection
from gateway.relay.counters import wall_clock_ms
from gateway.relay.forwarding import Forwarding
from gateway.relay.pool import Pool
from gateway.relay.relay import Limits, Relay
from gateway.soft_limits import SoftLimits
from gateway.soft_limits_sweep import Sweep
from gateway.spool import Spool
from gateway.spool_replay import Replay
from gateway.tasks import Tasks
from gateway.tls import ListenerTls
from gateway.upstream_addresses import WAITING_MAX, new_upstream
from gateway.usage_events import UsageEvent, WindowUsage
from gateway.vitals import Vitals
from gateway.worker_parameters import Parameters, offered

if TYPE_CHECKING:
    from gateway.config import Loaded, Settings
    from gateway.outbox import Outbox

# Connections to the hosted application cost two file descriptors each and no network.
_HOSTED_CONNECTIONS_MAX = 64
_HOSTED_IDLE_S = 60.0
# A handshake takes two round trips; whoever takes longer is a slow loris of another kind.
_TLS_HANDSHAKE_TIMEOUT_S = 10.0
# A client that does not answer our goodbye is left without one.
_TLS_SHUTDOWN_TIMEOUT_S = 2.0
# Failures in a row after which the database's breaker says that Postgres is away.
_PROBES = 3
# Objects made, less those freed, before the collector looks for cycles among the young, and how often it looks at older
# ones. A call makes some fifty objects and hardly a cycle, so the defaults (700, 10, 10) look at nothing, often.
_GC_THRESHOLDS = (20_000, 20, 50)
# How long a stopping worker goes on accepting what waits in its queue.
_LAST_ACCEPTS_S = 0.05
# And how often it looks once more after that: a loop that was busy all the time has not looked yet.
_LAST_LOOKS = 3


class Worker:
    """The services of one worker process, composed."""

    def __init__(self, parameters: Parameters, loaded: Loaded) -> None:
        settings = loaded.settings
        self._parameters = parameters
        self._settings = settings
        self._rules = loaded.rules
        self._next: tuple[Rules, RouteTable] | None = None  # prepared, not taken
        self._tasks = Tasks()
        self._metrics = Metrics(Path(parameters.runtime_dir), f"worker-{parameters.index}")
        self._metrics.config_version(loaded.rules.version)
        worker_id = self._worker_id = f"{parameters.gateway_id}-{parameters.index}-{parameters.start}"
        self._database = Database.from_settings(settings.database, self._metrics)
        self._accounts = Accounts(
            self._database,
            self._current_rules,
            self._tasks,
            entries_max=settings.accounts.entries_max,
            facts_ttl_s=settings.accounts.facts_ttl_s,
        )
        self._identify = Identify(self._database, self._accounts, settings.identity, self._tasks, self._metrics)
        self._spool = self._new_spool(worker_id)
        spill = self._spool.spill if self._spool is not None else None
        self._ledger = Ledger(self._database, settings.ledger, self._tasks, self._metrics, spill=spill)
        self._replaying: asyncio.Task[None] | None = None
        self._fleet = Fleet(self._database, worker_id)
        self._admission = Admission(
            worker_id=worker_id,
            fleet=self._fleet,
            settings=settings,
            accounts=self._accounts,
            ledger=self._ledger,
            database=self._database,
            rules=self._current_rules,
            tasks=self._tasks,
            metrics=self._metrics,
        )
        self._outbox = self._new_outbox() if settings.soft_limits.webhook.url else None
        self._soft_limits = SoftLimits(
            database=self._database,
            accounts=self._accounts,
            rules=self._current_rules,
            tasks=self._tasks,
            metrics=self._metrics,
            queued=self._outbox.wake if self._outbox else None,
        )
        self._accounts.on_seeded = self._soft_limits.committed
        self._ledger.on_dropped = self._admission.dropped
        self._ledger.on_put_off = self._put_off
        if self._spool is not None:
            self._spool.on_refused = self._ledger.take_back
        self._ledger.has_holds = self._admission.has_rows
        self._payments = Payments(settings.billing) if loaded.billing_enabled else None
        self._metrics.gauge("castgate_billing_enabled").set(int(loaded.billing_enabled))
        self._billing = self._new_billing(self._payments) if self._payments else None
        self._hosted = HostedServer(self._services(), self._tasks)
        self._folder = Path(parameters.config).parent  # what paths in the configuration are seen from
        self._relay = self._new_relay()
        self._spans = Spans.of(settings.traces, self._metrics)
        examples = Exemplars(
            Path(parameters.runtime_dir), f"worker-{parameters.index}", FAMILIES["spell_cast_duration_seconds"].bounds
        )
        self._observer = Observer(settings, self._metrics, self._spans, examples)
        self._ledger.on_committed = self._observer.committed(self._committed)
        self._observe()
        self._server: asyncio.Server | None = None
        files = self._certificate_and_key(settings)
        self._tls = ListenerTls(*files) if files else None

    def _certificate_and_key(self, settings: Settings) -> tuple[Path, ...]:
        return tuple(self._folder / name for name in settings.listen.tls.files)

    def _current_rules(self) -> Rules:
        return self._rules

    def _services(self) -> Services:
        runtime_dir = Path(self._parameters.runtime_dir)
        return Services(
            identify=self._identify,
            accounts=self._accounts,
            admission=self._admission,
            database=self._database,
            rules=self._current_rules,
            settings=lambda: self._settings,
            render_metrics=lambda accept: exposition(runtime_dir, accept),
            now_ms=wall_clock_ms,
            billing=self._billing,
            webhooks=Webhooks(self._settings.billing.stripe_webhook_secrets, self._metrics) if self._billing else None,
        )

    def _new_spool(self, worker_id: str) -> Spool | None:
        settings = self._settings.ledger.spool
        if settings.folder is None:
            return None
        folder = Path(self._parameters.config).parent / settings.folder
        return Spool(folder, settings, worker_id=worker_id, tasks=self._tasks, metrics=self._metrics)

    def _claim(self, worker_id: str, events: Sequence[UsageEvent]) -> None:
        """The holds of ``events`` are in the book of a worker that is gone, and end there when the ledger has them."""
        self._admission.orphans.pending.update(dict.fromkeys((event.event_id for event in events), worker_id))

    def _committed(self, events: Sequence[UsageEvent], usages: Sequence[WindowUsage]) -> None:
        self._admission.posted(events, usages)
        self._soft_limits.committed(usages)

    def _put_off(self, events: Sequence[UsageEvent]) -> None:
        """The holds of ``events`` stay in the books of workers that are gone, to be swept again."""
        for event in events:
            self._admission.orphans.pending.pop(event.event_id, None)
            self._admission.orphans.pending_rows.discard(event.event_id)

    def _new_outbox(self) -> Outbox:
        from gateway.outbox import Outbox  # noqa: PLC0415  with httpx, which is 3 MiB, for workers that call webhooks

        return Outbox(self._database, self._settings.soft_limits.webhook, self._tasks, self._metrics)

    def _new_billing(self, payments: Payments) -> Billing:
        return Billing(
            database=self._database,
            payments=payments,
            rules=self._current_rules,
            tell=self._admission.facts_changed,
            grace_days=self._settings.billing.grace_days,
        )

    def _new_relay(self) -> Relay:
        settings = self._settings
        loop = asyncio.get_running_loop()
        api_key = settings.identity.api_key
        relay = Relay(
            limits=Limits.from_settings(settings),
            rules=self._rules,
            identify=self._identify,
            admission=self._admission,
            ledger=self._ledger,
            metrics=self._metrics,
            tasks=self._tasks,
            hosted_paths=hosted_paths(metrics_public=settings.metrics.public),
            request_fields=heads.request_fields(api_key.header, api_key.alternative_header),
            new_event_id=event_id,
            forwarding=Forwarding.from_settings(settings.forwarding),
        )
        self._upstream = new_upstream(relay, settings.upstream, self._folder)
        relay.upstream_pool = self._upstream
        relay.budget_use = self._soft_limits.use_of
        relay.hosted_pool = Pool(
            relay,
            "hosted",
            lambda factory: loop.create_connection(factory, sock=self._hosted.connect()),
            host_line=b"Host: localhost\r\n",
            connections_max=_HOSTED_CONNECTIONS_MAX,
            waiting_max=WAITING_MAX,
            keepalive_idle_s=_HOSTED_IDLE_S,
        )
        return relay

    async def start(self) -> None:
        """Listens; from here on requests are served."""
        await self._hosted.start()
        self._tasks.start("fleet", self._fleet.run())
        await self._admission.start()
        self._tasks.start("relay.tick", self._relay.tick_forever())
        self._tasks.start("upstream.look_up", self._upstream.look_up_forever())
        self._tasks.start("database.probe", self._probe_database())
        self._tasks.start("observer.write", self._observer.write_forever())
        if self._spans is not None:
            self._tasks.start("spans.send", self._spans.send_forever())
        vitals = Vitals(settings=self._settings, metrics=self._metrics, relay=self._relay, ledger=self._ledger)
        self._tasks.start("vitals", vitals.watch_forever())
        if self._spool is not None:
            replay = Replay(self._spool, self._ledger, worker_id=self._worker_id, claim=self._claim)
            self._replaying = self._tasks.start("spool.replay", replay.run())
        if self._parameters.index == 0 and self._settings.ledger.drift_interval_s > 0:
            self._tasks.start("drift", DriftWatch(self._database, self._settings, self._metrics).run())
        if self._parameters.index == 0:
            months = MonthsAhead(self._database, self._settings.ledger.partitions_ahead)
            self._tasks.start("months", months.run())
        sweep_interval_s = self._settings.soft_limits.sweep_interval_s
        if self._parameters.index == 0 and sweep_interval_s > 0:
            sweep = Sweep(self._database, self._soft_limits, interval_s=sweep_interval_s)
            self._tasks.start("soft_limits.sweep", sweep.run())
        if self._outbox is not None:
            self._outbox.start()
        if self._billing is not None:
            self._tasks.start("billing.sync", sync_at_start(self._billing, self._metrics))
        listener = socket.socket(fileno=self._parameters.listen_fd)
        listener.setblocking(False)
        self._server = await self._listen(listener)
        # Modules, models and rules stay to the end: no collection need look at them again.
        gc.collect()
        gc.freeze()
        gc.set_threshold(*_GC_THRESHOLDS)

    async def _listen(self, listener: socket.socket) -> asyncio.Server:
        loop = asyncio.get_running_loop()

        def factory() -> asyncio.Protocol:
            return cast("asyncio.Protocol", ClientConnection(self._relay))

        options: dict[str, Any] = {"sock": listener, "backlog": self._settings.listen.backlog}
        if self._tls is not None:
            options |= {
                "ssl": self._tls.context,
                "ssl_handshake_timeout": _TLS_HANDSHAKE_TIMEOUT_S,
                "ssl_shutdown_timeout": _TLS_SHUTDOWN_TIMEOUT_S,
            }
        if listener.family == socket.AF_UNIX:
            return await loop.create_unix_server(factory, **options)
        return await loop.create_server(factory, **options)

    async def _probe_database(self) -> None:
        """Whether Postgres is there should be known before the first call needs it."""
        for _ in range(_PROBES):
            try:
                await self._database.fetch("SELECT 1")
            except StoreError:
                continue
            return

    async def prepare(self) -> str:
        """Makes what is offered ready for ``take``, beside what is in use; returns its version.

        The certificate is read again, too, for connections from now on. Raises ConfigError, TlsError.
        """
        loaded, routes = await asyncio.to_thread(offered, self._parameters)
        # At once, and not with ``take``: it can fail, and no rule depends on it.
        if self._tls is not None and (files := self._certificate_and_key(loaded.settings)):
            self._tls.reload(*files)
        self._next = loaded.rules, routes
        return loaded.rules.version

    def take(self) -> str:
        """Takes the policies and plans prepared last, for every request that begins from now on; returns their version.

        Settings of ``config.yaml`` that shape the process itself (listeners, stores, limits) are read at start only.
        """
        if self._next is not None:
            self._rules, routes = self._next
            self._next = None
            self._relay.use(self._rules, routes)
            self._observe()
            self._accounts.rules_changed()
            self._metrics.config_version(self._rules.version)
        return self._rules.version

    def _observe(self) -> None:
        """Requests from now on are watched as the rules say."""
        self._observer.use(self._rules)
        self._relay.new_exchange = self._observer.exchange
        self._relay.noteworthy = self._observer.noteworthy

    async def stop(self) -> None:
        """Accepts no more, finishes, settles, flushes, closes: in this order nothing is lost."""
        self._relay.draining = True
        await asyncio.sleep(_LAST_ACCEPTS_S)
        for _ in range(_LAST_LOOKS):
            await asyncio.sleep(0)
        if self._server is not None:
            self._server.close()
        await self._relay.drain(self._settings.drain_timeout_s)
        await self._hosted.close()
        if self._replaying is not None:
            self._replaying.cancel()
            await asyncio.wait({self._replaying})
        await self._ledger.close()
        if self._spool is not None:
            await self._spool.close()
        await self._admission.close()
        await self._soft_limits.close()
        if self._outbox is not None:
            await self._outbox.close()
        await self._fleet.leave()
        self._relay.upstream_pool.close()
        self._relay.hosted_pool.close()
        await self._tasks.drain(0)
        self._observer.close()
        if self._spans is not None:
            await self._spans.close()
        if self._payments is not None:
            await self._payments.close()
        await self._database.close()
        self._metrics.close()


if __name__ == "__main__":  # for supervisors of the version before ``worker_main``, under which this one was installed
    from gateway.worker_main import main

    main()
