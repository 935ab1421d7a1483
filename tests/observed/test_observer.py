"""What is watched, by configuration; and what becomes of it where nobody takes it."""

import asyncio
import json
import logging
from collections import Counter
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import structlog

from gateway import log, observer, otlp
from gateway.config.settings import Settings
from gateway.embedded import free_port
from gateway.metrics import Metrics
from gateway.metrics_scrape import render
from gateway.observer import Observer
from gateway.otlp import WAITING_MAX, Spans
from gateway.policy.rules import LogLines, Policy, Rules
from gateway.relay.exchange import Exchange
from gateway.relay.observed import Observation, ObservedExchange
from gateway.relay.request import Request
from gateway.relay.traceparent import begin


def settings(**sections: dict[str, Any]) -> Settings:
    urls = {"upstream": {"url": "http://h"}, "redis": {"url": "redis://h"}, "database": {"url": "postgresql://h/d"}}
    return Settings.model_validate({**urls, **sections})


def seen(**changes: Any) -> Observation:
    facts: dict[str, Any] = {
        "draw": 0.0,
        "trace": begin(None),
        "began_ns": 1_700_000_000_000_000_000,
        "began_s": 5.0,
        "method": "POST",
        "path": "/v1/cast",
        "client": "127.0.0.1",
        "stages": {"identify": (5.0, 5.001), "connect": (5.001, 5.002), "first_byte": (5.002, 5.012)},
        "status": 200,
        "duration_s": 0.0125,
    }
    return Observation(**{**facts, **changes})


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> Iterator[StringIO]:
    """What the observer logs."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    made = StringIO()
    log.configure("info", "json", made)
    monkeypatch.setattr(observer, "_log", structlog.get_logger())  # a logger keeps the configuration it began with
    yield made
    structlog.reset_defaults()
    root.handlers, root.level = handlers, level


def observing(one: Observer, **samples: float | None) -> Observer:
    """By policies that ask for these samples of lines."""
    policies = (
        Policy(name=name, methods=frozenset(), path="/", log=LogLines(sample=sample))
        for name, sample in samples.items()
    )
    one.use(Rules(version="v", policies=tuple(policies), plans={}, default_plan="free"))
    return one


def test_where_nothing_is_watched_a_request_is_a_plain_exchange() -> None:
    metrics = Metrics()
    nothing = settings(metrics={"stage_sample": 0})
    assert observing(Observer(nothing, metrics, None)).exchange is Exchange
    assert observing(Observer(nothing, metrics, None), cast=0.0).exchange is Exchange
    assert observing(Observer(nothing, metrics, None), cast=0.1).exchange is not Exchange
    assert observing(Observer(settings(), metrics, None)).exchange is not Exchange  # stages, of one in a hundred
    assert Spans.of(settings().traces, metrics) is None
    metrics.close()


@pytest.mark.parametrize("sections", [{}, {"log": {"request_sample": "0.000000001"}}])  # by gaps, and by draws
@pytest.mark.parametrize("share", [0.02, 0.25, 1.0])
def test_the_share_that_is_watched_is_the_one_asked_for(sections: dict[str, Any], share: float) -> None:
    metrics = Metrics()
    one = observing(Observer(settings(metrics={"stage_sample": share}, **sections), metrics, None))
    relay: Any = SimpleNamespace(now=lambda: 0.0, limits=SimpleNamespace(body_bytes_max=0))
    client: Any = SimpleNamespace(address=b"127.0.0.1")
    count = 20_000
    watched = sum(isinstance(one.exchange(relay, client, Request()), ObservedExchange) for _ in range(count))
    deviation = (count * share * (1 - share)) ** 0.5
    assert abs(watched - count * share) <= 6 * deviation
    metrics.close()


def test_each_policy_has_the_share_of_lines_that_it_asks_for(stream: StringIO) -> None:
    metrics = Metrics()
    one = observing(Observer(settings(log={"request_sample": 0.1}), metrics, None), often=0.5, never=0.0, default=None)
    relay: Any = SimpleNamespace(now=lambda: 0.0, limits=SimpleNamespace(body_bytes_max=0))
    client: Any = SimpleNamespace(address=b"127.0.0.1")
    count = 20_000
    watched = 0
    for _ in range(count):
        exchange = one.exchange(relay, client, Request())
        if isinstance(exchange, ObservedExchange):
            watched += 1
            draw = exchange._observation.draw
            for policy in ("often", "never", "default", None):
                one.saw(seen(draw=draw, policy=policy, trace=None))
            one.close()
    lines = Counter(json.loads(line).get("policy") for line in stream.getvalue().splitlines())
    for policy, share in (("often", 0.5), ("default", 0.1), (None, 0.1)):
        assert abs(lines[policy] - count * share) <= 6 * (count * share * (1 - share)) ** 0.5, policy
    assert lines["never"] == 0
    assert watched == lines["often"]  # no more than the largest of them asks for
    metrics.close()


def test_what_is_always_logged_is_bounded_and_what_is_too_much_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stream: StringIO
) -> None:
    metrics = Metrics(tmp_path, "worker-0")
    one = observing(Observer(settings(), metrics, None))
    now = 5.0
    monkeypatch.setattr(observer, "monotonic", lambda: now)
    for _ in range(observer.NOTEWORTHY_PER_S_MAX + 2):
        one.saw(seen(draw=1.0, noteworthy=True))
    now = 6.0
    one.saw(seen(draw=1.0, noteworthy=True))
    one.saw(seen(draw=1.0))
    one.close()
    assert stream.getvalue().count("\n") == observer.NOTEWORTHY_PER_S_MAX + 1
    assert "castgate_request_lines_dropped_total 2.0" in render(tmp_path).decode()
    metrics.close()


def test_what_never_comes_to_the_ledger_is_not_waited_for() -> None:
    metrics = Metrics()
    one = observing(Observer(settings(metrics={"stage_sample": 1}), metrics, None))
    heard = []
    listen = one.committed(lambda events, usages: heard.append((events, usages)))
    ids = [f"{number:032x}" for number in range(observer.SETTLING_MAX + 2)]
    for event_id in ids:
        one.charged(event_id)
    events: list[Any] = [SimpleNamespace(event_id=event_id) for event_id in (ids[0], ids[-1], "f" * 32)]
    listen(events, [])
    assert heard == [(events, [])]
    assert metrics.histogram("castgate_stage_duration_seconds", stage="settle").count == 1  # the first was forgotten
    assert observing(Observer(settings(metrics={"stage_sample": 0}), metrics, None)).committed(print) is print
    metrics.close()


def test_a_line_is_written_later_and_has_its_facts_in_their_units(stream: StringIO) -> None:
    metrics = Metrics()
    one = observing(Observer(settings(log={"request_sample": 1}), metrics, None))
    one.saw(seen(path="/v1/keys/ck_0123456789abcdef", charged_microcents=250_000, account="a-1"))
    assert stream.getvalue() == ""
    one.close()
    line = json.loads(stream.getvalue())
    assert line["path"] == "/v1/keys/ck_[redacted]"
    assert (line["cost_cents"], line["duration_ms"], line["first_byte_ms"]) == ("0.25", 12.5, 10.0)
    assert line["at"] == "2023-11-14T22:13:20.000+00:00"
    metrics.close()


async def test_lines_are_written_between_requests(monkeypatch: pytest.MonkeyPatch, stream: StringIO) -> None:
    monkeypatch.setattr(observer, "WRITE_INTERVAL_S", 0.001)
    metrics = Metrics()
    one = observing(Observer(settings(log={"request_sample": 1}), metrics, None))
    task = asyncio.get_running_loop().create_task(one.write_forever())
    for _ in range(observer.LINES_AT_ONCE * 2 + 1):
        one.saw(seen())
    async with asyncio.timeout(10):
        while stream.getvalue().count("\n") < observer.LINES_AT_ONCE * 2 + 1:
            await asyncio.sleep(0.001)
    task.cancel()
    metrics.close()


def test_a_log_that_cannot_keep_up_loses_lines_and_says_how_many(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path, "worker-0")
    one = observing(Observer(settings(log={"request_sample": 1}), metrics, None))
    for _ in range(observer.WAITING_MAX + 3):
        one.saw(seen())
    assert "castgate_request_lines_dropped_total 3.0" in render(tmp_path).decode()
    metrics.close()


async def test_a_collector_that_is_away_costs_spans_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(otlp, "CLOSE_TIMEOUT_S", 60.0)  # a busy machine is no reason to give up here
    metrics = Metrics(tmp_path, "worker-0")
    traces = settings(traces={"endpoint": f"http://127.0.0.1:{free_port()}"}).traces
    spans = Spans(traces, metrics)
    for _ in range(WAITING_MAX + 2):
        spans.add(seen())
    await spans.close()
    text = render(tmp_path).decode()
    assert 'castgate_traces_total{result="dropped"} 2.0' in text
    assert f'castgate_traces_total{{result="failed"}} {WAITING_MAX}.0' in text
    metrics.close()


async def test_spans_for_which_there_is_no_time_left_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(otlp, "CLOSE_TIMEOUT_S", 0.0)
    metrics = Metrics(tmp_path, "worker-0")
    spans = Spans(settings(traces={"endpoint": f"http://127.0.0.1:{free_port()}"}).traces, metrics)
    for _ in range(otlp.BATCH_MAX + 5):
        spans.add(seen())
    await spans.close()
    assert f'castgate_traces_total{{result="dropped"}} {otlp.BATCH_MAX + 5}.0' in render(tmp_path).decode()
    metrics.close()


@pytest.mark.parametrize(("share", "told"), [("2", "2"), ("-0.1", "-0.1"), ("half", '"half"')])
def test_a_share_is_from_0_to_1(share: str, told: str) -> None:
    with pytest.raises(ValueError, match=f"expected a share from 0 to 1, found {told}"):
        settings(log={"request_sample": share})
