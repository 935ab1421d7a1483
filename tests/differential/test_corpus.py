"""The corpus against Castgate alone: what it makes of each request, and that its upstream reads the same messages.

``./dev differential`` is the full run, with nginx, HAProxy and Envoy beside it; docs/http.md holds its table.
"""

import asyncio
import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.differential.__main__ import BEGIN, DOCUMENT
from tests.differential.corpus import Case, read_corpus, read_rules
from tests.differential.observing import Outcome, observe, observe_together
from tests.differential.proxies import INSTALL, PROXIES, Proxy, castgate
from tests.differential.recording import Recorder, recording

CASES_MIN = 400
SAMPLED = 8  # one of so many
_OWN_ID = re.compile(rb"[0-9a-f]{32}")


async def test_castgate_and_its_upstream_agree_on_every_message(tmp_path: Path) -> None:
    cases = read_corpus()
    async with recording() as recorder:
        starting = castgate(tmp_path, recorder.port)
        gateway = await asyncio.to_thread(starting.__enter__)
        try:
            outcomes = await _outcomes(cases, int(gateway.base_url.rpartition(":")[2]), recorder)
            refused = gateway.metric("castgate_requests_total", kind="refused")
            forwarded = gateway.metric("castgate_requests_total", kind="plain")
        finally:
            await asyncio.to_thread(starting.__exit__, None, None, None)
    assert recorder.broken == []
    # The gateway gives each request that it forwards an id. What has none was never one to the gateway.
    ids = [seen.values(b"x-request-id") for seen in recorder.seen]
    assert all(len(each) == 1 and _OWN_ID.fullmatch(each[0]) for each in ids)
    assert len({each[0] for each in ids}) == len(ids)
    answered = sum(outcome.statuses.count(200) + (outcome.ended == "") for outcome in outcomes.values())
    assert len(recorder.seen) == answered, "the client got other answers than the upstream gave"
    assert len(recorder.seen) <= forwarded
    assert refused > 0
    found = {case.name: str(outcomes[case.name]) for case in cases}
    assert found == {case.name: case.expect for case in cases}


async def _outcomes(cases: list[Case], port: int, recorder: Recorder) -> Mapping[str, Outcome]:
    waiting = [case for case in cases if case.partial]
    outcomes = dict(zip([case.name for case in waiting], await observe_together(waiting, port, recorder), strict=True))
    for case in cases:
        if not case.partial:
            outcomes[case.name] = await observe(case, port, recorder)
    return outcomes


@pytest.mark.parametrize("proxy", PROXIES[1:], ids=lambda proxy: proxy.name)
async def test_a_peer_agrees_where_nothing_says_that_it_differs(tmp_path: Path, proxy: Proxy) -> None:
    """A sample of the cases on which all agree; the whole corpus is ``./dev differential``."""
    if proxy.program is None:
        pytest.skip(f"{proxy.name} is not here: {INSTALL[proxy.name]}")
    sample = [case for case in read_corpus() if case.why is None and not case.partial][::SAMPLED]
    async with recording() as recorder:
        starting = proxy.running(tmp_path, recorder.port)
        port = await asyncio.to_thread(starting.__enter__)
        try:
            found = {case.name: (await observe(case, port, recorder)).meaning for case in sample}
        finally:
            await asyncio.to_thread(starting.__exit__, None, None, None)
    assert found == {case.name: Outcome.of(case.expect).meaning for case in sample}


def test_an_outcome_reads_as_it_is_written() -> None:
    for case in read_corpus():
        assert str(Outcome.of(case.expect)) == case.expect


def test_the_corpus_is_large_and_every_rule_is_one_of_its_own() -> None:
    cases, rules = read_corpus(), read_rules()
    assert len(cases) >= CASES_MIN
    assert {case.why for case in cases if case.why is not None} == set(rules)


def test_the_document_has_the_table() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert BEGIN in text
    assert "### not explained" not in text
    for rule in read_rules():
        assert f"### {rule}\n" in text, f"run ./dev differential --write: {rule} is not in its table"
