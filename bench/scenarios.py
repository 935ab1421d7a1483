"""The loads that rows are measured under, and how long and how often, by preset."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from bench.quiet import WAIT_S_MAX
from bench.targets import DIRECT, ROWS, WORKER_ROWS, Row

THROUGHPUT, ONE, MANY, LARGE, STREAMS, WORKERS = (
    "throughput", "one-connection", "1000-connections", "64-kib-bodies", "event-streams", "workers",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One load, put on its rows in interleaved rounds."""

    name: str
    title: str
    connections: int
    rounds: int
    seconds: float
    large: bool = False  # bodies of 64 KiB, both ways
    streams: bool = False  # ``connections`` event streams instead of calls
    rows: tuple[Row, ...] = ROWS


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """A whole run."""

    name: str
    scenarios: tuple[Scenario, ...]
    many_accounts: int
    warm_up_s: float
    wait_s_max: float  # for a quiet machine, before each row


def _scenarios(main_rounds: int, main_s: float, rounds: int, seconds: float) -> tuple[Scenario, ...]:
    without_many = tuple(row for row in ROWS if not row.many_accounts)
    relaying = tuple(row for row in without_many if row.name != DIRECT)
    main = Scenario(name=THROUGHPUT, title="64 connections", connections=64, rounds=main_rounds, seconds=main_s)
    short = replace(main, rounds=rounds, seconds=seconds, rows=without_many)
    events = "1,000 event streams, ten events a second each"
    return (
        main,
        replace(short, name=ONE, title="one connection", connections=1),
        replace(short, name=MANY, title="1,000 connections", connections=1000),
        replace(short, name=LARGE, title="64 KiB up and down", large=True),
        replace(short, name=STREAMS, title=events, connections=1000, streams=True, rows=relaying),
        replace(short, name=WORKERS, title="workers on all cores", rows=WORKER_ROWS),
    )


DEFAULT = Preset(
    name="default",
    scenarios=_scenarios(5, 4.0, 3, 3.0),
    many_accounts=100_000,
    warm_up_s=1.0,
    wait_s_max=WAIT_S_MAX,
)
QUICK = Preset(
    name="quick",
    scenarios=_scenarios(1, 1.0, 1, 1.0),
    many_accounts=5_000,
    warm_up_s=1.0,
    wait_s_max=0.0,
)


def narrowed(
    preset: Preset,
    *,
    only: Callable[[Row], bool],
    scenarios: frozenset[str],
    rounds: int | None,
    seconds: float | None,
    connections: int | None,
    accounts: int | None,
    wait_s_max: float | None,
) -> Preset:
    """The preset with some of its rows and scenarios, other rounds and seconds; ``connections``: of the first one."""
    kept = []
    for scenario in preset.scenarios:
        rows = tuple(row for row in scenario.rows if only(row))
        if not rows or (scenarios and scenario.name not in scenarios):
            continue
        changed = replace(scenario, rows=rows, rounds=rounds or scenario.rounds, seconds=seconds or scenario.seconds)
        if connections and scenario.name == THROUGHPUT:
            title = f"{connections} connection{'s' if connections > 1 else ''}"
            changed = replace(changed, connections=connections, title=title)
        kept.append(changed)
    return replace(
        preset,
        scenarios=tuple(kept),
        many_accounts=accounts or preset.many_accounts,
        warm_up_s=min(preset.warm_up_s, seconds or preset.warm_up_s),
        wait_s_max=preset.wait_s_max if wait_s_max is None else wait_s_max,
    )
