"""fly.toml says of the program what is so: ports, paths, signals, times, variables, commands."""

import re
import signal
import tomllib
from pathlib import Path
from typing import Any

import pytest

from gateway import supervisor
from gateway.admin import make_app
from gateway.cli import main
from gateway.config import ConfigError, Loaded, load
from tests.deploy.dockerfile import instructions

ROOT = Path(__file__).parents[2]
SECRETS = {"DATABASE_URL": "postgresql://u@db/cast", "REDIS_URL": "redis://r", "ADMIN_TOKEN": "0123456789abcdef"}


@pytest.fixture(scope="module")
def fly() -> dict[str, Any]:
    return tomllib.loads((ROOT / "fly.toml").read_text())


@pytest.fixture(scope="module")
def loaded(fly: dict[str, Any]) -> Loaded:
    return load(ROOT / "config.yaml", {**image_environment(), **fly["env"], **SECRETS})


def image_environment() -> dict[str, str]:
    said = instructions((ROOT / "Dockerfile").read_text())
    pairs = [pair.partition("=")[::2] for word, rest in said if word == "ENV" for pair in rest.split()]
    return dict(pairs)


def test_its_variables_make_a_configuration_that_others_can_connect_to(loaded: Loaded) -> None:
    assert loaded.settings.listen.host == "0.0.0.0"
    assert [one.host.endswith(".internal") for one in loaded.settings.upstream.addresses] == [True]  # private
    assert [warning for warning in loaded.warnings if "COST" in warning] == []


def test_the_admin_token_is_not_optional_there(fly: dict[str, Any]) -> None:
    without = {name: value for name, value in SECRETS.items() if name != "ADMIN_TOKEN"}
    with pytest.raises(ConfigError, match=r"admin\.token: expected a token"):
        load(ROOT / "config.yaml", {**image_environment(), **fly["env"], **without})


def test_its_secrets_are_not_in_it(fly: dict[str, Any]) -> None:
    named = re.search(r"# Secrets \(fly secrets set\): (.*)", (ROOT / "fly.toml").read_text())
    assert named is not None
    assert not set(named[1].split()) & set(fly["env"])
    assert set(SECRETS) <= set(named[1].split())


def test_ports_and_paths_are_the_programs(fly: dict[str, Any], loaded: Loaded) -> None:
    settings = loaded.settings
    (service,) = fly["services"]
    check = fly["checks"]["ready"]
    assert service["internal_port"] == settings.listen.port
    assert fly["metrics"]["port"] == check["port"] == settings.admin.port
    paths = {resource.canonical for resource in make_app(lambda: None, ROOT).router.resources()}  # type: ignore[arg-type, return-value]
    assert {fly["metrics"]["path"], check["path"]} <= paths
    assert {fly["metrics"]["path"], check["path"]} <= set(settings.admin.open_paths)
    assert service["concurrency"]["hard_limit"] <= settings.limits.connections_max


def test_it_waits_for_as_long_as_the_program_takes_to_stop(fly: dict[str, Any], loaded: Loaded) -> None:
    assert fly["kill_signal"] == signal.SIGTERM.name
    assert fly["kill_timeout"] == stop_time_s(loaded.settings.drain_timeout_s)


def test_its_release_command_is_one_of_ours(fly: dict[str, Any]) -> None:
    program, command = fly["deploy"]["release_command"].split()
    assert program == "castgate"
    assert command in main.commands


def stop_time_s(drain_timeout_s: float) -> float:
    """The longest that a gateway takes after SIGTERM: drain, margin, SIGTERM and SIGKILL for workers that hang."""
    return drain_timeout_s + supervisor.DRAIN_MARGIN_S + 2 * supervisor.TERMINATE_WAIT_S
