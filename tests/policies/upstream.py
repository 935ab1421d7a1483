"""A service behind the gateway that answers as each request asks it to, in a thread of its own."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PLAY = "X-Play"  # the header that says how to answer, as JSON, see _Handler


class Upstream(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.go = threading.Event()
        self.waiting = threading.Semaphore(0)  # released by each call that waits

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    """``status``, ``answer`` (header fields), ``chunks`` or ``packed`` (a body in hex), ``sleep_ms``, ``waits`` (until
    ``Upstream.go`` is set), ``cut`` (the connection ends after the first chunk)."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", "0")))
        play: dict[str, Any] = json.loads(self.headers.get(PLAY, "{}"))
        server = self.server
        assert isinstance(server, Upstream)
        if play.get("waits"):
            server.waiting.release()
            server.go.wait(20)
        time.sleep(play.get("sleep_ms", 0) / 1000)
        chunks = [chunk.encode() for chunk in play.get("chunks", ['{"id": "cast"}'])]
        if "packed" in play:
            chunks = [bytes.fromhex(play["packed"])]
        self.send_response(play.get("status", 200))
        for name, value in play.get("answer", {}).items():
            self.send_header(name, value)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for chunk in chunks:
            self.wfile.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
            self.wfile.flush()
            if play.get("cut"):
                self.close_connection = True
                return
        self.wfile.write(b"0\r\n\r\n")

    def do_GET(self) -> None:
        self.do_POST()

    def log_message(self, *_: object) -> None:
        """Quiet."""


@contextmanager
def running_upstream() -> Iterator[Upstream]:
    server = Upstream()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server
    finally:
        server.go.set()
        server.shutdown()
        thread.join()
        server.server_close()
