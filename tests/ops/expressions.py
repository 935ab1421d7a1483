"""What PromQL expressions speak of, held against what the program has."""

import re
from collections.abc import Iterable, Iterator

from gateway.metrics_families import FAMILIES, HISTOGRAM

# Made by Prometheus itself, or by the exposition and not by a declared family.
OTHERS: dict[str, tuple[str, ...]] = {
    "up": (),
    "castgate_config_info": ("version",),
    "castgate_build_info": ("version", "python"),
}
# What Prometheus adds to every series.
ADDED = {"instance", "job", "le"}
_NAME = re.compile(r"(?<![\w:$\"'.])([a-zA-Z_][a-zA-Z0-9_:]*)\s*(\{[^}]*\})?")
_WORDS = {
    *("by", "without", "on", "ignoring", "group_left", "group_right", "bool", "offset", "and", "or", "unless"),
    *("sum", "min", "max", "count", "rate", "increase", "changes", "vector", "histogram_quantile", "label_values"),
}
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring)\s*\([^)]*\)")
_RANGE = re.compile(r"\[[^\]]*\]")
_LABEL = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)")


def wrong_in(expression: str, recorded: Iterable[str] = ()) -> Iterator[str]:
    """Each metric that there is not, and each label that it does not have."""
    plain = _RANGE.sub("", _GROUPING.sub("", expression))
    for name, selector in _NAME.findall(plain):
        if name in _WORDS or name in recorded:
            continue
        labels = _labels_of(name)
        if labels is None:
            yield f"no metric is called {name}"
            continue
        for label in _LABEL.findall(re.sub(r'"[^"]*"', '""', selector)):
            if label not in labels:
                yield f"{name} has no label {label}"


def _labels_of(name: str) -> set[str] | None:
    if name in OTHERS:
        return {*OTHERS[name], *ADDED}
    family = FAMILIES.get(name)
    if family is not None and family.kind != HISTOGRAM:
        return {*family.labels, *ADDED}
    base = re.sub(r"_(bucket|sum|count)$", "", name)
    family = FAMILIES.get(base) if base != name else None
    return {*family.labels, *ADDED} if family is not None and family.kind == HISTOGRAM else None
