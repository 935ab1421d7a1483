"""Interleaved rounds: every row is measured once in each, so that what disturbs a machine disturbs all of them.

What is compared is the ratio within a round, and of these the median; figures of different rounds are never divided.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from bench.generators import Generator, Sample
from bench.processes import Child, busy_s, cpu_s, memory_bytes
from bench.surroundings import Surroundings
from bench.targets import Row


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How long and how often."""

    rounds: int
    seconds: float
    warm_up_s: float
    connections: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One row in one round."""

    sample: Sample
    cpu_us: float  # of all the server's processes, user and system, for each request
    behind_cpu_us: Mapping[str, float]  # of what is behind it (Redis, Postgres, upstream), for each request
    memory_bytes: int
    proxy_core_busy: float  # share of the time, by whomever
    rest_cores_busy: float
    other_cpu: float  # share of the server's core that other programs took

    def as_json(self) -> dict[str, object]:
        """The figures as JSON holds them."""
        return {
            **self.sample.as_json(),
            "cpu_us_per_request": self.cpu_us,
            "behind_cpu_us_per_request": dict(self.behind_cpu_us),
            "memory_bytes": self.memory_bytes,
            "proxy_core_busy": self.proxy_core_busy,
            "rest_cores_busy": self.rest_cores_busy,
            "other_cpu": self.other_cpu,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class RowResult:
    """All rounds of one row; ``ratios`` to the baseline's requests/s in the same round, empty without one."""

    row: Row
    rounds: Sequence[Measured]
    ratios: Sequence[float] = field(default=())

    def median(self, figure: Callable[[Measured], float]) -> float:
        """The median of a figure over the rounds."""
        return statistics.median(figure(one) for one in self.rounds)

    @property
    def ratio(self) -> float | None:
        """The median ratio to the baseline."""
        return statistics.median(self.ratios) if self.ratios else None

    @property
    def failed(self) -> int:
        """Requests without an answer, and answers that refused."""
        return sum(one.sample.errors + one.sample.refused for one in self.rounds)


def measure(
    row: Row, child: Child, around: Surroundings, generator: Generator, connections: int, seconds: float
) -> Measured:
    """Put load on a row once."""
    cores = around.cores
    behind_before = {name: cpu_s(pid) for name, pid in around.pids.items()}
    base_url = f"http://127.0.0.1:{child.port}"
    cpu_before, proxy_before, rest_before = cpu_s(child.process.pid), busy_s((cores.proxy,)), busy_s(cores.rest)
    sample = generator(base_url, row.request(around.api_key), connections, seconds)
    cpu, proxy = cpu_s(child.process.pid) - cpu_before, busy_s((cores.proxy,)) - proxy_before
    rest = busy_s(cores.rest) - rest_before
    child.check()
    behind = {name: cpu_s(pid) - behind_before[name] for name, pid in around.pids.items()}
    return Measured(
        behind_cpu_us={name: spent / max(1, sample.requests) * 1e6 for name, spent in behind.items()},
        sample=sample,
        cpu_us=cpu / max(1, sample.requests) * 1e6,
        memory_bytes=memory_bytes(child.process.pid),
        proxy_core_busy=proxy / sample.elapsed_s,
        rest_cores_busy=rest / sample.elapsed_s / len(cores.rest),
        other_cpu=max(0.0, proxy - cpu) / sample.elapsed_s,
    )


def run_rounds(
    rows: Sequence[Row], plan: Plan, measure_row: Callable[[Row, float], Measured], say: Callable[[str], None]
) -> dict[str, list[Measured]]:
    """Warm every row up, then measure all of them in each round; row name -> one entry a round."""
    for row in rows:
        say(f"warming up: {row.title}")
        measure_row(row, plan.warm_up_s)
    measured: dict[str, list[Measured]] = {row.name: [] for row in rows}
    for number in range(1, plan.rounds + 1):
        for row in rows:
            say(f"round {number} of {plan.rounds}: {row.title}")
            measured[row.name].append(measure_row(row, plan.seconds))
    return measured


def results(rows: Sequence[Row], measured: Mapping[str, Sequence[Measured]], baseline: str) -> list[RowResult]:
    """Each row with its ratios to the baseline row, round by round."""
    base = measured.get(baseline, ())
    return [
        RowResult(
            row=row,
            rounds=measured[row.name],
            ratios=[
                one.sample.requests_per_s / other.sample.requests_per_s
                for one, other in zip(measured[row.name], base, strict=False)
                if other.sample.requests
            ],
        )
        for row in rows
    ]
