"""What a process counts: its counters, gauges and histograms, in memory that a scrape can read.

A process opens its ``Metrics``, resolves counters, gauges and histograms once, and keeps them: an ``add`` is a plain
store into shared memory (``metrics_file``), with no lock, no dictionary and no system call. A scrape, in whatever
process it arrives, sums the files of all of them (``metrics_scrape``). Labels come from closed sets (policy and limit
names, periods, status codes), never from a request; should one run wild all the same, series past the bound are dropped
and counted.
"""

import math
from bisect import bisect_left
from collections.abc import Mapping
from pathlib import Path

from gateway.metrics_families import COUNTER, DECLARED, GAUGE, HISTOGRAM, RISING_GAUGE, Family, declared
from gateway.metrics_file import MetricsFile, NoSpaceError

LABEL_CHARS_MAX = 200  # a longer label value is cut: policy names are far shorter


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


class CountedHistogram(Histogram):
    """A histogram that raises a counter by one with each value: both for the price of little more than one."""

    __slots__ = ("_counter",)

    def __init__(self, histogram: Histogram, counter: Counter) -> None:
        super().__init__(histogram._integers, histogram._doubles, histogram._slot, histogram._bounds)
        self._counter = counter._slot

    def observe(self, value: float) -> None:
        """Count one value in both."""
        integers = self._integers
        integers[self._counter] += 1
        integers[self._slot + bisect_left(self._bounds, value)] += 1
        self._doubles[self._sum] += value


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
        return Counter(self._file.integers, self._resolve(declared(name, (COUNTER, RISING_GAUGE), labels), labels))

    def gauge(self, name: str, /, **labels: str) -> Gauge:
        """The gauge ``name``: 0 until it is set, or absent where it is merged by min or max. Raises LookupError."""
        family = declared(name, (GAUGE,), labels)
        gauge = Gauge(self._file.doubles, self._resolve(family, labels))
        if family.merge == "sum" and math.isnan(gauge.value):
            gauge.set(0.0)
        return gauge

    def histogram(self, name: str, /, **labels: str) -> Histogram:
        """The histogram ``name`` with the bounds it is declared with. Raises LookupError."""
        family = declared(name, (HISTOGRAM,), labels)
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
        width = max(family.width for family in DECLARED)
        key = ("spare", "", (), width)
        return self._slots[key] if key in self._slots else self._file.append(*key).slot

    def _forget_gauges(self) -> None:
        """What a predecessor measured is over."""
        self._file.note("")
        for series in self._file.series:
            if series.kind == GAUGE:
                self._file.doubles[series.slot] = math.nan
