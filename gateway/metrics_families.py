"""The one place where a metric can be declared: its name, its kind, its labels, and how processes' numbers become one.

Names follow Prometheus' practice: base units, ``_total`` for what only rises. One name is older than that practice:
``redis_errors_total`` is a gauge by contract, although it only rises, and so it is stored like a counter.
"""

from collections.abc import Mapping
from dataclasses import dataclass

COUNTER = "counter"
GAUGE = "gauge"  # of living processes; merged as the family says
RISING_GAUGE = "rising_gauge"  # shown as a gauge, stored and summed as a counter
HISTOGRAM = "histogram"

# From a cached answer on the same machine to the longest an upstream may take by default.
LATENCY_BOUNDS_S = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
)  # fmt: skip
BATCH_BOUNDS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One metric as it is declared. ``merge`` says how a gauge of several processes becomes one: sum, min or max."""

    name: str
    kind: str
    help: str
    labels: tuple[str, ...] = ()
    merge: str = "sum"
    bounds: tuple[float, ...] = LATENCY_BOUNDS_S

    @property
    def width(self) -> int:
        """Slots of one series: one word, or for a histogram its buckets, +Inf and the sum."""
        return len(self.bounds) + 2 if self.kind == HISTOGRAM else 1


def _counter(name: str, text: str, *labels: str) -> Family:
    return Family(name=name, kind=COUNTER, help=text, labels=labels)


def _gauge(name: str, text: str, *labels: str, merge: str = "sum") -> Family:
    return Family(name=name, kind=GAUGE, help=text, labels=labels, merge=merge)


def _histogram(name: str, text: str, *labels: str, bounds: tuple[float, ...] = LATENCY_BOUNDS_S) -> Family:
    return Family(name=name, kind=HISTOGRAM, help=text, labels=labels, bounds=bounds)


DECLARED = (
    # The mission's names.
    _counter("spell_cast_total", "Calls under a policy that the upstream answered, by its status.", "policy", "status"),
    _histogram("spell_cast_duration_seconds", "Time from a call's head to the end of its answer.", "policy"),
    _counter("rate_limited_total", "Calls over a rate limit (429).", "policy", "limit"),
    _counter("budget_block_total", "Calls over a budget (402).", "policy", "period"),
    _counter("stripe_webhook_total", "Stripe events received, by what became of them.", "type", "result"),
    _gauge("db_pool_in_use", "Postgres connections of the pool that are in use."),
    Family(name="redis_errors_total", kind=RISING_GAUGE, help="Redis calls that failed; a gauge that only rises."),
    # The data plane.
    _counter("castgate_requests_total", "Requests by kind (policy, plain, hosted, refused).", "kind"),
    _counter("castgate_own_answers_total", "Answers of the gateway itself in the upstream's stead.", "status"),
    _counter("castgate_would_block_total", "Calls that only shadow mode let pass.", "policy", "reason", "limit"),
    _counter("castgate_cost_missing_total", "Charged calls whose answer did not tell what they cost.", "policy"),
    _counter("castgate_cost_over_hold_total", "Calls that turned out dearer than what was held for them.", "policy"),
    _gauge("castgate_connections_open", "Client connections open."),
    _gauge("castgate_upstream_connections", "Connections to the upstream that are open."),
    _gauge("castgate_upstream_connections_busy", "Connections to the upstream that carry a call."),
    _gauge("castgate_upstream_connections_max", "Connections to the upstream that there may be."),
    _gauge("castgate_upstream_waiting", "Calls that wait for a connection to the upstream."),
    _counter("castgate_upstream_errors_total", "Calls that the upstream failed, by reason.", "reason"),
    _histogram(
        "castgate_stage_duration_seconds",
        "Time that a call was in a stage (identify, admit, connect, first_byte, answer, settle); of a sample of calls.",
        "stage",
    ),
    _counter("castgate_request_lines_dropped_total", "Log lines of requests that were dropped as too many."),
    _counter("castgate_traces_total", "Requests whose spans were sent, dropped or failed.", "result"),
    _gauge("castgate_upstream_addresses", "Addresses of the upstream that get calls, as the worst worker sees it.",
           merge="min"),
    _counter("castgate_upstream_ejections_total", "Addresses that a worker left out for a while."),
    # Identify.
    _counter("castgate_identify_total", "Lookups, by result (hit, negative, miss, unknown, stale, error).", "result"),
    _gauge("castgate_identify_cache_entries", "Credentials kept in the cache."),
    _counter("castgate_unidentified_success_total", "Unidentified calls that the upstream answered 2xx."),
    # Admission.
    _counter("castgate_admission_calls_total", "Admission script calls, by outcome.", "outcome"),
    _counter("castgate_admission_outcomes_total", "Asks by what the script said of them.", "outcome"),
    _histogram("castgate_admission_batch_size", "Asks that went with one script call.", bounds=BATCH_BOUNDS),
    _histogram("castgate_admission_duration_seconds", "Time of one admission script call."),
    _gauge("castgate_admission_queue_length", "Asks that wait for the next script call."),
    _gauge("castgate_holds_open", "Holds taken and not yet settled."),
    _counter("castgate_holds_settled_total", "Holds settled, by how (posted, voided, expired).", "how"),
    _gauge("castgate_admission_rung", "Workers on each rung of admission (redis, postgres, memory).", "rung"),
    _counter("castgate_admission_rung_changes_total", "Times that a worker came onto a rung of admission.", "rung"),
    # The ledger.
    _gauge("castgate_ledger_queue_length", "Events that wait to be written to Postgres."),
    _counter("castgate_ledger_events_total", "Events by what became of them (written, duplicate, dropped).", "result"),
    _counter("castgate_ledger_flushes_total", "Ledger transactions, by result (ok, error).", "result"),
    _histogram("castgate_ledger_flush_duration_seconds", "Time of one ledger transaction."),
    _histogram("castgate_ledger_batch_size", "Events written by one ledger transaction.", bounds=BATCH_BOUNDS),
    _counter("castgate_ledger_failures_total", "Ledger writes that failed, by what failed.", "reason"),
    _gauge("castgate_ledger_lag_seconds", "For how long events have waited and none was written.", merge="max"),
    # The spool.
    _gauge("castgate_spool_bytes", "Bytes on the disk that wait to be written to Postgres."),
    _gauge("castgate_spool_waiting_events", "Events on the disk that wait to be written to Postgres."),
    _gauge("castgate_spool_oldest_age_seconds", "How long the oldest of them has waited.", merge="max"),
    _gauge("castgate_spool_full", "1 if the spool takes no more events (bytes_max, age_max), else 0.", merge="max"),
    _counter("castgate_spool_events_total", "Events by what became of them (spilled, replayed, refused).", "result"),
    _counter("castgate_spool_errors_total", "Writes to the spool that failed."),
    # What castgate reconcile would find.
    _gauge("castgate_drift_microcents", "How far apart ledger, counters and Redis are.", "between", merge="max"),
    _gauge("castgate_drift_accounts", "Accounts of which they do not say the same.", merge="max"),
    _counter("castgate_drift_accounts_compared_total", "Accounts of which they were compared."),
    # Soft limits.
    _counter("castgate_soft_limit_total", "Thresholds of budgets that were reached, in percent or soft.", "threshold"),
    _counter("castgate_webhook_attempts_total", "Attempts to deliver a message (delivered, failed, dead).", "result"),
    # Billing.
    _gauge("castgate_billing_enabled", "1 if billing is on, else 0.", merge="max"),
    _counter("castgate_billing_requests_total", "Calls for a checkout or portal page, by result.", "page", "result"),
    _counter("castgate_billing_syncs_total", "Re-readings of all subscriptions, by result (ok, error).", "result"),
    # Stores and processes.
    _gauge("castgate_store_up", "1 if the store answers every worker that asked it, else 0.", "store", merge="min"),
    _gauge("castgate_breakers_open", "Circuit breakers that are not closed.", "store"),
    _gauge("castgate_database_pool_max", "Postgres connections that the pools may have."),
    _counter("castgate_store_errors_total", "Calls to a store that failed.", "store", "reason"),
    _gauge("castgate_workers_wanted", "Workers that there should be.", merge="max"),
    _gauge("castgate_workers_ready", "Workers that are ready to serve.", merge="max"),
    _histogram("castgate_event_loop_delay_seconds", "How late a worker was woken, looked at four times a second."),
    _counter("castgate_worker_restarts_total", "Workers started again, by why (exit, signal, replace).", "reason"),
    _counter("castgate_config_reloads_total", "Reloads of the configuration (ok, rejected, failed).", "result"),
    _counter("castgate_metrics_series_dropped_total", "Series not stored because a process has too many."),
)  # fmt: skip
FAMILIES: Mapping[str, Family] = {family.name: family for family in DECLARED}


def declared(name: str, kinds: tuple[str, ...], labels: Mapping[str, str]) -> Family:
    """The family ``name``, which must be of one of ``kinds`` and have these labels. Raises LookupError."""
    family = FAMILIES.get(name)
    if family is None or family.kind not in kinds:
        raise LookupError(f"{name} is not declared as a {' or '.join(kinds)} in gateway.metrics_families")
    if set(labels) != set(family.labels):
        raise LookupError(f"{name} has the labels {list(family.labels)}, not {sorted(labels)}")
    return family
