"""The Grafana dashboard: it speaks of metrics that there are, and its panels stand side by side."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.metrics_families import FAMILIES
from tests.ops.expressions import wrong_in

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    made: dict[str, Any] = json.loads((ROOT / "ops" / "grafana" / "castgate.json").read_text())
    return made


def expressions(dashboard: dict[str, Any]) -> list[str]:
    return [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]


def test_every_panel_speaks_of_metrics_that_there_are(dashboard: dict[str, Any]) -> None:
    rules = yaml.safe_load((ROOT / "ops" / "prometheus" / "rules.yml").read_text())
    recorded = {rule["record"] for group in rules["groups"] for rule in group["rules"] if "record" in rule}
    found = {expression: list(wrong_in(expression, recorded)) for expression in expressions(dashboard)}
    assert {expression: wrong for expression, wrong in found.items() if wrong} == {}


def test_every_metric_of_the_missions_is_on_it(dashboard: dict[str, Any]) -> None:
    shown = " ".join(expressions(dashboard))
    mission = [name for name in FAMILIES if not name.startswith("castgate_")]
    assert [name for name in mission if name not in shown] == []


def test_panels_do_not_overlap_and_have_ids_of_their_own(dashboard: dict[str, Any]) -> None:
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24


def test_every_panel_says_what_it_shows_and_asks_the_chosen_source(dashboard: dict[str, Any]) -> None:
    for panel in dashboard["panels"]:
        if panel["type"] != "row":
            assert panel["description"].endswith(".")
            assert panel["datasource"]["uid"] == "${datasource}"
