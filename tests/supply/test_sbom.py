"""The bill of materials: valid by CycloneDX's own schema, complete, and the same each time."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

ROOT = Path(__file__).parents[2]
# What may be built upon without asking anybody; another one is a decision for people.
ACCEPTED = {"Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "MIT", "MPL-2.0", "PSF-2.0"}


def sbom(*arguments: str) -> str:
    program = [sys.executable, str(ROOT / "scripts" / "sbom.py"), *arguments]
    return subprocess.run(program, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def text() -> str:
    return sbom()


@pytest.fixture(scope="module")
def bill(text: str) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(text)
    return made


def test_it_is_valid_and_the_same_each_time(text: str) -> None:
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    assert sbom() == text


def test_it_has_each_locked_package_with_the_hashes_that_pip_checks(bill: dict[str, Any]) -> None:
    lock = (ROOT / "requirements" / "base.txt").read_text()
    locked = dict(re.findall(r"^([a-z0-9][a-z0-9._-]*)==([^\s;\\]+) \\$", lock, re.MULTILINE))
    found = {one["name"]: one["version"] for one in bill["components"]}
    assert found == {**locked, **found}
    hashes = {one["content"] for component in bill["components"] for one in component["hashes"]}
    assert hashes <= set(re.findall(r"sha256:([0-9a-f]{64})", lock))
    for component in bill["components"]:
        assert component["hashes"]
        assert component["purl"] == f"pkg:pypi/{component['name']}@{component['version']}"


def test_everything_is_there_because_something_needs_it(bill: dict[str, Any]) -> None:
    needs = {one["ref"]: one.get("dependsOn", []) for one in bill["dependencies"]}
    reached, left = set[str](), ["castgate"]
    while left:
        ref = left.pop()
        if ref not in reached:
            reached.add(ref)
            left += needs[ref]
    assert reached == {"castgate", *(one["bom-ref"] for one in bill["components"])}


def test_every_licence_is_known_accepted_and_listed(bill: dict[str, Any]) -> None:
    for component in bill["components"]:
        (licence,) = component["licenses"]
        stated = licence.get("expression") or licence["license"]["id"]
        assert set(re.split(r" (?:AND|OR) ", stated)) <= ACCEPTED, component["name"]
    assert (ROOT / "docs" / "licences.md").read_text() == sbom("--licences"), "run ./dev sbom --licences again"
