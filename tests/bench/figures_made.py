"""Figures as a run writes them, with numbers that are easy to follow."""

from typing import Any

from bench.figures import FORMAT, Figures

TITLES = {
    "direct": "upstream directly",
    "nginx": "nginx, bare",
    "nginx-lua": "nginx + Lua + Redis",
    "envoy": "Envoy, local rate limit",
    "aiohttp": "bare aiohttp proxy",
    "castgate-plain": "Castgate, no policy",
    "castgate": "Castgate, everything on",
    "castgate-many": "Castgate, 100,000 accounts",
    "direct-many": "upstream directly, 100,000 accounts",
}


def one_round(requests_per_s: float, **other: Any) -> dict[str, Any]:
    return {
        "generator": "wrk",
        "requests": int(requests_per_s),
        "refused": 0,
        "errors": 0,
        "requests_per_s": requests_per_s,
        "p50_ms": 1.0,
        "p99_ms": 2.0,
        "p99_9_ms": 3.0,
        "cpu_us_per_request": 30.0,
        "behind_cpu_us_per_request": {"Redis": 5.0, "Postgres": 10.0, "upstream": 6.0},
        "memory_bytes": 100 * 2**20,
        "largest_process_bytes": 70 * 2**20,
        "proxy_core_busy": 1.0,
        "rest_cores_busy": 0.5,
        "other_cpu": 0.0,
        **other,
    }


def made(scenarios: dict[str, dict[str, list[dict[str, Any]]]], **other: Any) -> Figures:
    return Figures(
        json={
            "format": FORMAT,
            "date": "2026-11-28T10:25:00+00:00",
            "machine": {"cpu": "CPU & co", "cores": 2, "system": "Linux"},
            "versions": {"python": "3.11.7"},
            "cores": {"proxy": 0, "rest": [1]},
            "preset": "default",
            "generator": "wrk",
            "upstream": "nginx",
            "many_accounts": 100_000,
            "audits": ["audit: all there"],
            "skipped": [],
            "rows": {name: TITLES[name] for rows in scenarios.values() for name in rows},
            "scenarios": [
                {"name": name, "title": f"{name}'s title", "connections": 64, "rounds": 1, "seconds": 4.0, "rows": rows}
                for name, rows in scenarios.items()
            ],
            **other,
        }
    )
