"""The ``castgate`` command: serve, check, migrate, billing sync.

Exit codes: 0 done or stopped as asked; 1 it could not be done, the reason is on standard error; 2 the command line is
wrong; 130 stopped at once by a second signal. Nothing that an operator can get wrong ends in a traceback.
"""

import asyncio
import os
import signal
from collections.abc import Callable, Coroutine, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import click
import structlog

from gateway import log, migrate
from gateway.billing_sync import FAULTS, AlreadySyncingError
from gateway.billing_sync_command import sync_from_command
from gateway.config import ConfigError, Loaded, load
from gateway.config.schema import policies_schema_text
from gateway.listening import ListenError
from gateway.metrics import build_version
from gateway.policy.budgets import BudgetLimit
from gateway.policy.effective import cost_text, limit_text
from gateway.policy.money import cents_text
from gateway.policy.rules import ENFORCE, Plan, Policy
from gateway.supervisor import NotStartedError, Overrides, Supervisor

EXIT_FAILED = 1

_EPILOG = """\b
Exit codes
  0    done, or stopped as asked
  1    it could not be done; standard error says why
  2    the command line is wrong
  130  stopped at once by a second signal

\b
Completion of commands and options in the shell
  bash  eval "$(_CASTGATE_COMPLETE=bash_source castgate)"
  zsh   eval "$(_CASTGATE_COMPLETE=zsh_source castgate)"
  fish  _CASTGATE_COMPLETE=fish_source castgate | source
"""

_config_option = click.option(
    "--config",
    type=click.Path(path_type=Path),
    default=Path("config.yaml"),
    envvar="CASTGATE_CONFIG",
    show_default=True,
    show_envvar=True,
    help="The configuration; its policies are found from there.",
)


