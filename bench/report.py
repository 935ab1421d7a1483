"""What the bench tells people: tables for the terminal and for documents, and doubts about the figures."""

from collections.abc import Sequence

from bench.figures import MIB, PROMISES, Figures
from bench.quiet import SHARE_MAX
from bench.scenarios import ONE, STREAMS, THROUGHPUT
from bench.targets import BASELINE, DIRECT, DIRECT_MANY

# Above these shares a figure says more about the machine than about the row.
OTHER_CPU_MAX = 0.1
REST_BUSY_MAX = 0.95

Table = list[tuple[str, ...]]


def scenario_table(figures: Figures, scenario: str) -> Table:
    """Medians over the rounds, a line for each row."""
    found = figures.scenario(scenario)
    assert found is not None
    rows = list(found["rows"])
    streams = scenario == STREAMS
    what = "event" if streams else "request"
    has_baseline = BASELINE in rows and scenario == THROUGHPUT
    heading = [
        found["title"], f"{what}s/s", *(f"{'late ' * streams}{name} ms" for name in ("p50", "p99", "p99.9")),
        f"CPU µs/{what}", "core %", "MiB", "failed",
    ]  # fmt: skip
    if has_baseline:
        heading.insert(1, f"× {figures.title(BASELINE)}")
    if scenario == ONE:
        heading.insert(1, "added µs")
    table: Table = [tuple(heading)]
    for row in rows:
        cells = [
            figures.title(row),
            f"{_median(figures, scenario, row, 'requests_per_s'):,.0f}",
            *(f"{_median(figures, scenario, row, name):.2f}" for name in ("p50_ms", "p99_ms", "p99_9_ms")),
            f"{_median(figures, scenario, row, 'cpu_us_per_request'):.0f}",
            f"{_median(figures, scenario, row, 'proxy_core_busy') * 100:.0f}",
            f"{_median(figures, scenario, row, 'memory_bytes') / MIB:.0f}",
            str(figures.failed(scenario, row)),
        ]
        if has_baseline:
            ratio = figures.ratio(scenario, row, BASELINE)
            cells.insert(1, "–" if ratio is None else f"{ratio:.2f}")
        if scenario == ONE:
            direct = figures.median(ONE, DIRECT, "p50_ms")
            added_ms = None if direct is None else _median(figures, ONE, row, "p50_ms") - direct
            cells.insert(1, "–" if added_ms is None else f"{added_ms * 1000:.0f}")
        table.append(tuple(cells))
    return table


def _median(figures: Figures, scenario: str, row: str, figure: str) -> float:
    found = figures.median(scenario, row, figure)
    return 0.0 if found is None else found


def behind_table(figures: Figures) -> Table:
    """CPU of a call by program, with 64 connections; rows that cost nothing elsewhere are left out."""
    table: Table = [("CPU µs a call", "the server itself", "Redis", "Postgres", "the service")]
    found = figures.scenario(THROUGHPUT)
    for row in found["rows"] if found else ():
        behind = figures.behind(THROUGHPUT, row)
        if row not in (DIRECT, DIRECT_MANY) and behind:
            own = _median(figures, THROUGHPUT, row, "cpu_us_per_request")
            others = (behind.get(name, 0.0) for name in ("Redis", "Postgres", "upstream"))
            table.append((figures.title(row), f"{own:.1f}", *(f"{cost:.1f}" for cost in others)))
    return table


def verdict_table(figures: Figures) -> Table:
    """What was asked, and what came of it."""
    table: Table = [("promise", "floor", "aim", "measured", "")]
    for promise in PROMISES:
        found = promise.found(figures)
        sign = "≤ " if promise.at_most else "≥ "
        digits = 0 if promise.unit == "MiB" else 2
        table.append(
            (
                promise.title,
                f"{sign}{promise.floor:g} {promise.unit}",
                f"{sign}{promise.aim:g} {promise.unit}" if promise.aim != promise.floor else "",
                "–" if found is None else f"{found:.{digits}f} {promise.unit}",
                promise.verdict(found),
            )
        )
    return table


