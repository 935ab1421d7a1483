"""``castgate outbox``: what the operator's webhook has still to be told."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TypeVar

import asyncpg
import click

from gateway import log
from gateway.cli_config import config_option, fail, loaded_from
from gateway.database import QUERIES, Database, StoreError
from gateway.metrics import Metrics
from gateway.tables import table

Result = TypeVar("Result")
LINES_MAX = 500


@click.group("outbox", short_help="Messages that wait for the operator's webhook.")
def outbox_group() -> None:
    """Messages that wait for the webhook of soft_limits. Gateways deliver them by themselves; these commands are for
    looking, and for messages that were given up.
    """


@outbox_group.command("ls", short_help="Show the messages.")
@config_option
@click.option("--all", "delivered_too", is_flag=True, help="Delivered ones too.")
def outbox_ls_command(config: Path, *, delivered_too: bool) -> None:
    """Show the messages that are not delivered, newest first: those that wait, and those that were given up (dead).

    \b
    Examples
      castgate outbox ls
      castgate outbox ls --all
    """

    async def listed(database: Database) -> list[asyncpg.Record]:
        return await database.fetch(QUERIES["outbox_list"], delivered_too, LINES_MAX)

    rows = _asked(config, listed)
    if not rows:
        click.echo("the outbox is empty")
        return
    head = ("MESSAGE", "STATE", "AGE", "ATTEMPTS", "NEXT IN", "ACCOUNT", "PERIOD", "THRESHOLD", "LAST ERROR")
    for line in table(head, [_row(row) for row in rows]):
        click.echo(line)


@outbox_group.command("retry", short_help="Deliver messages again that were given up.")
@config_option
@click.argument("messages", nargs=-1)
def outbox_retry_command(config: Path, messages: Sequence[str]) -> None:
    """Deliver the MESSAGES again, or all that are dead: a gateway begins within seconds, as if they were new. One that
    was delivered already is delivered again, with the same webhook-id.

    \b
    Examples
      castgate outbox retry
      castgate outbox retry msg_0d4a3c3f6b3e9a03276141c94b0b9b9a
    """

    async def retried(database: Database) -> list[asyncpg.Record]:
        return await database.fetch(QUERIES["outbox_retry"], list(messages) or None)

    found = {row["id"] for row in _asked(config, retried)}
    click.echo(f"{len(found)} messages are due")
    missing = [message for message in messages if message not in found]
    if missing:
        fail(f"castgate: no message is called {', '.join(missing)}")


def _row(row: asyncpg.Record) -> tuple[str, ...]:
    next_in = _duration(max(row["due_s"], 0)) if row["state"] == "waiting" else "-"
    return (
        row["id"],
        row["state"],
        _duration(row["age_s"]),
        str(row["attempts"]),
        next_in,
        row["account_id"],
        row["period"],
        row["threshold"],
        row["last_error"] or "-",
    )


def _duration(seconds: float) -> str:
    for unit, length_s in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * length_s:
            return f"{seconds / length_s:.0f}{unit}"
    return f"{seconds:.0f}s"


def _asked(config: Path, ask: Callable[[Database], Awaitable[Result]]) -> Result:
    loaded = loaded_from(config)
    log.configure("error", "console")

    async def run() -> Result:
        metrics = Metrics()  # nobody reads these
        database = Database.from_settings(loaded.settings.database, metrics)
        try:
            return await ask(database)
        finally:
            await database.close()
            metrics.close()

    try:
        return asyncio.run(run())
    except (StoreError, asyncpg.PostgresError) as error:
        fail(f"castgate: {error}")
