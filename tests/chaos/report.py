"""What a run found, as a table and as JSON."""

from collections.abc import Iterable
from dataclasses import asdict

from gateway.tables import table
from tests.chaos.checker import Findings
from tests.chaos.run import Outcome, Plan

_WHAT = ("over", "missing", "double", "wrong", "held", "drift", "unspent")


def lines(outcome: Outcome, plan: Plan) -> Iterable[str]:
    """For people."""
    rows = []
    for kind in sorted({injection.kind for injection in outcome.injections if " + " not in injection.kind}):
        rows.append((kind, *_times([one.recovered_s for one in outcome.injections if one.kind == kind])))
    pairs = [one.recovered_s for one in outcome.injections if " + " in one.kind]
    if pairs:
        rows.append(("two at once", *_times(pairs)))
    rows.append(("all", *_times([one.recovered_s for one in outcome.injections])))
    yield from table(("FAULT", "TIMES", "BACK AFTER s, p50", "MAX"), rows)
    yield ""
    columns = [("single faults", outcome.singles)]
    if outcome.double_injections:
        columns.append(("double faults", outcome.doubles))
    yield from table(("", *(name for name, _ in columns)), list(_figures([found for _, found in columns])))
    if outcome.skipped:
        yield f"not possible here: {', '.join(outcome.skipped)}"
    yield ""
    yield (
        f"seed {plan.seed}: {len(outcome.injections)} injections in {outcome.seconds / 60:.1f} minutes, "
        f"{'FAILED' if outcome.failed else 'all is well'}"
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
    for what in _WHAT:
        yield row(what, *(found.counts[what] for found in columns))
    yield row("charged without a cast (workers killed)", *(found.orphans for found in columns))


def as_json(outcome: Outcome, plan: Plan) -> dict[str, object]:
    """For programs."""
    return {**asdict(outcome), "failed": outcome.failed, "plan": asdict(plan)}
