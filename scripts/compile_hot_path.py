"""Compiles the worker's hot path, with the Python that runs this and for it (``gateway/compiled.py``).

Needs mypy, setuptools, a C compiler and Python's headers. Nothing is replaced unless all of it was compiled.
"""

import argparse
import contextlib
import errno
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

from gateway import compiled

ROOT = Path(__file__).resolve().parent.parent
INSTALL = "On Debian or Ubuntu: apt-get install gcc python3-dev"


def why_not() -> str:
    """What is missing on this machine, and how to get it; blank where nothing is."""
    compiler = (os.environ.get("CC", "").split() or (sysconfig.get_config_var("CC") or "cc").split())[0]
    if shutil.which(compiler) is None:
        return f"there is no C compiler ({compiler}). {INSTALL}"
    headers = Path(sysconfig.get_path("include")) / "Python.h"
    return "" if headers.exists() else f"Python's headers are not here ({headers}). {INSTALL}"


def why_not_there(target: Path) -> str:
    """Why ``target`` is not to be replaced or removed: it is somebody else's. Blank where nothing is lost with it."""
    if (target / compiled.DIGEST).is_file() or not os.path.lexists(target):
        return ""
    if target.is_dir() and not any(target.iterdir()):
        return ""
    return f"{target} is there, and was not made by ./dev compile: {compiled.SWITCH} is to name a folder of its own"


def compile_all(target: Path, *, optimization: str) -> None:
    """Into ``target``, which is replaced as a whole. Raises SystemExit with what the compiler said."""
    sources = compiled.digest()
    new = target.with_name(f"{target.name}.new-{os.getpid()}")
    shutil.rmtree(new, ignore_errors=True)
    try:
        new.mkdir(parents=True)  # before a minute is spent for nothing
        _compile_into(new, optimization)
        if compiled.digest() != sources:
            raise SystemExit("compile: the sources were edited meanwhile; what is there is as it was")
        (new / compiled.DIGEST).write_text(compiled.made_of(new, sources), encoding="ascii")
        _put(new, target)
    except OSError as error:
        raise SystemExit(f"compile: cannot write {target}: {error}") from None
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _compile_into(new: Path, optimization: str) -> None:
    with tempfile.TemporaryDirectory(prefix="castgate-compile-") as folder:
        build = Path(folder)
        said = build / "said"
        with said.open("wb") as file:
            done = subprocess.run(
                [sys.executable, "-m", "scripts.compile_hot_path", "--build", folder, "--optimization", optimization],
                cwd=ROOT,
                stdout=file,
                stderr=subprocess.STDOUT,
                check=False,
            )
        if done.returncode != 0:
            raise SystemExit(f"compile: failed\n{said.read_text(errors='replace')[-4000:]}")
        suffix = sysconfig.get_config_var("EXT_SUFFIX")
        for path in (build / "out").rglob(f"*{suffix}"):
            name = ".".join(path.relative_to(build / "out").parts).removesuffix(suffix)
            shutil.copy(path, new / f"{name}.so")


def _put(new: Path, target: Path) -> None:
    """In place of what is there, of which others may be loading parts, or which they may be replacing as well."""
    old = target.with_name(f"{target.name}.old-{os.getpid()}")
    while True:
        with contextlib.suppress(FileNotFoundError):
            target.rename(old)
        try:
            new.rename(target)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        finally:
            shutil.rmtree(old, ignore_errors=True)


def build_in(folder: Path, optimization: str) -> None:
    """In a process of its own, as both libraries write to standard output and leave by ``sys.exit``."""
    from mypyc.build import mypycify  # noqa: PLC0415  takes half a second, and is not everywhere
    from setuptools import setup  # type: ignore[import-untyped]  # noqa: PLC0415

    # As named from the folder that it is run in, ROOT.
    paths = [f"{name.replace('.', '/')}.py" for name in compiled.names()]
    extensions = mypycify(
        [f"--cache-dir={folder / 'mypy'}", *paths],
        opt_level=optimization,
        debug_level="0",
        group_name=compiled.GROUP,
        target_dir=str(folder / "c"),
    )
    for one in extensions:
        one.extra_link_args.append("-Wl,-s")  # symbols are of no use where no debugger is
    setup(
        name="castgate-compiled",
        ext_modules=extensions,
        script_args=["-q", "build_ext", f"--build-lib={folder / 'out'}", f"--build-temp={folder / 'o'}"],
    )


def main() -> None:
    """``./dev compile``."""
    parser = argparse.ArgumentParser(prog="./dev compile", description=__doc__, add_help=True)
    parser.add_argument("--remove", action="store_true", help="interpret the sources again")
    parser.add_argument("--force", action="store_true", help="also where what is there is of the same sources")
    parser.add_argument(
        "--optimization", default="2", choices=("0", "1", "2", "3"), help="the C compiler's (default: 2)"
    )
    parser.add_argument("--build", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    target = compiled.folder()
    if asked.build is not None:
        build_in(asked.build, asked.optimization)
        return
    if reason := why_not_there(target):
        raise SystemExit(f"compile: {reason}")
    if asked.remove:
        shutil.rmtree(target, ignore_errors=True)
        print("compile: removed; workers interpret their sources")
        return
    if os.environ.get(compiled.SWITCH) == "0":
        raise SystemExit(f"compile: {compiled.SWITCH} is 0: what is compiled would not be used")
    if not asked.force and not compiled.why_interpreted():
        print("compile: up to date")
        return
    if reason := why_not():
        raise SystemExit(f"compile: {reason}")
    print(f"compile: {len(compiled.MODULES)} modules, which takes a minute …", flush=True)
    began_s = time.monotonic()
    compile_all(target, optimization=asked.optimization)
    size = sum(path.stat().st_size for path in target.iterdir())
    print(f"compile: done in {time.monotonic() - began_s:.0f} s, {size / 1e6:.1f} MB in {target}")


if __name__ == "__main__":
    main()
