"""The figures of a run as JSON holds them, and what is read out of them: medians, ratios within rounds, verdicts.

All that is shown (tables, chart, verdicts, the model of docs/scaling.md) is made from this, and can be made again.
"""

import json
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.scenarios import MANY, ONE, THROUGHPUT
from bench.targets import DIRECT

FORMAT = 2  # of the JSON; figures of another one are refused
MIB = 1024 * 1024
CAST, PLAIN, MANY_ACCOUNTS = "castgate", "castgate-plain", "castgate-many"

Round = Mapping[str, Any]


class FiguresError(Exception):
    """The file holds no figures of this program; the text says what was found."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """One run."""

    json: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path) -> "Figures":
        """From a file. Raises FiguresError."""
        try:
            found = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise FiguresError(f"{path}: {error}") from None
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise FiguresError(f"{path}: expected figures of format {FORMAT}, as ./dev bench --json writes them")
        return cls(json=found)

    @property
    def scenarios(self) -> list[Mapping[str, Any]]:
        """Those that were measured."""
        return list(self.json["scenarios"])

    def title(self, row: str) -> str:
        """A row's title."""
        return str(self.json["rows"][row])

    def scenario(self, name: str) -> Mapping[str, Any] | None:
        """One of them; None where it was not measured."""
        return next((one for one in self.scenarios if one["name"] == name), None)

    def rounds(self, scenario: str, row: str) -> list[Round]:
        """A row's rounds; empty where it was not measured."""
        found = self.scenario(scenario)
        return [] if found is None else list(found["rows"].get(row, ()))

    def median(self, scenario: str, row: str, figure: str) -> float | None:
        """The median of a figure over the rounds; None where it was not measured."""
        rounds = self.rounds(scenario, row)
        return statistics.median(one[figure] for one in rounds) if rounds else None

    def behind(self, scenario: str, row: str) -> dict[str, float]:
        """CPU µs a request of each program behind the server, medians."""
        rounds = self.rounds(scenario, row)
        names = rounds[0]["behind_cpu_us_per_request"] if rounds else {}
        return {name: statistics.median(one["behind_cpu_us_per_request"][name] for one in rounds) for name in names}

    def ratio(
        self, scenario: str, row: str, other: str, figure: Callable[[Round], float] | None = None
    ) -> float | None:
        """The median over the rounds of ``row``'s figure divided by ``other``'s in the same round (requests/s)."""
        of = figure or (lambda one: float(one["requests_per_s"]))
        pairs = zip(self.rounds(scenario, row), self.rounds(scenario, other), strict=False)
        ratios = [of(one) / of(two) for one, two in pairs if of(two) > 0]
        return statistics.median(ratios) if ratios else None

    def added_latency_ratio(self, row: str, other: str) -> float | None:
        """What ``row`` adds to a call on one connection over the upstream itself, divided by what ``other`` adds."""
        rounds = zip(*(self.rounds(ONE, name) for name in (row, other, DIRECT)), strict=False)
        ratios = [
            (one["p50_ms"] - direct["p50_ms"]) / (two["p50_ms"] - direct["p50_ms"])
            for one, two, direct in rounds
            if two["p50_ms"] > direct["p50_ms"]
        ]
        return statistics.median(ratios) if ratios else None

    def failed(self, scenario: str, row: str) -> int:
        """Requests without an answer, and answers that refused."""
        return sum(one["errors"] + one["refused"] for one in self.rounds(scenario, row))


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """What is asked of the figures. ``aim`` is the floor itself where there is nothing beyond it."""

    title: str
    unit: str
    floor: float
    aim: float
    at_most: bool
    found: Callable[[Figures], float | None]

    def verdict(self, found: float | None) -> str:
        """In a word."""
        if found is None:
            return "not measured"

        def reached(bound: float) -> bool:
            return found <= bound if self.at_most else found >= bound

        if reached(self.aim):
            return "aim reached" if self.aim != self.floor else "kept"
        return "floor reached" if reached(self.floor) else "missed"


def _times(row: str, other: str) -> Callable[[Figures], float | None]:
    return lambda figures: figures.ratio(THROUGHPUT, row, other)


def _memory_mib(figures: Figures) -> float | None:
    found = figures.median(MANY, CAST, "largest_process_bytes")
    return None if found is None else found / MIB


PROMISES = (
    Promise(
        title="everything on ÷ nginx + Lua + Redis", unit="×", floor=0.75, aim=1.0, at_most=False,
        found=_times(CAST, "nginx-lua"),
    ),
    Promise(
        title="everything on ÷ Envoy with its local rate limit", unit="×", floor=1.2, aim=2.0, at_most=False,
        found=_times(CAST, "envoy"),
    ),
    Promise(
        title="everything on ÷ bare aiohttp proxy", unit="×", floor=3.0, aim=5.0, at_most=False,
        found=_times(CAST, "aiohttp"),
    ),
    Promise(
        title="no policy ÷ nginx, bare", unit="×", floor=0.45, aim=0.65, at_most=False, found=_times(PLAIN, "nginx"),
    ),
    Promise(
        title="latency added on one connection ÷ what nginx + Lua + Redis adds (median)", unit="×", floor=1.3, aim=1.3,
        at_most=True, found=lambda figures: figures.added_latency_ratio(CAST, "nginx-lua"),
    ),
    Promise(
        title="p99 with 64 connections ÷ that of nginx + Lua + Redis", unit="×", floor=1.5, aim=1.5, at_most=True,
        found=lambda figures: figures.ratio(THROUGHPUT, CAST, "nginx-lua", lambda one: float(one["p99_ms"])),
    ),
    Promise(
        title="memory of a worker with 1,000 connections (resident)", unit="MiB", floor=80, aim=80, at_most=True,
        found=_memory_mib,
    ),
    Promise(
        title="many active accounts ÷ one account", unit="×", floor=0.9, aim=0.9, at_most=False,
        found=_times(MANY_ACCOUNTS, CAST),
    ),
)  # fmt: skip
