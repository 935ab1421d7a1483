"""What a scrape reads: the files of all processes, summed, in a format of Prometheus' or as numbers."""

import math
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, choose_encoder
from prometheus_client.registry import Collector, CollectorRegistry
from prometheus_client.samples import Exemplar

from gateway import exemplars
from gateway.build import build_version
from gateway.metrics_families import COUNTER, DECLARED, FAMILIES, GAUGE, HISTOGRAM, Family
from gateway.metrics_file import read_all

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4  # of what ``render`` answers


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
        for family in DECLARED:
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
