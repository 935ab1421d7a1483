"""The ``castgate`` command: what it shows, how it fails, and what it never prints."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from gateway.cli import main
from tests.process.serving import POLICIES, ROOT, write_config

VARIABLES = ("DATABASE_URL", "STRIPE_SECRET_KEY", "STRIPE_WEBHOOK_SECRET", "COST_PER_CAST_CENTS")


def castgate(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """The command as an operator runs it."""
    kept = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    return subprocess.run(
        [sys.executable, "-m", "gateway", *arguments],
        cwd=ROOT,
        env={**kept, **environ},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_check_shows_routes_and_plans(config: Path) -> None:
    (config.parent / "policies" / "all.yaml").write_text(
        "policies:\n"
        "  - name: cast\n"
        "    match: {methods: [POST], path: /v1/cast}\n"
        "    cost: {fixed: {cents: '0.25'}}\n"
        "    rate_limits:\n"
        "      - {name: per-account, key: account, limit: 60, window: 1m, algorithm: sliding_window}\n"
        "      - {name: at-once, key: account, limit: 4, algorithm: concurrency}\n"
        "  - {name: keys, match: {path: /v1/keys/*}, mode: shadow}\n"
        "plans:\n"
        "  free: {hard_limit_cents: {monthly: 500}}\n"
        "  pro: {hard_limit_cents: {daily: 100}, time_zone: Asia/Tokyo, rate_limits: {per-account: {limit: 600}}}\n"
    )
    shown = castgate("check", "--config", str(config))
    assert shown.returncode == 0
    first, *rest = shown.stdout.splitlines()
    assert first.startswith("configuration ")
    limits = "per-account: 60 in 60s per account, sliding_window; at-once: 4 at once per account"
    assert rest == [
        "",
        "METHODS  PATH        POLICY  MODE     COST                 RATE LIMITS",
        f"POST     /v1/cast    cast    enforce  0.25 cents, success  {limits}",
        "any      /v1/keys/*  keys    SHADOW   free                 none",
        "everything else is relayed untouched",
        "",
        "PLAN            BUDGETS                     RATE LIMITS         STRIPE PRICE",
        "free (default)  monthly 500 cents           as the policy says  none",
        "pro             daily 100 cents Asia/Tokyo  per-account: 600    none",
        "",
        "billing is off",
    ]
    assert shown.stderr.splitlines()[0] == "warning: billing is off: STRIPE_SECRET_KEY is not set"


def test_check_shows_what_a_measured_cost_comes_to(config: Path) -> None:
    (config.parent / "policies" / "all.yaml").write_text(
        "policies:\n"
        "  - name: chat\n"
        "    match: {path: /v1/chat}\n"
        "    cost:\n"
        "      sum:\n"
        "        - {fixed: {cents: 0.5}}\n"
        "        - {header: {name: X-Tokens, cents_per_unit: '0.00003'}}\n"
        "        - {json: {pointer: /usage/tokens, cents_per_unit: 1, events: sum}}\n"
        "        - {duration: {cents_per_ms: 0.001}}\n"
        "        - {bytes: {cents_per_byte: '0.000001'}}\n"
        "      minimum_cents: 1\n"
        "      maximum_cents: 9\n"
        "      hold_cents: 4\n"
        "      charge_when: [404, 200]\n"
        "    rate_limits: [{name: a, key: [account, route], limit: 1, window: 1s, mode: shadow},\n"
        "                  {name: b, key: ip, limit: 2, window: 1s, callers: all}]\n"
        "plans: {free: {}}\n"
    )
    shown = castgate("check", "--config", str(config))
    cost = (
        "0.5 cents + 0.00003 cents × header x-tokens + 1 cents × json /usage/tokens (sum) + 0.001 cents × ms + "
        "0.000001 cents × bytes of answer, at least 1, at most 9, holds 4, for 200 404"
    )
    limit = (
        "a: 1 in 1s per account,route, sliding_window, SHADOW; b: 2 in 1s per ip, sliding_window; "
        "unidentified b: 2 in 1s per ip, sliding_window"
    )
    assert shown.stdout.splitlines()[3] == f"any      /v1/chat  chat    enforce  {cost}  {limit}"


def test_schema_writes_what_editors_read(tmp_path: Path) -> None:
    output = tmp_path / "schema.json"
    assert castgate("schema", "--output", str(output)).returncode == 0
    assert castgate("schema").stdout == output.read_text() == (ROOT / "policies" / "schema.json").read_text()
    failed = castgate("schema", "--output", str(tmp_path / "none" / "schema.json"))
    assert (failed.returncode, failed.stderr) == (
        1,
        f"castgate: {tmp_path}/none/schema.json: No such file or directory\n",
    )


def test_check_fails_with_every_mistake(config: Path) -> None:
    write_config(config.parent, policies=POLICIES.replace("cents: 1", "cents: one").replace("/v1/cast", "v1"))
    shown = castgate("check", "--config", str(config))
    assert (shown.returncode, shown.stdout) == (1, "")
    assert [line.partition(": ")[0].rpartition("/")[2] for line in shown.stderr.splitlines()] == [
        "all.yaml:3:49",
        "all.yaml:3:76",
    ]


def test_a_configuration_that_is_not_there_is_one_line() -> None:
    shown = castgate("serve", "--config", "/none/config.yaml")
    assert shown.returncode == 1
    assert shown.stderr.splitlines()[0] == "/none/config.yaml: cannot be read: No such file or directory"
    assert "Traceback" not in shown.stderr


def test_a_postgres_that_is_away_is_one_line_without_the_password() -> None:
    shown = castgate("migrate", "--database-url", "postgresql://me:hunter2@127.0.0.1:1/casts")
    assert shown.returncode == 1
    assert shown.stdout == ""
    assert shown.stderr == "castgate: cannot reach Postgres at 127.0.0.1:1/casts: Connection refused\n"


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("postgresql://me:hunter2@localhost:1/casts", "cannot reach Postgres at localhost:1/casts: Connection refused"),
        ("postgresql://me:hunter2@nobody.invalid/x", "cannot reach Postgres at nobody.invalid:5432/x: no such host"),
        (
            "mysql://me:hunter2@localhost/x",
            "the database URL cannot be used: invalid DSN: scheme is expected to be either "
            '"postgresql" or "postgres", got \'mysql\'',
        ),
    ],
)
def test_a_database_url_that_leads_nowhere_says_why(url: str, why: str) -> None:
    shown = castgate("migrate", DATABASE_URL=url)
    assert (shown.returncode, shown.stderr) == (1, f"castgate: {why}\n")


def test_migrate_takes_the_database_of_the_configuration_where_no_url_is_given(config: Path) -> None:
    write_config(config.parent, config.read_text().replace("localhost/none", "127.0.0.1:1/configured"))
    shown = castgate("migrate", "--config", str(config))
    assert shown.stderr == "castgate: cannot reach Postgres at 127.0.0.1:1/configured: Connection refused\n"


@pytest.mark.parametrize("arguments", [["--port", "70000"], ["--workers", "0"], ["--colour"], ["extra"]])
def test_a_wrong_command_line_is_exit_code_2(arguments: list[str]) -> None:
    assert CliRunner().invoke(main, ["serve", *arguments]).exit_code == 2


@pytest.mark.parametrize("option", ["--account", "--method", "--ip", "--header"])
def test_what_is_no_text_cannot_be_explained(option: str) -> None:
    shown = CliRunner().invoke(main, ["explain", "--path", "/v1/cast", option, "\udcff: 1"])  # a byte that is not UTF-8
    assert (shown.exit_code, "expected printable characters" in shown.output) == (2, True)


@pytest.mark.parametrize("command", ["serve", "check", "migrate"])
def test_help_has_examples(command: str) -> None:
    shown = CliRunner().invoke(main, [command, "--help"])
    assert shown.exit_code == 0
    assert f"Examples\n    castgate {command}" in shown.output


def test_it_says_its_version() -> None:
    assert CliRunner().invoke(main, ["--version"]).output.startswith("castgate, version ")


def test_the_shell_completes_commands() -> None:
    shown = castgate(_CASTGATE_COMPLETE="bash_complete", COMP_WORDS="castgate se", COMP_CWORD="1")
    assert shown.stdout == "plain,serve\n"
