"""What a worker is told at its start, and the configuration that this leads to."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gateway import accepted
from gateway.policy.routes import RouteTable

if TYPE_CHECKING:
    from gateway.config import Loaded


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """What the supervisor tells a worker, as JSON in the environment variable CASTGATE_WORKER."""

    index: int
    listen_fd: int
    control_fd: int
    config: str
    runtime_dir: str
    gateway_id: str
    start: int


def configuration(parameters: Parameters) -> Loaded:
    """What the supervisor accepted; the files, where that was another version of this program. Raises ConfigError."""
    kept = accepted.read(Path(parameters.runtime_dir))
    if kept is not None:
        return kept
    from gateway.config import load  # noqa: PLC0415  with all that reads a configuration, which is 13 MiB

    return load(Path(parameters.config), os.environ)


def offered(parameters: Parameters) -> tuple[Loaded, RouteTable]:
    """What is offered, or in force where nothing is (any more), and its routes. Raises ConfigError."""
    loaded = accepted.read_offered(Path(parameters.runtime_dir)) or configuration(parameters)
    return loaded, RouteTable(loaded.rules.policies)
