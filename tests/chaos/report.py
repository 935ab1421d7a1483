"""What a run found, as a table and as JSON."""

from collections.abc import Iterable
from dataclasses import asdict

from gateway.tables import table
from tests.chaos.checker import WHAT, Findings
from tests.chaos.faults import SPLIT
from tests.chaos.run import SINGLE, Outcome, Plan


def lines(outcome: Outcome, plan: Plan) -> Iterable[str]:
    """For people."""
    of_kind: dict[str, list[float]] = {}
    for injection in outcome.injections:
        name = injection.kind if injection.theme in (SINGLE, SPLIT) else f"two at once: {injection.theme}"
        of_kind.setdefault(name, []).append(injection.recovered_s)
    rows = [(name, *_times(seconds)) for name, seconds in sorted(of_kind.items())]
    rows.append(("all", *_times([one.recovered_s for one in outcome.injections])))
    yield from table(("FAULT", "TIMES", "BACK AFTER s, p50", "MAX"), rows)
    yield ""
    yield from table(("", *outcome.findings), list(_figures(list(outcome.findings.values()))))
    if outcome.skipped:
        yield f"not possible here: {', '.join(outcome.skipped)}"
    yield ""
    yield (
        f"seed {plan.seed}: {len(outcome.injections)} injections in {outcome.seconds / 60:.1f} minutes: "
        + ("; ".join(outcome.faults) or "all is well")
    )


def _times(seconds: list[float]) -> tuple[str, str, str]:
    ordered = sorted(seconds)
    return str(len(ordered)), f"{ordered[len(ordered) // 2]:.2f}", f"{ordered[-1]:.2f}"


def _figures(columns: list[Findings]) -> Iterable[tuple[str, ...]]:
    def row(name: str, *values: object) -> tuple[str, ...]:
        return (name, *map(str, values))

    yield row("calls", *(found.calls for found in columns))
    yield row("casts", *(found.casts for found in columns))
    for result in sorted({result for found in columns for result in found.results}):
        yield row(f"  {result}", *(found.results[result] for found in columns))
    yield row("most over a limit", *(found.over_max for found in columns))
    for what in WHAT:
        yield row(what, *(found.counts[what] for found in columns))
    yield row("charged without a cast (workers killed)", *(found.orphans for found in columns))


def as_json(outcome: Outcome, plan: Plan) -> dict[str, object]:
    """For programs."""
    return {
        "plan": asdict(plan),
        "seconds": outcome.seconds,
        "faults": outcome.faults,
        "findings": {
            theme: {
                "calls": found.calls,
                "casts": found.casts,
                "results": dict(found.results),
                "over_max": found.over_max,
                "counts": dict(found.counts),
                "orphans": found.orphans,
                "said": found.said,
            }
            for theme, found in outcome.findings.items()
        },
        "injections": [asdict(injection) for injection in outcome.injections],
        "skipped": outcome.skipped,
    }
