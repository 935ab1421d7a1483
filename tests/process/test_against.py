"""``castgate check --against`` asks an admin listener that has a token with that token."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from gateway.against import NoAnswerError, differences
from gateway.hosted.answers import json_text
from gateway.policy.effective import effective
from gateway.policy.rules import Plan, Rules

RULES = Rules(version="here", policies=(), plans={"free": Plan(name="free")}, default_plan="free")
RUNNING = {"version": "there", "loaded_at": "2026-11-24T08:00:00.000Z", "loaded_by": "start", **effective(RULES)}


class Listener(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        is_let_in = self.headers.get("Authorization") == "Bearer secret"
        body = json_text(RUNNING).encode()
        self.send_response(200 if is_let_in else 401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Listener)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_token_is_shown(url: str) -> None:
    [line] = differences(RULES, url, "secret")
    assert line.endswith("; the files are here: 0 differences")


def test_without_it_the_refusal_says_what_is_asked_for(url: str) -> None:
    with pytest.raises(NoAnswerError, match="/policies answers 401: it asks for ADMIN_TOKEN"):
        differences(RULES, url, None)