@click.group(epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(build_version(), prog_name="castgate")
def main() -> None:
    """A policy gateway: budgets, rate limits and billing in front of an API that stays as it is.

    \b
    Examples
      castgate check                     is the configuration right?
      castgate migrate                   make Castgate's tables, once
      castgate billing sync              read from Stripe what webhooks have missed
      castgate serve --workers 4         serve until Ctrl-C
    """


@main.command(short_help="Serve until SIGTERM or Ctrl-C.")
@_config_option
@click.option("--port", type=click.IntRange(0, 65535), help="In place of listen.port; 0 is any free port.")
@click.option("--admin-port", type=click.IntRange(0, 65535), help="In place of admin.port; 0 is any free port.")
@click.option("--workers", type=click.IntRange(1, 64), help="Worker processes, in place of workers.")
def serve(config: Path, port: int | None, admin_port: int | None, workers: int | None) -> None:
    """Serve until SIGTERM or SIGINT (Ctrl-C), which let calls under way end; a second one stops at once.

    SIGHUP, or a change of the files, loads policies and plans anew; a configuration that is wrong is refused and the
    old one stays. SIGUSR2 replaces the worker processes one by one, without losing a request.

    \b
    Examples
      castgate serve
      castgate serve --config /etc/castgate/config.yaml --port 80 --workers 4
    """
    for number in (signal.SIGHUP, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # until the supervisor listens: by default they would end it
    try:
        loaded = load(config, os.environ)
        log.configure(loaded.settings.log.level, loaded.settings.log.format)
        for warning in loaded.warnings:
            structlog.get_logger().warning("configuration", warning=warning)
        supervisor = Supervisor(
            config=config,
            loaded=loaded,
            load=lambda: load(config, os.environ),
            overrides=Overrides(port=port, admin_port=admin_port, workers=workers),
            announce=click.echo,
        )
        code = asyncio.run(supervisor.run())
    except ConfigError as error:
        _fail(str(error))
    except (ListenError, NotStartedError) as error:
        _fail(f"castgate: {error}")
    except OSError as error:
        _fail(f"castgate: {error.filename or 'cannot serve'}: {error.strerror or error}")
    raise SystemExit(code)


@main.command(short_help="Is the configuration right, and what does it mean?")
@_config_option
def check(config: Path) -> None:
    """Read the configuration as serve would, and show what it means; or every mistake in it, with exit code 1.

    \b
    Examples
      castgate check
      castgate check --config staging/config.yaml && kill -HUP "$(pidof -s castgate)"
    """
    try:
        loaded = load(config, os.environ)
    except ConfigError as error:
        _fail(str(error))
    for line in _summary(loaded):
        click.echo(line)
    for warning in loaded.warnings:
        click.echo(f"warning: {warning}", err=True)


@main.command("schema", short_help="The JSON Schema of policy files, for editors.")
@click.option("--output", type=click.Path(path_type=Path), help="The file to write; without it, standard output.")
def schema_command(output: Path | None) -> None:
    """Write the JSON Schema of policy files. An editor that knows it completes keys and marks mistakes; a file names it
    in its first line: # yaml-language-server: $schema=schema.json

    \b
    Examples
      castgate schema
      castgate schema --output policies/schema.json
    """
    if output is None:
        click.echo(policies_schema_text(), nl=False)
        return
    try:
        output.write_text(policies_schema_text())
    except OSError as error:
        _fail(f"castgate: {output}: {error.strerror}")


@main.command("migrate", short_help="Bring Castgate's tables up to date.")
@_config_option
@click.option(
    "--database-url",
    envvar="DATABASE_URL",
    show_envvar=True,
    help="The database; without it, database.url of the configuration.",
)
@click.option("--dry-run", is_flag=True, help="Do everything, and then take it back: shows what would be done.")
@click.option("--to", type=click.IntRange(0), metavar="N", help="Stop after migration N; going back, keep N.")
@click.option("--rollback", is_flag=True, help="Undo the newest migration; with --to N, all after N.")
@click.option(
    "--migrations",
    "folder",
    type=click.Path(path_type=Path),
    help="The folder of the files, if not migrations/ beside the program.",
)
def migrate_command(
    config: Path, database_url: str | None, *, dry_run: bool, to: int | None, rollback: bool, folder: Path | None
) -> None:
    """Bring Castgate's tables up to date: the files of migrations/, in order, once each, under a lock.

    Files that were run with psql are recognised by their tables. The column casts.cost_cents is added where Phase 1's
    table has appeared since.

    \b
    Examples
      castgate migrate
      castgate migrate --dry-run
      castgate migrate --rollback --to 4
    """
    run: Callable[..., Coroutine[Any, Any, None]] = migrate.roll_back if rollback else migrate.migrate
    try:
        url = database_url or load(config, os.environ).settings.database.url
        migrations = migrate.read_migrations(folder or migrate.default_folder())
        asyncio.run(run(url, migrations, to=to, dry_run=dry_run, report=click.echo))
    except ConfigError as error:
        _fail(str(error))
    except migrate.MigrateError as error:
        _fail(f"castgate: {error}")
    if dry_run:
        click.echo("dry run: nothing was changed")


@main.group("billing", short_help="What Castgate knows from Stripe.")
def billing_group() -> None:
    """What Castgate knows of subscriptions, from Stripe."""


@billing_group.command("sync", short_help="Read subscriptions and missed events again.")
@_config_option
def sync_command(config: Path) -> None:
    """Read from Stripe what webhooks may have missed: events of the last days, and every subscription; repair what is
    stored. Safe at any time, beside a gateway that serves, and more than once.

    \b
    Examples
      castgate billing sync
    """
    try:
        loaded = load(config, os.environ)
    except ConfigError as error:
        _fail(str(error))
    log.configure(loaded.settings.log.level, loaded.settings.log.format)
    if not loaded.billing_enabled:
        _fail("\n".join(f"castgate: {warning}" for warning in loaded.warnings) or "castgate: billing is off")
    try:
        report = asyncio.run(sync_from_command(loaded))
    except AlreadySyncingError:
        _fail("castgate: a sync is at work, or has just been done; try again in a minute")
    except FAULTS as error:
        _fail(f"castgate: {type(error).__name__.removesuffix('Error')}: {error}")
    click.echo(
        f"{report.events_missed} missed events handled (of {report.events_seen}), "
        f"{report.subscriptions_repaired} subscriptions repaired (of {report.subscriptions_seen}), "
        f"{report.skipped} skipped"
    )


def _fail(message: str) -> NoReturn:
    click.echo(message, err=True)
    raise SystemExit(EXIT_FAILED)


def _summary(loaded: Loaded) -> Iterable[str]:
    """What the configuration means, as tables."""
    rules = loaded.rules
    yield f"configuration {rules.version}"
    yield ""
    yield from _table(
        ("METHODS", "PATH", "POLICY", "MODE", "COST", "RATE LIMITS"),
        [_policy_row(policy) for policy in rules.policies],
    )
    yield "everything else is relayed untouched"
    yield ""
    yield from _table(
        ("PLAN", "BUDGETS", "RATE LIMITS", "STRIPE PRICE"),
        [_plan_row(plan, is_default=plan.name == rules.default_plan) for plan in rules.plans.values()],
    )
    yield ""
    yield f"billing is {'on' if loaded.billing_enabled else 'off'}"


def _policy_row(policy: Policy) -> tuple[str, ...]:
    cost = cost_text(policy.cost)
    return (
        ",".join(sorted(policy.methods)) or "any",
        policy.path,
        policy.name,
        policy.mode if policy.mode == ENFORCE else policy.mode.upper(),
        f"{cost}, {_when_text(policy.cost.charge_when)}" if cost else "free",
        "; ".join(limit_text(limit) for limit in policy.rate_limits) or "none",
    )


def _when_text(charge_when: str | frozenset[int]) -> str:
    return charge_when if isinstance(charge_when, str) else f"for {' '.join(map(str, sorted(charge_when)))}"


def _plan_row(plan: Plan, *, is_default: bool) -> tuple[str, ...]:
    return (
        f"{plan.name} (default)" if is_default else plan.name,
        "; ".join(_budget_text(budget) for budget in plan.budgets) or "none",
        "; ".join(f"{name}: {limit}" for name, limit in plan.rate_limits.items()) or "as the policy says",
        plan.stripe_price or "none",
    )


def _budget_text(budget: BudgetLimit) -> str:
    zone = "" if budget.time_zone == "UTC" else f" {budget.time_zone}"
    return f"{budget.period} {cents_text(budget.hard_limit_microcents)} cents{zone}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterable[str]:
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    for row in (head, *rows):
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
