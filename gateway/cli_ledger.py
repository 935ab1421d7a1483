"""``castgate reconcile``, ``maintain`` and ``spool``: what the ledger says, its months, and what waits for it."""

import asyncio
from pathlib import Path

import asyncpg
import click

from gateway import log, maintain, reconcile_command, spool_command
from gateway.cli_config import EXIT_FAILED, config_option, fail, loaded_from
from gateway.config import Loaded
from gateway.database import StoreError
from gateway.policy.money import cents_text
from gateway.redis_store import RedisLostError


@click.command("reconcile", short_help="Do ledger, counters, Redis and casts agree?")
@config_option
@click.argument("accounts", nargs=-1)
@click.option("--all", "all_lines", is_flag=True, help="Show accounts without drift too.")
@click.option("--json", "as_json", is_flag=True, help="As JSON, amounts in microcents.")
@click.option("--repair", is_flag=True, help="Mend what differs.")
@click.option(
    "--casts-days",
    type=click.FloatRange(0, 3660),
    default=1.0,
    show_default=True,
    help="How far back casts are compared with the ledger; 0: not at all.",
)
def reconcile_accounts(
    config: Path, accounts: tuple[str, ...], *, all_lines: bool, as_json: bool, repair: bool, casts_days: float
) -> None:
    """Compare what accounts used by the ledger, its counters, Redis and the casts, and show where they differ: the
    ACCOUNTS named, or all there are. Safe at any time: what is merely on its way from one to the other is no drift.

    With --repair counters are made from the ledger, Redis from the counters, and the costs of casts from the ledger.
    Exit code 1 where there is drift, or is some left after a repair.

    \b
    Examples
      castgate reconcile
      castgate reconcile --repair
      castgate reconcile --all --json 9a032761-41c9-4b0b-9b9a-0d4a3c3f6b3e
    """
    loaded = loaded_from(config)
    asked = reconcile_command.Asked(
        accounts=accounts, all_lines=all_lines, repair=repair, casts_since_s=casts_days * 86400
    )
    try:
        report = asyncio.run(reconcile_command.reconcile(loaded, asked))
    except (StoreError, asyncpg.PostgresError, RedisLostError) as error:
        fail(f"castgate: {error}")
    if as_json:
        click.echo(reconcile_command.as_json(report))
    else:
        for line in reconcile_command.as_table(report):
            click.echo(line)
    if report.redis_error:
        click.echo(f"warning: Redis was not compared: {report.redis_error}", err=True)
    if report.casts_error:
        click.echo(f"warning: casts were not compared: {report.casts_error}", err=True)
    if report.left:
        raise SystemExit(EXIT_FAILED)


def _whole_months(_context: click.Context, _parameter: click.Parameter, months: int | None) -> int | None:
    if months == 1:
        raise click.BadParameter("1 is not in the range: 0, which keeps all, or 2 and more.")
    return months


@click.command("maintain", short_help="Make the months of the ledger, drop old ones.")
@config_option
@click.option(
    "--retention",
    type=click.IntRange(0, 1200),
    callback=_whole_months,
    metavar="MONTHS",
    help="Full months before this one to keep, 2 or more; 0: all. In place of ledger.retention_months.",
)
@click.option("--ahead", type=click.IntRange(1, 24), metavar="MONTHS", help="In place of ledger.partitions_ahead.")
@click.option("--detach", is_flag=True, help="Leave what is dropped as tables, to be dumped and dropped by you.")
@click.option("--dry-run", is_flag=True, help="Show what would be done.")
def maintain_command(config: Path, *, retention: int | None, ahead: int | None, detach: bool, dry_run: bool) -> None:
    """Make the partitions of usage_events for the months to come, and drop those that are older than the retention: by
    default nothing is dropped. What they came to stays in every sum. Safe at any time, by cron too, and more than once;
    two runs wait for each other. Needs to be the owner of the tables.

    \b
    Examples
      castgate maintain --dry-run
      castgate maintain
      castgate maintain --retention 13
    """
    settings = loaded_from(config).settings
    asked = maintain.Asked(
        ahead=settings.ledger.partitions_ahead if ahead is None else ahead,
        retention_months=settings.ledger.retention_months if retention is None else retention,
        keep_tables=detach,
        dry_run=dry_run,
    )
    try:
        report = asyncio.run(maintain.maintain(settings, asked))
    except (StoreError, asyncpg.PostgresError) as error:
        fail(f"castgate: {error}")
    for line in maintain.as_table(report):
        click.echo(line)
    if report.late_calls:
        click.echo(
            f"warning: {report.late_calls} calls of {cents_text(report.late_microcents)} cents came after their month "
            "was dropped and are not counted: see the table usage_events_late",
            err=True,
        )


@click.group("spool", short_help="Charged calls that wait on the disk for Postgres.")
def spool_group() -> None:
    """Charged calls that wait on this machine's disk for Postgres. A gateway takes them up and replays them by itself;
    these commands are for looking, and for machines on which no gateway will start again.
    """


@spool_group.command("ls", short_help="Show the files.")
@config_option
def spool_ls_command(config: Path) -> None:
    """Show the files of the spool, oldest first; "in use" is one that a living worker has.

    \b
    Examples
      castgate spool ls
    """
    _, folder = _spool_of(config)
    try:
        lines = spool_command.listing(folder)
    except OSError as error:
        fail(f"castgate: {error.filename}: {error.strerror}")
    for line in lines:
        click.echo(line)


@spool_group.command("replay", short_help="Write what no living worker has to Postgres.")
@config_option
def spool_replay_command(config: Path) -> None:
    """Write the files whose workers are gone to Postgres, and remove their holds from Redis. Safe at any time, beside a
    gateway that serves, and more than once: a call that is in the ledger already is not counted again.

    \b
    Examples
      castgate spool replay
    """
    loaded, folder = _spool_of(config)
    log.configure(loaded.settings.log.level, loaded.settings.log.format)
    try:
        done = asyncio.run(spool_command.replay(folder, loaded, report=click.echo))
    except (StoreError, asyncpg.PostgresError) as error:
        fail(f"castgate: {error}")
    except OSError as error:
        fail(f"castgate: {error.filename or folder}: {error.strerror or error}")
    left = f"; {done.left_files} files left, which workers have" if done.left_files else ""
    click.echo(f"{done.events} events of {done.files} files replayed{left}")
    if done.redis_error:
        click.echo(f"warning: holds are left for a sweeper to remove: {done.redis_error}", err=True)


def _spool_of(config: Path) -> tuple[Loaded, Path]:
    loaded = loaded_from(config)
    folder = spool_command.folder_of(config, loaded.settings)
    if folder is None:
        fail("castgate: there is no spool: ledger.spool.folder is blank")
    return loaded, folder
