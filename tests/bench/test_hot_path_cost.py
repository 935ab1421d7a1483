"""The hot path gets no dearer unseen: instructions, C calls, bytes to Redis and statements are held to a record."""

import copy
import json
import os
import subprocess
import sys

import pytest

from bench.hot_path_cost import KINDS, VERSION, recorded_figures, too_far
from bench.targets import REPOSITORY

RECORD_AGAIN = "if that is meant: ./dev python -m bench.hot_path_cost --record"


@pytest.mark.timeout(180)  # a worker under a tracer, on a machine that may be busy
def test_a_call_costs_what_was_recorded(database_url: str, redis_url: str) -> None:
    recorded = recorded_figures()
    if VERSION not in recorded:
        pytest.skip(f"nothing is recorded for Python {VERSION}, only for {', '.join(recorded)}; {RECORD_AGAIN}")
    words = ["--database-url", database_url, "--redis-url", redis_url, "--json"]
    ended = subprocess.run(
        [sys.executable, "-m", "bench.hot_path_cost", *words],
        cwd=REPOSITORY,
        env={**os.environ, "LOG_LEVEL": "error"},
        capture_output=True,
        text=True,
        check=False,
        timeout=170,
    )
    assert ended.returncode == 0, ended.stderr
    assert too_far(recorded[VERSION], json.loads(ended.stdout)) == [], RECORD_AGAIN


def test_a_tenth_more_or_less_is_too_far_and_less_is_not() -> None:
    recorded = next(iter(recorded_figures().values()))
    assert set(recorded) == set(KINDS)
    assert too_far(recorded, recorded) == []
    for factor, lines in ((1.09, 0), (1.11, 1), (0.89, 1)):
        changed = copy.deepcopy(recorded)
        changed["everything on"]["instructions"]["relay"] *= factor
        assert len(too_far(recorded, changed)) == lines, factor


def test_a_part_that_hardly_counts_may_change_by_more() -> None:
    recorded = {"kind": {"instructions": {"all": 1000.0, "relay": 990.0, "other": 10.0}}}
    assert too_far(recorded, {"kind": {"instructions": {"all": 1005.0, "relay": 990.0, "other": 15.0}}}) == []
    assert len(too_far(recorded, {"kind": {"instructions": {"all": 1040.0, "relay": 990.0, "other": 50.0}}})) == 1
