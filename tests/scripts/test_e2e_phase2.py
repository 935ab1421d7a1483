"""scripts/e2e_phase2.sh against a real ``./dev up``: unattended, while a person pays, and where it fails."""

import os
import re
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.up.running import VARIABLES, Up, up

SCRIPT = Path(__file__).parents[2] / "scripts" / "e2e_phase2.sh"
ASKED = (*VARIABLES, "API_KEY", "METRICS_URL", "PAY_TIMEOUT_S", "SETTLE_TIMEOUT_S", "RATE_CASTS_MAX")
RUN_TIMEOUT_S = 50.0


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    # Phase 1's own limit would answer some casts in place of the gateway's.
    with up(tmp_path_factory.mktemp("up"), "--ephemeral", STUB_RATE_LIMIT_PER_MINUTE="0") as one:
        one.wait_for("ready ")
        yield one


def start(*arguments: str, **environ: str) -> "subprocess.Popen[str]":
    inherited = {name: value for name, value in os.environ.items() if name not in ASKED}
    return subprocess.Popen(
        [str(SCRIPT), *arguments],
        env={**inherited, **environ},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: "subprocess.Popen[str]") -> tuple[int, list[str]]:
    with process:
        out, err = process.communicate(timeout=RUN_TIMEOUT_S)
    return process.returncode, [*out.splitlines(), *err.splitlines()]


def test_unattended_it_holds_in_every_point(running: Up) -> None:
    code, lines = finish(start("--demo", str(running.data_dir / "demo.json")))
    points = [line for line in lines if line.startswith(("ok", "not ok"))]
    assert (code, lines[0], lines[-2]) == (0, "TAP version 13", f"1..{len(points)}"), "\n".join(lines)
    assert [number for number, line in enumerate(points, 1) if not line.startswith(f"ok {number} - ")] == []
    assert not [line for line in points if "# SKIP" in line]
    told = "\n".join(points)
    for asked in ("is 402", "is 429", "active in Postgres", "the webhook", "counted the 402", "counted the 429"):
        assert asked in told


def test_a_deployment_is_asked_the_same_while_a_person_pays(running: Up) -> None:
    demo = running.demo
    process = start(
        *("--base-url", f"{demo['base_url']}/"),
        API_KEY=demo["api_key"],
        METRICS_URL=f"{demo['admin_url']}/metrics",
        PAY_TIMEOUT_S="40",
        DATABASE_URL="",
    )
    assert process.stderr is not None
    for line in process.stderr:
        if found := re.fullmatch(r"\s+(http\S+)\n", line):
            pay(found[1])
            break
    code, lines = finish(process)
    assert code == 0, "\n".join(lines)
    assert [line.partition(" - ")[2] for line in lines if "# SKIP" in line] == [
        "the account is active in Postgres # SKIP no DATABASE_URL"
    ]


def test_what_does_not_hold_is_said_and_ends_it_with_1(running: Up) -> None:
    demo = running.demo
    code, lines = finish(
        start(
            *("--base-url", demo["base_url"]),
            API_KEY=demo["api_key"],
            METRICS_URL=f"{demo['upstream_url']}/health",  # where nothing is counted
            SETTLE_TIMEOUT_S="1",
            PAY_TIMEOUT_S="1",
            RATE_CASTS_MAX="0",
        )
    )
    assert code == 1, "\n".join(lines)
    failed = [line.partition(" - ")[2] for line in lines if line.startswith("not ok")]
    assert {"/metrics has counted the 402", "/metrics has counted the casts"} <= set(failed)
    assert "  expected: budget_block_total above 0" in lines


def test_a_gateway_that_is_not_there_is_no_failure_of_its_own(free_port: int, tmp_path: Path) -> None:
    code, lines = finish(start("--base-url", f"http://127.0.0.1:{free_port}", API_KEY="ck_x"))
    assert code == 2
    assert lines[-1].startswith("Bail out! GET http://127.0.0.1")
    code, lines = finish(start("--demo", str(tmp_path / "demo.json")))
    assert (code, lines[-1].partition(":")[0]) == (2, f"Bail out! no {tmp_path}/demo.json")


def pay(url: str) -> None:
    """As the page's button does; the answer leads on to the shop."""
    form = {"how": "pay", "email": "person@example.com", "card": "4242 4242 4242 4242"}
    urllib.request.urlopen(url, data=urllib.parse.urlencode(form).encode(), timeout=20).close()
