"""``castgate serve`` and its listener: TLS, a certificate that changes while it serves, a Unix socket, open files."""

import http.client
import resource
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread

import pytest

from gateway.embedded import free_port
from tests.gateways import ROOT
from tests.relay.test_tls import Authority

CONFIG = """
listen: {{host: "{host}", port: {port}, tls: {{{tls}}}}}
admin: {{port: 0}}
workers: 2
upstream: {{url: "{upstream}"}}
database: {{url: "postgresql://127.0.0.1:9/none"}}
redis: {{url: "redis://127.0.0.1:9/0"}}
"""
WAIT_S = 20.0


@dataclass(kw_only=True)
class Served:
    """A gateway that is ready, and what it has said."""

    process: "subprocess.Popen[str]"
    lines: list[str] = field(default_factory=list)

    def said(self, text: str, times: int = 1) -> None:
        deadline_s = time.monotonic() + WAIT_S
        while sum(text in line for line in self.lines) < times:
            assert time.monotonic() < deadline_s, f"never said {text!r}:\n" + "".join(self.lines)
            time.sleep(0.02)


@contextmanager
def served(folder: Path, **config: object) -> Iterator[Served]:
    (folder / "policies").mkdir()
    (folder / "policies" / "plans.yaml").write_text("plans: {free: {}}\n")
    (folder / "config.yaml").write_text(CONFIG.format(**{"tls": "", "port": 0, **config}))
    process = subprocess.Popen(
        [sys.executable, "-m", "gateway", "serve", "--config", str(folder / "config.yaml")],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    found = Served(process=process)

    def read() -> None:
        assert process.stdout is not None
        found.lines.extend(process.stdout)

    reader = Thread(target=read)
    reader.start()
    try:
        found.said("castgate ready on ")
        yield found
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT_S) == 0, "".join(found.lines)
    finally:
        process.kill()
        process.wait()
        reader.join()
        assert process.stdout is not None
        process.stdout.close()


@pytest.fixture
def upstream(tmp_path: Path) -> Iterator[Path]:
    """A service on a Unix socket that answers everything with ``hi``; its path."""
    path = tmp_path / "upstream.sock"
    code = (
        "import asyncio, sys\n"
        "async def serve(reader, writer):\n"
        "    try:\n"
        "        while await reader.readuntil(b'\\r\\n\\r\\n'):\n"
        "            writer.write(b'HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\nhi')\n"
        "    except (asyncio.IncompleteReadError, ConnectionError):\n"
        "        writer.close()\n"
        "async def main():\n"
        "    server = await asyncio.start_unix_server(serve, sys.argv[1])\n"
        "    print('ready', flush=True)\n"
        "    await server.serve_forever()\n"
        "asyncio.run(main())\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == b"ready\n"
    yield path
    process.kill()
    process.wait()
    process.stdout.close()
    process.stderr.close()


def connect(port: int, authority: Authority) -> http.client.HTTPSConnection:
    connection = http.client.HTTPSConnection("localhost", port, context=authority.client(), timeout=WAIT_S)
    connection.connect()
    return connection


def get(connection: http.client.HTTPConnection) -> bytes:
    connection.request("GET", "/x")
    return connection.getresponse().read()


def names(connection: http.client.HTTPSConnection) -> list[str]:
    assert isinstance(connection.sock, ssl.SSLSocket)
    certificate = connection.sock.getpeercert()
    assert certificate is not None
    return [value for _, value in certificate["subjectAltName"]]  # type: ignore[misc,union-attr]


def test_a_certificate_is_renewed_while_connections_go_on(tmp_path: Path, upstream: Path) -> None:
    authority, port = Authority(tmp_path), free_port()
    authority.issue("localhost", "first.example")
    tls = "certificate: server.pem, key: server.key"
    with served(tmp_path, host="localhost", port=port, tls=tls, upstream=f"unix:{upstream}") as gateway:
        gateway.said(f"castgate ready on https://127.0.0.1:{port}")
        first = connect(port, authority)
        assert (get(first), names(first)) == (b"hi", ["localhost", "first.example"])

        authority.issue("localhost", "second.example")
        gateway.process.send_signal(signal.SIGHUP)
        gateway.said('"event": "worker_reloaded"', times=2)
        second = connect(port, authority)
        assert (get(second), names(second)) == (b"hi", ["localhost", "second.example"])

        authority.issue("localhost", "third.example")  # and nobody says so
        gateway.said('"reason": "files changed"')
        gateway.said('"event": "worker_reloaded"', times=4)
        third = connect(port, authority)
        assert (get(third), names(third)) == (b"hi", ["localhost", "third.example"])

        (tmp_path / "server.key").write_text("no key at all")
        gateway.process.send_signal(signal.SIGHUP)
        gateway.said("reload_rejected")
        gateway.said("listen.tls.certificate: expected a certificate and its key, but ")
        fourth = connect(port, authority)
        assert names(fourth) == ["localhost", "third.example"]
        assert [get(one) for one in (first, second, third, fourth)] == [b"hi"] * 4, "none of them was dropped"
        for one in (first, second, third, fourth):
            one.close()


def test_a_worker_may_open_as_many_files_as_the_system_lets_it(tmp_path: Path, upstream: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, hard), hard))
    try:
        with served(tmp_path, host="127.0.0.1", upstream=f"unix:{upstream}") as gateway:
            pid = gateway.process.pid
            for worker in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
                [line] = [one for one in Path(f"/proc/{worker}/limits").read_text().splitlines() if "open files" in one]
                assert line.split()[3] == str(hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=WAIT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def test_it_serves_on_a_unix_socket_and_removes_it_at_the_end(tmp_path: Path, upstream: Path) -> None:
    path = tmp_path / "castgate.sock"
    with served(tmp_path, host=f"unix:{path}", upstream=f"unix:{upstream}") as gateway:
        gateway.said(f"castgate ready on unix:{path}")
        connections = [UnixConnection(path) for _ in range(8)]
        assert [get(one) for one in connections] == [b"hi"] * 8
        gateway.process.send_signal(signal.SIGUSR2)
        gateway.said('"event": "worker_replaced"', times=2)
        connections.append(UnixConnection(path))
        assert get(connections[-1]) == b"hi"
        for one in connections:
            one.close()
    assert not path.exists()
