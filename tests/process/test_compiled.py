"""When a worker takes what was compiled and when it interprets; what it then does: tests/deploy/test_image.py."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gateway import compiled

ROOT = Path(__file__).parents[2]


def told(code: str, **environment: str) -> str:
    """What a Python of its own prints."""
    done = subprocess.run(
        [sys.executable, "-c", f"from gateway import compiled\n{code}"],
        env={**os.environ, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One that looks as if the sources that are here had been compiled into it."""
    for name in (compiled.LIBRARY, *compiled.names()):
        (tmp_path / f"{name}.so").touch()
    (tmp_path / compiled.DIGEST).write_text(compiled.made_of(tmp_path, compiled.digest()))
    return tmp_path


def test_it_is_taken_where_it_is_of_the_same_sources(folder: Path) -> None:
    assert told("print(repr(compiled.why_interpreted()))", CASTGATE_COMPILED=str(folder)) == "''"


def test_after_an_edit_sources_are_interpreted(folder: Path) -> None:
    digest = folder / compiled.DIGEST
    digest.write_text(digest.read_text().swapcase()[::-1])
    assert told("print(compiled.use())", CASTGATE_COMPILED=str(folder)) == "compiled from other sources"


def test_where_nothing_was_compiled_sources_are_interpreted(tmp_path: Path) -> None:
    assert told("print(compiled.use())", CASTGATE_COMPILED="1") == "CASTGATE_COMPILED is '1', where nothing is compiled"
    nowhere = f"import sysconfig\nsysconfig.get_path = lambda _: {str(tmp_path)!r}\nprint(compiled.use())"
    assert told(nowhere, CASTGATE_COMPILED="") == "not compiled"


def test_where_a_part_is_missing_all_sources_are_interpreted(folder: Path) -> None:
    (folder / "gateway.metrics.so").unlink()
    expected = "of what was compiled, gateway.metrics is missing"
    assert told("print(compiled.use())", CASTGATE_COMPILED=str(folder)) == expected


def test_where_a_file_is_damaged_all_sources_are_interpreted(folder: Path) -> None:
    (folder / "gateway.metrics.so").write_bytes(b"\x7fELF and then the disk was full")
    assert told("print(compiled.use())", CASTGATE_COMPILED=str(folder)) == "what was compiled is damaged"


def test_where_a_file_cannot_be_read_all_sources_are_interpreted(folder: Path) -> None:
    (folder / "gateway.metrics.so").unlink()
    (folder / "gateway.metrics.so").mkdir()
    found = told("print(compiled.use())", CASTGATE_COMPILED=str(folder))
    assert found.startswith("what was compiled cannot be read: ")


def test_what_this_machine_cannot_load_is_interpreted(folder: Path) -> None:
    found = told(
        "print(compiled.use())\nimport gateway.metrics\nprint(gateway.metrics.__file__)", CASTGATE_COMPILED=str(folder)
    )
    reason, _, file = found.partition("\n")
    assert reason.startswith("what was compiled cannot be loaded: ")
    assert file == str(ROOT / "gateway/metrics.py")


def test_where_warnings_are_errors_that_of_compiled_coroutines_is_none(folder: Path) -> None:
    """Pythons since 3.12 warn of how these hand on what they await has failed with, which then was not caught."""
    code = """
import warnings
compiled.import_module = lambda name: None
print(repr(compiled.use()))
warnings.warn("the (type, exc, tb) signature of throw() is deprecated, use the single-arg one", DeprecationWarning)
"""
    assert told(code, CASTGATE_COMPILED=str(folder), PYTHONWARNINGS="error") == "''"


def test_a_digest_that_is_no_text_is_of_other_sources(folder: Path) -> None:
    (folder / compiled.DIGEST).write_bytes(b"\xff\x00")
    assert told("print(compiled.use())", CASTGATE_COMPILED=str(folder)) == "compiled from other sources"


def test_it_can_be_switched_off() -> None:
    assert told("print(compiled.use())", CASTGATE_COMPILED="0") == "CASTGATE_COMPILED is 0"


def test_it_is_all_or_none(folder: Path) -> None:
    early = "import gateway.metrics\nprint(compiled.use())"
    assert told(early, CASTGATE_COMPILED=str(folder)) == "sources were imported already"


def test_a_worker_imports_nothing_that_is_compiled_before_it_takes_it() -> None:
    early = "import sys, gateway.worker_main\nprint(sorted(sys.modules.keys() & set(compiled.names())))"
    assert told(early) == "[]"


def test_the_digest_is_of_every_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.py", "in/b.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("1")
    monkeypatch.setattr(compiled, "_SOURCES", tmp_path)
    found = {compiled.digest()}
    (tmp_path / "in/b.py").write_text("2")
    found.add(compiled.digest())
    (tmp_path / "in/b.py").rename(tmp_path / "in/c.py")
    found.add(compiled.digest())
    (tmp_path / "c.txt").write_text("no source")
    assert compiled.digest() in found
    assert len(found) == 3


def test_what_is_compiled_are_modules_that_there_are() -> None:
    for name in compiled.names():
        assert (ROOT / f"{name.replace('.', '/')}.py").exists(), name
