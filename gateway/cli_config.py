"""What the commands share: the option that names the configuration, and how they fail."""

import os
from pathlib import Path
from typing import NoReturn

import click

from gateway.config import ConfigError, Loaded, load

EXIT_FAILED = 1

config_option = click.option(
    "--config",
    type=click.Path(path_type=Path),
    default=Path("config.yaml"),
    envvar="CASTGATE_CONFIG",
    show_default=True,
    show_envvar=True,
    help="The configuration; its policies are found from there.",
)


def loaded_from(config: Path) -> Loaded:
    """The configuration; where it is wrong, every mistake in it, and the end."""
    try:
        return load(config, os.environ)
    except ConfigError as error:
        fail(str(error))


def fail(message: str) -> NoReturn:
    """Say why it could not be done, and end."""
    click.echo(message, err=True)
    raise SystemExit(EXIT_FAILED)
