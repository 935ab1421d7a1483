"""What the console's overview shows of this gateway: the metrics' totals, from which the page makes rates."""

from collections.abc import Callable, Mapping
from pathlib import Path

from gateway.metrics_families import FAMILIES
from gateway.metrics_scrape import Totals, totals

_LATENCY = "spell_cast_duration_seconds"


def live(runtime_dir: Path) -> dict[str, object]:
    """One look; counters are totals since the gateway's start, gauges are of now."""
    found = totals(runtime_dir)
    own = _by(found, "castgate_own_answers_total", lambda labels: labels[0])
    stores = {labels[0]: bool(up) for labels, up in found.scalars.get("castgate_store_up", {}).items()}
    return {
        "casts": _by(found, "spell_cast_total", lambda labels: labels[1]),
        "requests": _by(found, "castgate_requests_total", lambda labels: labels[0]),
        "blocked": _by(found, "budget_block_total", lambda labels: labels[1]),
        "limited": _by(found, "rate_limited_total", lambda labels: labels[1]),
        "shadow": _sum(found, "castgate_would_block_total"),
        "failed": sum(number for status, number in own.items() if status.startswith("5")),
        "latency": {"bounds_s": FAMILIES[_LATENCY].bounds, "counts": _buckets(found, _LATENCY)},
        "stores": stores,
        "rung": rung(stores),
        "ledger": {
            "waiting": _sum(found, "castgate_ledger_queue_length"),
            "lag_s": _most(found, "castgate_ledger_lag_seconds"),
            "written": _where(found, "castgate_ledger_events_total", "written"),
            "dropped": _where(found, "castgate_ledger_events_total", "dropped"),
        },
        "holds_open": _sum(found, "castgate_holds_open"),
        "connections": _sum(found, "castgate_connections_open"),
        "upstream": {
            "busy": _sum(found, "castgate_upstream_connections_busy"),
            "open": _sum(found, "castgate_upstream_connections"),
            "waiting": _sum(found, "castgate_upstream_waiting"),
        },
        "loop_delay": {
            "bounds_s": FAMILIES["castgate_event_loop_delay_seconds"].bounds,
            "counts": _buckets(found, "castgate_event_loop_delay_seconds"),
        },
        "webhooks": _by(found, "stripe_webhook_total", lambda labels: labels[1]),
        "billing": bool(_most(found, "castgate_billing_enabled")),
        "configurations": dict(found.configurations),
    }


def rung(stores: Mapping[str, bool]) -> str:
    """Where on the fail-safe ladder the gateway stands: what it has lost."""
    redis, postgres = stores.get("redis", True), stores.get("postgres", True)
    if redis and postgres:
        return "nothing"
    if not redis and not postgres:
        return "both"
    return "postgres" if redis else "redis"


def _by(found: Totals, name: str, key: Callable[[tuple[str, ...]], str]) -> dict[str, float]:
    summed: dict[str, float] = {}
    for labels, number in found.scalars.get(name, {}).items():
        summed[key(labels)] = summed.get(key(labels), 0) + number
    return summed


def _sum(found: Totals, name: str) -> float:
    return sum(found.scalars.get(name, {}).values())


def _most(found: Totals, name: str) -> float:
    return max(found.scalars.get(name, {}).values(), default=0)


def _where(found: Totals, name: str, label: str) -> float:
    return sum(number for labels, number in found.scalars.get(name, {}).items() if label in labels)


def _buckets(found: Totals, name: str) -> list[float]:
    """How often each bucket, the last one without a bound."""
    series = found.histograms.get(name, {}).values()
    empty = [0.0] * (len(FAMILIES[name].bounds) + 1)
    return [sum(column) for column in zip(empty, *(one[:-1] for one in series), strict=True)]
