"""Requests a second as bars, in an SVG that is readable on light and on dark ground, with where and when in it."""

from xml.sax.saxutils import escape

from bench import report
from bench.figures import Figures
from bench.scenarios import THROUGHPUT
from bench.targets import CAST_BODY, DIRECT, DIRECT_MANY

_WIDTH, _LABEL_WIDTH, _VALUE_WIDTH = 860, 230, 170
_BAR, _GAP, _TOP = 22, 10, 58
_STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #1f2328; }
  .small { font-size: 11px; fill: #59636e; } .title { font-size: 15px; font-weight: 600; }
  .peer { fill: #8c959f; } .own { fill: #0969da; }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3; } .small { fill: #9198a1; } .peer { fill: #656c76; } .own { fill: #4493f8; }
  }
"""
_LINE_CHARACTERS = 118


def chart(figures: Figures) -> str:
    """The SVG's text; the service itself is left out, since no proxy comes near it."""
    found = figures.scenario(THROUGHPUT)
    rows = [row for row in found["rows"] if row not in (DIRECT, DIRECT_MANY)] if found else []
    values = {row: figures.median(THROUGHPUT, row, "requests_per_s") or 0.0 for row in rows}
    largest = max([1.0, *values.values()])
    room = _WIDTH - _LABEL_WIDTH - _VALUE_WIDTH
    title = f"Requests a second through one core, {found['title'] if found else ''}, POST of {len(CAST_BODY)} bytes"
    lines = [
        _text(16, 24, title, "title"),
        _text(16, 42, "longer bars are better; behind the dot, the p99 latency", "small"),
    ]
    for place, (row, value) in enumerate(sorted(values.items(), key=lambda item: -item[1])):
        y = _TOP + place * (_BAR + _GAP)
        kind = "own" if row.startswith("castgate") else "peer"
        width = max(2.0, value / largest * room)
        p99 = figures.median(THROUGHPUT, row, "p99_ms") or 0.0
        lines += [
            _text(_LABEL_WIDTH - 8, y + 16, figures.title(row), "", end=True),
            f'<rect x="{_LABEL_WIDTH}" y="{y}" width="{width:.1f}" height="{_BAR}" rx="3" class="{kind}"/>',
            _text(_LABEL_WIDTH + width + 8, y + 16, f"{value:,.0f} · {p99:.1f} ms", ""),
        ]
    y = _TOP + len(rows) * (_BAR + _GAP) + 14
    for line in _wrapped(report.origin(figures)):
        lines.append(_text(16, y, line, "small"))
        y += 15
    height = y
    body = "\n".join(lines)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" '
        f'role="img" aria-label="{escape(title)}">\n<style>{_STYLE}</style>\n{body}\n</svg>\n'
    )


def _text(x: float, y: float, text: str, kind: str, *, end: bool = False) -> str:
    anchor = ' text-anchor="end"' if end else ""
    style = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y}"{anchor}{style}>{escape(text)}</text>'


def _wrapped(text: str) -> list[str]:
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) >= _LINE_CHARACTERS:
            lines.append("")
        lines[-1] += f" {word}" if lines[-1] else word
    return lines
