"""Tables in documents, between ``<!-- bench:name -->`` and ``<!-- /bench:name -->``, written anew from figures."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from bench import report
from bench.figures import CAST, PLAIN, Figures
from bench.scaling import capacity_table, cost_table, need_table
from bench.scenarios import LARGE, MANY, ONE, STREAMS, THROUGHPUT, WORKERS
from bench.targets import BASELINE

DOCUMENTS = ("README.md", "docs/performance.md", "docs/scaling.md")
OTHERS = ("flat-", "profile-")  # how names of tables begin that bench.flat_cost and bench.profile_hot_path write
_BLOCK = re.compile(r"(<!-- bench:([a-z0-9-]+) -->\n).*?(<!-- /bench:\2 -->)", re.DOTALL)


def _scenario(name: str) -> Callable[[Figures], str]:
    def text(figures: Figures) -> str:
        if figures.scenario(name) is None:
            return "Not measured."
        return report.as_markdown(report.scenario_table(figures, name))

    return text


def _summary(figures: Figures) -> str:
    """README.md's: what matters of 64 connections."""
    table: report.Table = [
        ("", "requests/s", "p50", "p99", "CPU a request", f"× {figures.title(BASELINE)}"),
    ]
    for row in figures.json["rows"]:
        if not figures.rounds(THROUGHPUT, row):
            continue
        rate, p50, p99, cpu = (
            figures.median(THROUGHPUT, row, figure) or 0.0
            for figure in ("requests_per_s", "p50_ms", "p99_ms", "cpu_us_per_request")
        )
        ratio = figures.ratio(THROUGHPUT, row, BASELINE)
        name = f"**{figures.title(row)}**" if row in (CAST, PLAIN) else figures.title(row)
        times = "–" if ratio is None else f"{ratio:.1f}"
        table.append((name, f"{rate:,.0f}", f"{p50:.2f} ms", f"{p99:.2f} ms", f"{cpu:.0f} µs", times))
    return report.as_markdown(table)


_BLOCKS: Mapping[str, Callable[[Figures], str]] = {
    "origin": lambda figures: f"{report.origin(figures)}; {report.method(figures)}.",
    "summary": _summary,
    "verdicts": lambda figures: report.as_markdown(report.verdict_table(figures)),
    "behind": lambda figures: report.as_markdown(report.behind_table(figures)),
    "notes": lambda figures: "\n".join(f"- {line}" for line in report.notes(figures)) or "None.",
    **{name: _scenario(name) for name in (THROUGHPUT, ONE, MANY, LARGE, STREAMS, WORKERS)},
    "costs": lambda figures: report.as_markdown(cost_table(figures)),
    "capacity": lambda figures: report.as_markdown(capacity_table(figures)),
    "need": lambda figures: report.as_markdown(need_table(figures)),
}


def names_in(text: str) -> list[str]:
    """What is marked in a document."""
    return [found[2] for found in _BLOCK.finditer(text)]


def filled(text: str, blocks: Mapping[str, str]) -> str:
    """The document with these of its tables; others stay as they are."""
    return _BLOCK.sub(
        lambda found: f"{found[1]}{blocks[found[2]]}\n{found[3]}" if found[2] in blocks else found[0], text
    )


def update_text(text: str, figures: Figures) -> str:
    """The document with its tables as the figures have them. Raises ValueError for a name that nobody writes."""

    for name in names_in(text):
        if name not in _BLOCKS and not name.startswith(OTHERS):
            raise ValueError(f"no table {name!r}; there are {', '.join(_BLOCKS)}, and {'…, '.join(OTHERS)}…")
    return filled(text, {name: _BLOCKS[name](figures) for name in names_in(text) if name in _BLOCKS})


def update_documents(figures: Figures, repository: Path) -> list[Path]:
    """Writes all of them; those that have changed."""
    changed = []
    for name in DOCUMENTS:
        path = repository / name
        before = path.read_text()
        after = update_text(before, figures)
        if after != before:
            path.write_text(after)
            changed.append(path)
    return changed
