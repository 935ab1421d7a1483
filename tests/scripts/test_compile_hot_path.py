"""What ``./dev compile`` does to its folder and says of the compiler; what it makes: tests/deploy/test_image.py."""

import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from gateway import compiled
from scripts import compile_hot_path
from scripts.compile_hot_path import _put, compile_all, why_not, why_not_there

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("arguments", [["--remove"], []])
def test_a_folder_that_is_somebody_elses_is_neither_removed_nor_replaced(tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    done = subprocess.run(
        [sys.executable, "-m", "scripts.compile_hot_path", *arguments],
        env={**os.environ, compiled.SWITCH: str(tmp_path)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert f"{tmp_path} is there, and was not made by ./dev compile" in done.stderr
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_folder_of_its_own_an_empty_one_and_none_may_be_replaced(tmp_path: Path) -> None:
    assert why_not_there(tmp_path / "none") == ""
    assert why_not_there(tmp_path) == ""
    (tmp_path / compiled.DIGEST).touch()
    assert why_not_there(tmp_path) == ""


def test_a_blank_name_of_a_compiler_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    expected = why_not()
    monkeypatch.setenv("CC", " ")
    assert why_not() == expected


def test_the_compiler_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler -pipe")
    assert why_not().startswith("there is no C compiler (no-such-compiler)")


def test_what_was_compiled_of_sources_that_were_edited_meanwhile_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = iter(["before", "after"])
    monkeypatch.setattr(compiled, "digest", lambda: next(digests))
    monkeypatch.setattr(compile_hot_path, "_compile_into", lambda _new, _optimization: None)
    with pytest.raises(SystemExit, match="the sources were edited meanwhile"):
        compile_all(tmp_path / "target", optimization="0")
    assert list(tmp_path.iterdir()) == []


def test_where_it_cannot_write_it_says_so_before_it_compiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def compile_into(_new: Path, _optimization: str) -> None:
        raise AssertionError("a minute for nothing")

    monkeypatch.setattr(compile_hot_path, "_compile_into", compile_into)
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match=r"cannot write .*/file/target"):
        compile_all(tmp_path / "file" / "target", optimization="0")


def _put_often(folder: Path, name: str) -> None:
    for _ in range(100):
        new = folder / name
        new.mkdir()
        (new / compiled.DIGEST).write_text(name)
        _put(new, folder / "target")


def test_two_that_compile_at_once_leave_what_one_of_them_made(tmp_path: Path) -> None:
    with ProcessPoolExecutor(2) as pool:
        for one in [pool.submit(_put_often, tmp_path, name) for name in ("first", "second")]:
            one.result()
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
    assert (tmp_path / "target" / compiled.DIGEST).read_text() in ("first", "second")
