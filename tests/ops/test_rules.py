"""Prometheus' rules: promtool finds them right, they speak of metrics that there are, and each alert is explained."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.metrics_families import FAMILIES
from tests.ops.expressions import wrong_in

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "ops" / "prometheus"
PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(
    PROMTOOL is None, reason="no promtool here; `apt-get install --no-install-recommends prometheus` installs it"
)


def rules() -> list[dict[str, Any]]:
    text = yaml.safe_load((FOLDER / "rules.yml").read_text())
    return [rule for group in text["groups"] for rule in group["rules"]]


def alerts() -> list[str]:
    return [rule["alert"] for rule in rules() if "alert" in rule]


def promtool(*words: str) -> tuple[int, str]:
    assert PROMTOOL is not None
    done = subprocess.run([PROMTOOL, *words], cwd=FOLDER, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


@needs_promtool
def test_promtool_finds_rules_and_configuration_right(tmp_path: Path) -> None:
    code, said = promtool("check", "rules", "rules.yml")
    assert code == 0, said
    (tmp_path / "token").write_text("x")
    config = (FOLDER / "prometheus.yml").read_text().replace("/etc/prometheus/castgate-token", str(tmp_path / "token"))
    (tmp_path / "prometheus.yml").write_text(config.replace("rules.yml", str(FOLDER / "rules.yml")))
    code, said = promtool("check", "config", str(tmp_path / "prometheus.yml"))
    assert code == 0, said


@needs_promtool
def test_alerts_fire_when_they_should_and_not_before() -> None:
    code, said = promtool("test", "rules", "rules.test.yml")
    assert code == 0, said


def test_every_alert_has_a_test_of_both() -> None:
    tests = yaml.safe_load((FOLDER / "rules.test.yml").read_text())["tests"]
    quiet = {case["alertname"] for test in tests for case in test.get("alert_rule_test", []) if not case["exp_alerts"]}
    firing = {case["alertname"] for test in tests for case in test.get("alert_rule_test", []) if case["exp_alerts"]}
    assert quiet == firing == set(alerts())


def test_every_expression_speaks_of_metrics_that_there_are() -> None:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    wrong = {rule.get("alert") or rule["record"]: list(wrong_in(rule["expr"], recorded)) for rule in rules()}
    assert {name: found for name, found in wrong.items() if found} == {}


def test_every_alert_has_its_entry_in_the_runbook_and_no_entry_is_for_nothing() -> None:
    text = (ROOT / "docs" / "runbook.md").read_text()
    entries = dict(re.findall(r"^### (\w+)\n(.*?)(?=^#|\Z)", text, re.MULTILINE | re.DOTALL))
    assert list(entries) == alerts()
    for name, entry in entries.items():
        assert "**Do**" in entry or "**do**" in entry, name


def test_the_runbook_speaks_of_metrics_that_there_are() -> None:
    text = (ROOT / "docs" / "runbook.md").read_text()
    named = re.findall(r"`((?:castgate_|spell_|stripe_webhook)[\w]+(?:\{[^}]*\})?)`", text)
    assert len(named) > 10
    assert [wrong for name in named if name not in FAMILIES for wrong in wrong_in(name)] == []


def test_every_alert_says_how_urgent_it_is_and_what_it_is_in_one_sentence() -> None:
    for rule in rules():
        if "alert" in rule:
            assert rule["labels"]["severity"] in ("page", "ticket")
            assert rule["annotations"]["summary"].endswith(".")


@pytest.mark.parametrize(
    ("expression", "wrong"),
    [
        ("sum(rate(spell_casts_total[5m]))", ["no metric is called spell_casts_total"]),
        ('rate(spell_cast_total{state="200"}[5m])', ["spell_cast_total has no label state"]),
        ("spell_cast_duration_seconds", ["no metric is called spell_cast_duration_seconds"]),
        ("sum by (le) (rate(spell_cast_duration_seconds_bucket[5m]))", []),
        ("castgate_workers_ready_count", ["no metric is called castgate_workers_ready_count"]),
    ],
)
def test_what_there_is_not_is_noticed(expression: str, wrong: list[str]) -> None:
    assert list(wrong_in(expression)) == wrong
