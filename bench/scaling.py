"""How many casts a second a core of each kind carries, and what more would take, from the CPU that a cast costs.

The model of docs/scaling.md: a cast costs the gateway, Redis and Postgres so many µs of CPU each, measured with 64
connections while all were busy. A core carries ``HEADROOM`` of what its time divided by that gives. Redis does its work
on one core, so more of it means more partitions; Postgres uses many, until its disk or one writer's locks end that.
"""

from math import ceil

from bench.figures import CAST, MANY_ACCOUNTS, Figures
from bench.report import Table
from bench.scenarios import THROUGHPUT, WORKERS

HEADROOM = 0.6  # of a core's time: beyond that, queues grow faster than the load
LOADS = (10_000, 100_000, 1_000_000)
# Cores of one Postgres: above this a larger machine helps less than a second one (and its write-ahead log is one).
POSTGRES_CORES_MAX = 32
BYTES_PER_EVENT = 380  # of usage_events with its indexes; measured by python -m bench.flat_cost
_SECONDS_PER_DAY = 86_400
_TIB = 1024**4


def costs(figures: Figures, row: str) -> dict[str, float] | None:
    """CPU µs of one cast in the gateway, Redis and Postgres; None where it was not measured."""
    own = figures.median(THROUGHPUT, row, "cpu_us_per_request")
    if own is None:
        return None
    behind = figures.behind(THROUGHPUT, row)
    return {"gateway": own, "Redis": behind.get("Redis", 0.0), "Postgres": behind.get("Postgres", 0.0)}


def per_core(cost_us: float) -> float:
    """Casts a second that a core carries with headroom."""
    return 1e6 / max(cost_us, 0.1) * HEADROOM


def cost_table(figures: Figures) -> Table:
    """Measured: CPU of a cast, for one account and many, one worker and two."""
    table: Table = [("CPU µs a cast", "gateway", "Redis", "Postgres", "casts/s in this run")]
    for scenario, row in (
        (THROUGHPUT, CAST),
        (THROUGHPUT, MANY_ACCOUNTS),
        (WORKERS, "castgate-1-workers"),
        (WORKERS, "castgate-2-workers"),
    ):
        own = figures.median(scenario, row, "cpu_us_per_request")
        if own is None:
            continue
        behind = figures.behind(scenario, row)
        rate = figures.median(scenario, row, "requests_per_s") or 0.0
        others = (f"{behind.get(name, 0.0):.1f}" for name in ("Redis", "Postgres"))
        table.append((figures.title(row), f"{own:.1f}", *others, f"{rate:,.0f}"))
    return table


def capacity_table(figures: Figures) -> Table:
    """Modelled: casts a second that one core of each kind carries."""
    table: Table = [("casts/s of one core, with headroom", "gateway", "Redis", "Postgres")]
    for row in (CAST, MANY_ACCOUNTS):
        found = costs(figures, row)
        if found is not None:
            table.append((figures.title(row), *(f"{per_core(cost):,.0f}" for cost in found.values())))
    return table


def need_table(figures: Figures) -> Table:
    """Modelled: what ten thousand to a million casts a second take, with many accounts where that was measured."""
    found = costs(figures, MANY_ACCOUNTS) or costs(figures, CAST)
    table: Table = [
        ("casts/s", "gateway cores", "Redis partitions", "Postgres cores", "Postgres servers", "ledger a day")
    ]
    for load in LOADS if found else ():
        assert found is not None
        cores = {name: ceil(load / per_core(cost)) for name, cost in found.items()}
        bytes_a_day = load * _SECONDS_PER_DAY * BYTES_PER_EVENT
        table.append(
            (
                f"{load:,}",
                str(cores["gateway"]),
                str(cores["Redis"]),
                str(cores["Postgres"]),
                str(ceil(cores["Postgres"] / POSTGRES_CORES_MAX)),
                f"{load * _SECONDS_PER_DAY / 1e6:,.0f} million rows, {bytes_a_day / _TIB:.1f} TiB",
            )
        )
    return table