def as_text(table: Table) -> str:
    """Aligned, for a terminal."""
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    rows = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in table
    ]
    return "\n".join([rows[0], "─" * max(map(len, rows)), *rows[1:]])


def as_markdown(table: Table) -> str:
    """For a document."""
    lines = [table[0], tuple("---" for _ in table[0]), *table[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def doubts(figures: Figures) -> list[str]:
    """Why some figures should not be trusted."""
    cores = figures.json["cores"]
    shared = cores["proxy"] in cores["rest"]
    found = []
    if shared:
        found.append("only one core: server, load, upstream and stores share it; compare rows with each other at most")
    disturbed: dict[str, float] = {}
    count = rounds_count = in_vain = 0
    for scenario in figures.scenarios:
        name = scenario["name"]
        for row in scenario["rows"]:
            where = f"{figures.title(row)} ({scenario['title']})"
            pinned = not shared and "all cores" not in figures.title(row)
            count += 1
            rounds = figures.rounds(name, row)
            rounds_count += len(rounds)
            in_vain += sum(one.get("waited_in_vain", False) for one in rounds)
            other = _median(figures, name, row, "other_cpu")
            rest = _median(figures, name, row, "rest_cores_busy")
            proxy = _median(figures, name, row, "proxy_core_busy")
            if pinned and other > OTHER_CPU_MAX:
                disturbed[where] = other
            if pinned and name == THROUGHPUT and rest > REST_BUSY_MAX > proxy:
                found.append(f"{where}: limited by the other cores ({rest:.0%} busy), not by itself ({proxy:.0%})")
            if failed := figures.failed(name, row):
                found.append(f"{where}: {failed} requests failed")
    if disturbed:
        worst = max(disturbed, key=lambda where: disturbed[where])
        found.append(
            f"the machine was not quiet: in {len(disturbed)} of {count} measurements other programs took more than "
            f"{OTHER_CPU_MAX:.0%} of the server's core (most: {disturbed[worst]:.0%}, {worst})"
        )
    if in_vain:
        found.append(
            f"the machine was not quiet: {in_vain} of {rounds_count} times a row waited in vain for all others to use "
            f"less than {SHARE_MAX:.0%} of a core"
        )
    return found


def origin(figures: Figures) -> str:
    """Where and when, in a line."""
    run, machine, versions = figures.json, figures.json["machine"], figures.json["versions"]
    names = ("castgate", "hot path", "python", "uvloop", "nginx", "haproxy", "envoy", "aiohttp", "wrk")
    told = ", ".join(f"{name} {versions[name]}" for name in names if name in versions)
    return f"{run['date'][:10]}, {machine['cores']} cores ({machine['cpu']}), {machine['system']}; {told}"


def method(figures: Figures) -> str:
    """How it was measured, in a line."""
    run = figures.json
    rounds = ", ".join(f"{one['title']}: {one['rounds']} × {one['seconds']:g} s" for one in figures.scenarios)
    return (
        f"medians of interleaved rounds ({rounds}), load by {run['generator']}, service {run['upstream']}; "
        f"the server on core {run['cores']['proxy']}, all else on {', '.join(map(str, run['cores']['rest']))}"
    )


def of_the_generator(figures: Figures) -> list[str]:
    """What many accounts cost whoever makes the load: no gateway's ratio is worth more than this one is near 1."""
    found = figures.ratio(THROUGHPUT, DIRECT_MANY, DIRECT)
    if found is None:
        return []
    return [f"the generator alone: {figures.title(DIRECT_MANY)} ÷ {figures.title(DIRECT)}: {found:.2f} ×"]


def notes(figures: Figures) -> Sequence[str]:
    """What is to be known beside the figures."""
    run = figures.json
    return [*filter(None, run["audits"]), *of_the_generator(figures), *doubts(figures), *run["skipped"]]
