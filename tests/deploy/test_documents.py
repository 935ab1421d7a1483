"""docs/deploy.md, docs/runbook.md, SECURITY.md: what they name is there, and their steps are those that are tested."""

import re
from pathlib import Path

import pytest

from gateway.cli import main
from gateway.config.settings import Settings

ROOT = Path(__file__).parents[2]
DOCUMENTS = ("docs/deploy.md", "docs/runbook.md", "SECURITY.md")


def text_of(document: str) -> str:
    return (ROOT / document).read_text()


@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_files_that_it_names_are_there(document: str) -> None:
    text = text_of(document)
    linked = {target.partition("#")[0] for target in re.findall(r"\]\(([^)]+)\)", text)}
    assert [target for target in linked if not ((ROOT / document).parent / target).exists()] == []
    named = re.findall(r"`((?:tests|docs|ops|scripts|policies|requirements|migrations)/[\w./-]+)`", text)
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_commands_of_ours_that_it_names_are_there(document: str) -> None:
    for command in re.findall(r"(?:`|\$ |bin/|^    )castgate ([a-z]+)", text_of(document), re.MULTILINE):
        assert command in main.commands, command


def test_the_plain_machine_gets_what_the_image_gets() -> None:
    def installs(text: str) -> list[str]:
        joined = re.sub(r"\\\n\s*", " ", text)
        found = re.findall(r"/opt/castgate/bin/pip install (.*?)(?: \\| &&|\n|$)", joined)
        # What only makes the image smaller is left out by hand.
        return [re.sub(r"--no-cache-dir |--no-compile |--disable-pip-version-check ", "", one).strip() for one in found]

    assert installs(text_of("docs/deploy.md")) == [re.sub(r"\s+", " ", one) for one in installs(text_of("Dockerfile"))]


def test_the_runbook_names_settings_that_there_are() -> None:
    sections = {name: field.annotation for name, field in Settings.model_fields.items()}
    for section, key in re.findall(r"`([a-z]+)\.(?!yaml)([a-z_]+)`", text_of("docs/runbook.md")):
        model = sections[section]
        assert model is not None
        known = {field.alias or name for name, field in model.model_fields.items()}
        assert key in known, f"{section}.{key}"
