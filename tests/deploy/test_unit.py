"""The systemd unit says of the program what is so."""

import re
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest

from gateway.cli import main
from gateway.config import Settings, load
from tests.deploy.test_fly import stop_time_s

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "ops" / "castgate.service"


def read_unit() -> dict[str, list[str]]:
    found = defaultdict(list)
    for line in UNIT.read_text().splitlines():
        if "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found[key].append(value)
    return found


def variables() -> dict[str, str]:
    lines = (ROOT / "ops" / "castgate.env").read_text().splitlines()
    pairs = [line.lstrip("#").partition("=")[::2] for line in lines if re.match(r"#?[A-Z_]+=", line)]
    return dict(pairs)


def test_it_waits_for_as_long_as_the_program_takes_to_stop() -> None:
    unit = read_unit()
    default_s = Settings.model_fields["drain_timeout_s"].default
    assert unit["TimeoutStopSec"] == [f"{stop_time_s(default_s):g}"]
    # The supervisor alone gets the signal: it tells the workers, which finish what is under way.
    assert (unit["KillMode"], unit["KillSignal"]) == (["mixed"], ["SIGTERM"])


def test_its_commands_are_ours() -> None:
    unit = read_unit()
    commands = [line.split() for key in ("ExecStartPre", "ExecStart", "ExecReload") for line in unit[key]]
    ours = [arguments for program, *arguments in commands if program == "/opt/castgate/bin/castgate"]
    assert [arguments[0] for arguments in ours] == ["check", "serve", "check"]
    assert all(arguments[0] in main.commands for arguments in ours)
    assert unit["ExecReload"][-1] == "/bin/kill -HUP $MAINPID"


def test_there_are_files_enough_for_every_connection_on_every_worker() -> None:
    limits = Settings.model_fields["limits"].default
    upstream = Settings.model_fields["upstream"].annotation
    assert upstream is not None
    pooled = upstream.model_fields["connections_max"].default
    assert int(read_unit()["LimitNOFILE"][0]) > 2 * limits.connections_max + pooled


def test_the_example_of_its_variables_is_a_configuration() -> None:
    environ = {name: value for name, value in variables().items() if not name.startswith("ADMIN_")}
    loaded = load(ROOT / "config.yaml", environ)
    assert {warning.split(": ")[1].split()[0] for warning in loaded.warnings} == {
        "STRIPE_SECRET_KEY",
        "STRIPE_WEBHOOK_SECRET",
    }
    text = (ROOT / "config.yaml").read_text() + "".join(path.read_text() for path in ROOT.glob("policies/*.yaml"))
    assert [name for name in variables() if f"${{{name}" not in text] == []


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze; `apt-get install systemd`")
def test_systemd_finds_nothing_wrong(tmp_path: Path) -> None:
    here = tmp_path / UNIT.name
    # What is not installed on this machine is not the unit's fault.
    here.write_text(re.sub(r"/opt/castgate/bin/castgate|/bin/kill", "/bin/true", UNIT.read_text()))
    done = subprocess.run(["systemd-analyze", "verify", here], capture_output=True, text=True, check=False)
    complaints = [line for line in done.stderr.splitlines() if str(here) in line or UNIT.name in line]
    assert (done.returncode, complaints) == (0, [])
