"""Configuration files for supervisors under test."""

from pathlib import Path

import pytest

from tests.process.serving import write_config


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A configuration with two workers and any free ports."""
    return write_config(tmp_path)
