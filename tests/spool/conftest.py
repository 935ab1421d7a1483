"""Spools in a folder of their own, in the event loop of the test."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from gateway.config.settings_stores import Spool as SpoolSettings
from gateway.metrics import Metrics
from gateway.spool import Spool
from gateway.tasks import Tasks
from tests.ledger.conftest import counters_equal_ledger, database, make_ledger, metrics, migrated_url, sql, tasks

__all__ = ["counters_equal_ledger", "database", "make_ledger", "metrics", "migrated_url", "sql", "tasks"]

MakeSpool = Callable[..., Spool]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "spool"


@pytest.fixture
async def make_spool(folder: Path, tasks: Tasks, metrics: Metrics) -> AsyncIterator[MakeSpool]:
    made: list[Spool] = []

    def make(worker_id: str = "w1", *, folder: Path = folder, **settings: object) -> Spool:
        read = SpoolSettings.model_validate({"fsync_interval": "1ms", **settings})
        spool = Spool(folder, read, worker_id=worker_id, tasks=tasks, metrics=metrics)
        made.append(spool)
        return spool

    yield make
    for spool in made:
        await spool.close()
