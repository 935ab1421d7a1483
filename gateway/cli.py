"""The ``castgate`` command: serve, check, explain, schema, migrate, billing sync; cli_ledger adds maintain, spool and
reconcile, cli_outbox outbox.

Exit codes: 0 done or stopped as asked; 1 it could not be done, the reason is on standard error; 2 the command line is
wrong; 130 stopped at once by a second signal. Nothing that an operator can get wrong ends in a traceback.
"""

import asyncio
import os
import signal
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import click
import structlog

from gateway import log, migrate
from gateway.against import NoAnswerError, differences
from gateway.billing_sync import FAULTS as SYNC_FAULTS
from gateway.billing_sync import AlreadySyncingError
from gateway.billing_sync_command import sync_from_command
from gateway.build import build_version
from gateway.cli_config import config_option, fail
from gateway.cli_ledger import maintain_command, reconcile_accounts, spool_group
from gateway.cli_outbox import outbox_group
from gateway.config import ConfigError, load
from gateway.config.schema import policies_schema_text
from gateway.explain import FAULTS, Question, explain
from gateway.hosted.answers import json_text
from gateway.listening import ListenError
from gateway.summary import summary
from gateway.supervisor import NotStartedError, Overrides, Supervisor

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


@click.group(epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(build_version(), prog_name="castgate")
def main() -> None:
    """A policy gateway: budgets, rate limits and billing in front of an API that stays as it is.

    \b
    Examples
      castgate check                     is the configuration right?
      castgate explain --path /v1/cast   what would become of a call?
      castgate migrate                   make Castgate's tables, once
      castgate billing sync              read from Stripe what webhooks have missed
      castgate spool ls                  what waits on the disk for Postgres
      castgate reconcile                 do ledger, counters, Redis and casts agree?
      castgate maintain                  make the months of the ledger, drop old ones
      castgate outbox ls                 what the webhook has not taken yet
      castgate serve --workers 4         serve until Ctrl-C
    """


@main.command(short_help="Serve until SIGTERM or Ctrl-C.")
@config_option
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
        fail(str(error))
    except (ListenError, NotStartedError) as error:
        fail(f"castgate: {error}")
    except OSError as error:
        fail(f"castgate: {error.filename or 'cannot serve'}: {error.strerror or error}")
    raise SystemExit(code)


@main.command(short_help="Is the configuration right, and what does it mean?")
@config_option
@click.option("--against", metavar="URL", help="A running gateway's admin address: show only what would change in it.")
def check(config: Path, against: str | None) -> None:
    """Read the configuration as serve would, and show what it means; or every mistake in it, with exit code 1.

    \b
    Examples
      castgate check
      castgate check --against http://127.0.0.1:9090
      castgate check --config staging/config.yaml && kill -HUP "$(pidof -s castgate)"
    """
    try:
        loaded = load(config, os.environ)
    except ConfigError as error:
        fail(str(error))
    try:
        token = loaded.settings.admin.token
        secret = None if token is None else token.get_secret_value()
        lines = summary(loaded) if against is None else differences(loaded.rules, against, secret)
    except NoAnswerError as error:
        fail(f"castgate: {error}")
    for line in lines:
        click.echo(line)
    for warning in loaded.warnings:
        click.echo(f"warning: {warning}", err=True)


@main.command("explain", short_help="What would become of a call, and why?")
@config_option
@click.option("--key", help="The caller's API key.")
@click.option("--session", help="The caller's session, in place of a key.")
@click.option("--account", "account_id", help="The caller's account id, in place of a credential.")
@click.option("--method", default="POST", show_default=True, help="The call's method.")
@click.option("--path", required=True, help="The call's path, as it would be sent.")
@click.option("--header", "headers", multiple=True, metavar="'NAME: VALUE'", help="A header of the call; repeatable.")
@click.option("--ip", "address", default="127.0.0.1", show_default=True, help="The caller's address.")
@click.option("--json", "as_json", is_flag=True, help="As the admin listener's POST /explain answers.")
def explain_command(
    config: Path,
    key: str | None,
    session: str | None,
    account_id: str | None,
    method: str,
    path: str,
    headers: Sequence[str],
    address: str,
    *,
    as_json: bool,
) -> None:
    """Show which policy, account and plan a call falls under, how far each of its budgets and limits is used, and what
    the verdict would be. Nothing is consumed, and nothing is sent to the service behind.

    The rules are those of the files; what a running gateway would say is its admin listener's POST /explain.

    \b
    Examples
      castgate explain --key ck_live_… --path /v1/cast
      castgate explain --account 42 --method GET --path /v1/casts --header 'X-Tenant: 7'
    """
    if sum(given is not None for given in (key, session, account_id)) > 1:
        raise click.UsageError("give one of --key, --session and --account")
    pairs = [header.partition(":") for header in headers]
    if not all(name.strip() and colon for name, colon, _ in pairs):
        raise click.BadParameter("expected 'NAME: VALUE'", param_hint="--header")
    names = [("--header", name) for name, _, _ in pairs]
    for option, given in (("--method", method), ("--account", account_id or ""), ("--ip", address), *names):
        if not given.isprintable():  # half of a character, too
            raise click.BadParameter("expected printable characters", param_hint=option)
    question = Question(
        method=method,
        target=path,
        headers=[(name.strip(), value.strip()) for name, _, value in pairs],
        key=key,
        session=session,
        account_id=account_id,
        address=address,
    )
    log.configure("error", "console")
    try:
        answer = asyncio.run(explain(load(config, os.environ), question))
    except ConfigError as error:
        fail(str(error))
    except FAULTS as error:
        fail(f"castgate: {error}")
    if as_json:
        click.echo(json_text(answer.data()))
        return
    for line in answer.lines():
        click.echo(line)


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
        fail(f"castgate: {output}: {error.strerror}")


@main.command("migrate", short_help="Bring Castgate's tables up to date.")
@config_option
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
        fail(str(error))
    except migrate.MigrateError as error:
        fail(f"castgate: {error}")
    if dry_run:
        click.echo("dry run: nothing was changed")


@main.group("billing", short_help="What Castgate knows from Stripe.")
def billing_group() -> None:
    """What Castgate knows of subscriptions, from Stripe."""


@billing_group.command("sync", short_help="Read subscriptions and missed events again.")
@config_option
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
        fail(str(error))
    log.configure(loaded.settings.log.level, loaded.settings.log.format)
    if not loaded.billing_enabled:
        fail("\n".join(f"castgate: {warning}" for warning in loaded.warnings) or "castgate: billing is off")
    try:
        report = asyncio.run(sync_from_command(loaded))
    except AlreadySyncingError:
        fail("castgate: a sync is at work, or has just been done; try again in a minute")
    except SYNC_FAULTS as error:
        fail(f"castgate: {type(error).__name__.removesuffix('Error')}: {error}")
    click.echo(
        f"{report.events_missed} missed events handled (of {report.events_seen}), "
        f"{report.subscriptions_repaired} subscriptions repaired (of {report.subscriptions_seen}), "
        f"{report.skipped} skipped"
    )


main.add_command(reconcile_accounts)
main.add_command(maintain_command)
main.add_command(spool_group)
main.add_command(outbox_group)
