"""A folder with a good configuration, in which one thing at a time is then made wrong."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from gateway.config import ConfigError, Loaded, load
from tests.config.good_files import CAST, CONFIG, ENVIRON, PLANS, LoadIt, Refusal, Write


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes files by name into the current folder, beside a good configuration."""
    monkeypatch.chdir(tmp_path)

    def write_files(files: Mapping[str, str | bytes] | None = None) -> None:
        good = {"config.yaml": CONFIG, "policies/cast.yaml": CAST, "policies/plans.yaml": PLANS}
        for name, content in {**good, **(files or {})}.items():
            path = tmp_path / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())

    return write_files


@pytest.fixture
def load_it(write: Write) -> LoadIt:
    """Writes files, then loads; environment variables given as None are not set."""

    def load_files(files: Mapping[str, str | bytes] | None = None, **environ: str | None) -> Loaded:
        write(files)
        merged = {**ENVIRON, **environ}
        return load(Path("config.yaml"), {name: value for name, value in merged.items() if value is not None})

    return load_files


@pytest.fixture
def refusal(load_it: LoadIt) -> Refusal:
    """The lines of the error that loading ends with."""

    def lines_of(files: Mapping[str, str | bytes] | None = None, **environ: str | None) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            load_it(files, **environ)
        return str(caught.value).splitlines()

    return lines_of
