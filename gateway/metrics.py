"""What Castgate counts, and the one place where a metric can be declared.

A process opens its ``Metrics``, resolves counters, gauges and histograms once, and keeps them: an ``add`` is a plain
store into shared memory (``metrics_file``), with no lock, no dictionary and no system call. A scrape, in whatever
process it arrives, sums the files of all of them. Labels come from closed sets (policy and limit names, periods, status
codes), never from a request; should one run wild all the same, series past the bound are dropped and counted.

Names follow Prometheus' practice: base units, ``_total`` for what only rises. One name is older than that practice:
``redis_errors_total`` is a gauge by contract, although it only rises, and so it is stored like a counter.
"""

import math
import platform
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, choose_encoder
from prometheus_client.registry import Collector, CollectorRegistry
from prometheus_client.samples import Exemplar

from gateway import exemplars
from gateway.metrics_file import MetricsFile, NoSpaceError, read_all

COUNTER = "counter"
GAUGE = "gauge"  # of living processes; merged as the family says
RISING_GAUGE = "rising_gauge"  # shown as a gauge, stored and summed as a counter
HISTOGRAM = "histogram"

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4  # of what ``render`` answers
LABEL_CHARS_MAX = 200  # a longer label value is cut: policy names are far shorter

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


_DECLARED = (
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
FAMILIES: Mapping[str, Family] = {family.name: family for family in _DECLARED}


class Counter:
    """A number that only rises."""

    __slots__ = ("_slot", "_words")

    def __init__(self, words: "memoryview[int]", slot: int) -> None:
        self._words = words
        self._slot = slot

    def add(self, n: int = 1) -> None:
        """Count ``n`` more."""
        self._words[self._slot] += n

    @property
    def value(self) -> int:
        """What this process' file says; for tests and for the process itself."""
        return self._words[self._slot]


class Gauge:
    """A number of this process now."""

    __slots__ = ("_slot", "_words")

    def __init__(self, words: "memoryview[float]", slot: int) -> None:
        self._words = words
        self._slot = slot

    def set(self, value: float) -> None:
        """Replace the number."""
        self._words[self._slot] = value

    def add(self, n: float) -> None:
        """Raise the number by ``n``, lower it where ``n`` is negative."""
        self._words[self._slot] += n

    @property
    def value(self) -> float:
        """The number; NaN where it was never set."""
        return self._words[self._slot]


class Histogram:
    """How often a value fell under each bound."""

    __slots__ = ("_bounds", "_doubles", "_integers", "_slot", "_sum")

    def __init__(
        self, integers: "memoryview[int]", doubles: "memoryview[float]", slot: int, bounds: tuple[float, ...]
    ) -> None:
        self._integers = integers
        self._doubles = doubles
        self._slot = slot
        self._sum = slot + len(bounds) + 1
        self._bounds = bounds

    def observe(self, value: float) -> None:
        """Count one value, in the unit that the metric's name ends with."""
        self._integers[self._slot + bisect_left(self._bounds, value)] += 1
        self._doubles[self._sum] += value

    @property
    def count(self) -> int:
        """How many values this process' file counts."""
        return sum(self._integers[self._slot : self._sum])


class Metrics:
    """One process' metrics. ``process`` names its file: ``worker-0``, ``supervisor``.

    Without ``runtime_dir`` the numbers live in private memory: no scrape sees them. Raises OSError where the file
    cannot be made.
    """

    def __init__(self, runtime_dir: Path | None = None, process: str = "process") -> None:
        self._file = MetricsFile.claim(runtime_dir, process) if runtime_dir else MetricsFile.private()
        self._slots = {(one.kind, one.name, one.labels, one.width): one.slot for one in self._file.series}
        self._forget_gauges()
        # Series that found no room share these slots; nothing reads them.
        self._spare = self._resolve_spare()
        self._dropped = self.counter("castgate_metrics_series_dropped_total")

    def counter(self, name: str, /, **labels: str) -> Counter:
        """The counter ``name`` (COUNTER or RISING_GAUGE). Raises LookupError if it is not declared so."""
        return Counter(self._file.integers, self._resolve(_declared(name, (COUNTER, RISING_GAUGE), labels), labels))

    def gauge(self, name: str, /, **labels: str) -> Gauge:
        """The gauge ``name``: 0 until it is set, or absent where it is merged by min or max. Raises LookupError."""
        family = _declared(name, (GAUGE,), labels)
        gauge = Gauge(self._file.doubles, self._resolve(family, labels))
        if family.merge == "sum" and math.isnan(gauge.value):
            gauge.set(0.0)
        return gauge

    def histogram(self, name: str, /, **labels: str) -> Histogram:
        """The histogram ``name`` with the bounds it is declared with. Raises LookupError."""
        family = _declared(name, (HISTOGRAM,), labels)
        return Histogram(self._file.integers, self._file.doubles, self._resolve(family, labels), family.bounds)

    def config_version(self, text: str) -> None:
        """Say which configuration this process runs: ``castgate_config_info{version}`` counts the processes on it."""
        self._file.note(text)

    def close(self) -> None:
        """Give the file up. Counters stay in it for the next process of this name; gauges count no longer."""
        self._file.close()

    def _resolve(self, family: Family, labels: Mapping[str, str]) -> int:
        pairs = tuple((name, labels[name][:LABEL_CHARS_MAX]) for name in family.labels)
        key = (family.kind, family.name, pairs, family.width)
        slot = self._slots.get(key)
        if slot is None:
            try:
                slot = self._file.append(*key).slot
            except NoSpaceError:
                self._dropped.add()
                return self._spare
            if family.kind == GAUGE:
                self._file.doubles[slot] = math.nan
            self._slots[key] = slot
        return slot

    def _resolve_spare(self) -> int:
        width = max(family.width for family in _DECLARED)
        key = ("spare", "", (), width)
        return self._slots[key] if key in self._slots else self._file.append(*key).slot

    def _forget_gauges(self) -> None:
        """What a predecessor measured is over."""
        self._file.note("")
        for series in self._file.series:
            if series.kind == GAUGE:
                self._file.doubles[series.slot] = math.nan


@dataclass(frozen=True, slots=True, kw_only=True)
class Exposition:
    """One scrape's answer."""

    body: bytes
    content_type: str


def render(runtime_dir: Path) -> bytes:
    """The sum over all processes, in Prometheus' text format (``CONTENT_TYPE``). Any process may call it."""
    return exposition(runtime_dir, "").body


def exposition(runtime_dir: Path, accept: str) -> Exposition:
    """As ``render``, in the format that the scraper's ``Accept`` header prefers: text, or OpenMetrics."""
    encode, content_type = choose_encoder(accept)
    registry = CollectorRegistry(auto_describe=False)
    is_openmetrics = content_type.startswith("application/openmetrics-text")
    registry.register(_Sum(runtime_dir, exemplars.read_exemplars(runtime_dir) if is_openmetrics else {}))
    return Exposition(body=encode(registry), content_type=content_type)


def gauge_values(runtime_dir: Path, name: str) -> dict[tuple[str, ...], float]:
    """The gauge ``name`` merged over living processes, by its label values; empty where none has set it."""
    return _totals(runtime_dir)[0].get(name, {})


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """All metrics by name and label values; a histogram as its buckets (not cumulated), +Inf, and the sum."""

    scalars: Mapping[str, Mapping[tuple[str, ...], float]]
    histograms: Mapping[str, Mapping[tuple[str, ...], list[float]]]
    configurations: Mapping[str, int]  # version -> processes that run it


def totals(runtime_dir: Path) -> Totals:
    """What a scrape would say, as numbers."""
    scalars, histograms, configurations = _totals(runtime_dir)
    return Totals(scalars=scalars, histograms=histograms, configurations=configurations)


class _Sum(Collector):
    def __init__(self, runtime_dir: Path, examples: Mapping[str, Mapping[int, exemplars.Exemplar]]) -> None:
        self._runtime_dir = runtime_dir
        self._examples = examples  # of exemplars.FAMILY, whose one label is the policy

    def collect(self) -> Iterator[Metric]:
        scalars, histograms, configurations = _totals(self._runtime_dir)
        for family in _DECLARED:
            if family.kind == HISTOGRAM:
                examples = self._examples if family.name == exemplars.FAMILY else {}
                yield _histogram_family(family, histograms.get(family.name, {}), examples)
                continue
            made = (CounterMetricFamily if family.kind == COUNTER else GaugeMetricFamily)(
                family.name, family.help, labels=family.labels
            )
            series = scalars.get(family.name, {})
            if not family.labels and family.merge == "sum":
                series = series or {(): 0.0}  # a name without labels is there from the first scrape on
            for values, number in sorted(series.items()):
                made.add_metric(values, number)
            yield made
        loaded = GaugeMetricFamily(
            "castgate_config_info", "Processes that run this version of the configuration.", labels=("version",)
        )
        for text, processes in sorted(configurations.items()):
            loaded.add_metric((text,), processes)
        yield loaded
        build = GaugeMetricFamily("castgate_build_info", "1, with what this is.", labels=("version", "python"))
        build.add_metric((build_version(), platform.python_version()), 1)
        yield build


@cache
def build_version() -> str:
    """The version of the installed package; ``unknown`` where it is not installed."""
    try:
        return version("castgate")
    except PackageNotFoundError:
        return "unknown"


def _histogram_family(
    family: Family,
    series: Mapping[tuple[str, ...], list[float]],
    examples: Mapping[str, Mapping[int, exemplars.Exemplar]],
) -> Metric:
    made = HistogramMetricFamily(family.name, family.help, labels=family.labels)
    names = [*(_bound_text(bound) for bound in family.bounds), "+Inf"]
    for values, words in sorted(series.items()):
        of_series = examples.get(values[0], {}) if values else {}
        buckets: list[tuple[str, float] | tuple[str, float, Exemplar]] = []
        seen = 0.0
        for place, (name, word) in enumerate(zip(names, words, strict=False)):
            seen += word
            example = of_series.get(place)
            if example is None:
                buckets.append((name, seen))
            else:
                shown = Exemplar({"request_id": example.request_id}, example.value, example.at_s)
                buckets.append((name, seen, shown))
        made.add_metric(values, buckets, words[-1])
    return made


def _bound_text(bound: float) -> str:
    return str(float(bound))


_Scalars = dict[str, dict[tuple[str, ...], float]]
_Histograms = dict[str, dict[tuple[str, ...], list[float]]]


def _totals(runtime_dir: Path) -> tuple[_Scalars, _Histograms, dict[str, int]]:
    """Everything in ``runtime_dir``, merged: counters and gauges, histograms (buckets, then the sum), configurations.

    A series that this program does not declare in the same way belongs to another version of it, and is left out.
    """
    scalars: _Scalars = {}
    histograms: _Histograms = {}
    configurations: dict[str, int] = {}
    for reading in read_all(runtime_dir):
        if reading.living and reading.note:
            configurations[reading.note] = configurations.get(reading.note, 0) + 1
        for one, integers, doubles in reading.series:
            family = FAMILIES.get(one.name)
            if family is None or (family.kind, family.width) != (one.kind, one.width):
                continue
            if tuple(name for name, _ in one.labels) != family.labels:
                continue
            values = tuple(value for _, value in one.labels)
            if family.kind == HISTOGRAM:
                words = histograms.setdefault(one.name, {}).setdefault(values, [0.0] * one.width)
                for index, word in enumerate((*integers[:-1], doubles[-1])):
                    words[index] += word
            elif family.kind != GAUGE:
                merged = scalars.setdefault(one.name, {})
                merged[values] = merged.get(values, 0) + integers[0]
            elif reading.living and not math.isnan(doubles[0]):
                merged = scalars.setdefault(one.name, {})
                merged[values] = _merge(family, merged.get(values), doubles[0])
    return scalars, histograms, configurations


def _merge(family: Family, present: float | None, number: float) -> float:
    if present is None:
        return number
    if family.merge == "min":
        return min(present, number)
    return max(present, number) if family.merge == "max" else present + number


def _declared(name: str, kinds: tuple[str, ...], labels: Mapping[str, str]) -> Family:
    family = FAMILIES.get(name)
    if family is None or family.kind not in kinds:
        raise LookupError(f"{name} is not declared as a {' or '.join(kinds)} in gateway.metrics")
    if set(labels) != set(family.labels):
        raise LookupError(f"{name} has the labels {list(family.labels)}, not {sorted(labels)}")
    return family
