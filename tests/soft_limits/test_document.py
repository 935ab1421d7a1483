"""The receiver in docs/policies.md takes what the gateway sends, once, and nothing else."""

import asyncio
import json
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from gateway.webhook_signature import signed_headers
from tests.soft_limits.conftest import OTHER_SECRET, SECRET, MakeOutbox, MakeWriter

TEXT = (Path(__file__).parents[2] / "docs" / "policies.md").read_text()
BODY = json.dumps({"data": {"account_id": "a", "used_cents": 81, "limit_cents": 100}}).encode()


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of the document's receiver, which knows two secrets."""
    [source] = re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    monkeypatch.setenv("BUDGET_WEBHOOK_SECRET", f"{OTHER_SECRET},{SECRET}")
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(source, "docs/policies.md", "exec"), names)
    names["Receiver"].log_message = lambda *_: None
    with ThreadingHTTPServer(("127.0.0.1", 0), names["Receiver"]) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()
        thread.join()


def post(url: str, body: bytes, headers: dict[str, str]) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=20) as answer:
            status: int = answer.status
            return status
    except urllib.error.HTTPError as error:
        with error:
            return error.code


async def test_it_takes_a_message_of_the_gateway_once(
    example: str,
    make_writer: MakeWriter,
    make_outbox: MakeOutbox,
    sql: "asyncpg.Connection[asyncpg.Record]",
    capsys: pytest.CaptureFixture[str],
) -> None:
    await make_writer(queued=lambda: None).spend("a", 55.5)
    outbox = make_outbox(url=example)
    capsys.readouterr()
    for _ in range(2):
        await sql.execute("UPDATE webhook_outbox SET state = 'waiting', due_at = now()")
        assert await outbox.deliver_due() is True
    told = capsys.readouterr().out.splitlines()
    assert told == ["a has used 55.5 of 100 cents"]


async def test_it_refuses_what_was_tampered_with_is_old_or_is_not_signed(
    example: str, capsys: pytest.CaptureFixture[str]
) -> None:
    now_s = int(time.time())

    async def answer(body: bytes, headers: dict[str, str]) -> int:
        return await asyncio.to_thread(post, example, body, headers)

    good = dict(signed_headers([SECRET], "msg_1", now_s, BODY))
    assert await answer(BODY, good) == 204
    assert await answer(BODY + b" ", good) == 400
    assert await answer(BODY, {**good, "webhook-id": "msg_2"}) == 400
    assert await answer(BODY, {**good, "webhook-timestamp": str(now_s + 1)}) == 400
    assert await answer(BODY, dict(signed_headers([SECRET], "msg_3", now_s - 301, BODY))) == 400
    assert await answer(BODY, dict(signed_headers(["whsec_" + "A" * 32], "msg_4", now_s, BODY))) == 400
    assert await answer(BODY, {}) == 400
    assert capsys.readouterr().out.count("a has used") == 1


def test_the_message_in_the_document_is_one() -> None:
    [text] = re.findall(r"^```json\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    message = json.loads(text)
    assert set(message) == {"type", "timestamp", "data"}
    assert set(message["data"]) == {
        *("account_id", "plan", "period", "timezone", "threshold", "threshold_percent"),
        *("threshold_cents", "limit_cents", "used_cents", "window_start", "resets_at"),
    }
