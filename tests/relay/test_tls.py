"""TLS on both sides of the relay, with certificates of an authority made for the test."""

import asyncio
import hashlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme

from gateway.relay.client import ClientConnection
from gateway.tls import ListenerTls, TlsError, client_context, server_context
from tests.relay.backends import Backend, ask, put_behind
from tests.relay.conftest import Client, Running, answering

_MIB = 1024 * 1024
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Authority:
    """Issues certificates, and is trusted by whoever reads ``file``."""

    def __init__(self, folder: Path, name: str = "authority") -> None:
        self._ca = trustme.CA()
        self._folder = folder
        self.file = folder / f"{name}.pem"
        self._ca.cert_pem.write_to_path(str(self.file))

    def issue(self, *names: str, into: str = "server") -> tuple[Path, Path]:
        """A certificate and its key, in files that are replaced if they are there."""
        issued = self._ca.issue_cert(*names)
        certificate, key = self._folder / f"{into}.pem", self._folder / f"{into}.key"
        certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        key.write_bytes(issued.private_key_pem.bytes())
        return certificate, key

    def server(self, *names: str) -> ssl.SSLContext:
        return server_context(*self.issue(*names, into="upstream"))

    def client(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.file))


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


async def test_an_upstream_over_tls_is_verified_and_serves(running: Running, authority: Authority) -> None:
    async with Backend("a", tls=authority.server("127.0.0.1")) as a:
        put_behind(running, a.url, ca_file=str(authority.file))
        client = await running.connect()
        for method in ("GET", "POST", "GET"):
            assert await ask(client, method) == (200, "a")
        assert a.connections == 1


async def test_the_name_that_the_certificate_must_have_can_be_told(running: Running, authority: Authority) -> None:
    async with Backend("a", tls=authority.server("cast.internal")) as a:
        put_behind(running, a.url, ca_file=str(authority.file), server_name="cast.internal")
        assert await ask(await running.connect(), "POST") == (200, "a")


async def test_nothing_is_sent_to_an_upstream_that_cannot_prove_its_name(
    running: Running, authority: Authority, tmp_path: Path
) -> None:
    stranger = Authority(tmp_path, "stranger")
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)  # the backends' own, for the broken handshakes
    for context in (authority.server("other.internal"), stranger.server("127.0.0.1")):
        async with Backend("a", tls=context) as backend:
            put_behind(running, backend.url, ca_file=str(authority.file))
            status, body = await ask(await running.connect(), "POST")
            assert (status, "upstream_unreachable" in body) == (502, True)
            assert backend.asked == []


async def test_without_a_file_of_authorities_the_systems_own_count(running: Running, authority: Authority) -> None:
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    async with Backend("a", tls=authority.server("127.0.0.1")) as a:
        put_behind(running, a.url)
        assert (await ask(await running.connect()))[0] == 502
    assert client_context(None).verify_mode == ssl.CERT_REQUIRED


@asynccontextmanager
async def tls_listener(running: Running, tls: ListenerTls) -> AsyncIterator[int]:
    """A second listener of the relay, over TLS; its port."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: ClientConnection(running.relay), "127.0.0.1", 0, ssl=tls.context, ssl_shutdown_timeout=1
    )
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


@asynccontextmanager
async def tls_upstream(running: Running, authority: Authority, serve: Serve) -> AsyncIterator[None]:
    """The relay's upstream is this one, over TLS. Its connections are ended here: uvloop waits for those of TLS."""
    writers: list[asyncio.StreamWriter] = []

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        await serve(reader, writer)

    server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=authority.server("127.0.0.1"))
    put_behind(running, f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}", ca_file=str(authority.file))
    try:
        yield
    finally:
        server.close()
        for writer in writers:
            writer.transport.abort()


async def connect(running: Running, port: int, context: ssl.SSLContext, name: str | None = None) -> Client:
    client = Client(*await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=name))
    running.clients.append(client)
    return client


def names_shown(client: Client) -> tuple[str, ...]:
    """The names in the certificate that the client was shown."""
    certificate: dict[str, Any] = client.writer.get_extra_info("peercert")
    return tuple(value for _, value in certificate["subjectAltName"])


async def test_clients_connect_over_tls_and_the_upstream_is_told(running: Running, authority: Authority) -> None:
    running.upstream.answer = answering(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
    async with tls_listener(running, ListenerTls(*authority.issue("localhost"))) as port:
        client = await connect(running, port, authority.client(), "localhost")
        for _ in range(2):
            await client.send(b"GET /x HTTP/1.1\r\nHost: h\r\n\r\n")
            await client.read_head()
            assert await client.read(2) == b"hi"
        assert b"X-Forwarded-Proto: https\r\n" in running.upstream.heads[1]
        await client.send(b"GET /x HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        assert (await client.read_all()).endswith(b"hi")


async def test_a_new_certificate_is_shown_to_new_connections_and_old_ones_go_on(
    running: Running, authority: Authority
) -> None:
    running.upstream.answer = answering(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
    files = authority.issue("localhost", "one.example")
    tls = ListenerTls(*files)
    async with tls_listener(running, tls) as port:
        old = await connect(running, port, authority.client(), "localhost")
        authority.issue("localhost", "two.example")
        tls.reload(*files)
        new = await connect(running, port, authority.client(), "localhost")
        assert (names_shown(old), names_shown(new)) == (("localhost", "one.example"), ("localhost", "two.example"))
        for client in (old, new):
            assert await ask(client) == (200, "hi")


async def test_a_certificate_that_cannot_be_used_leaves_the_last_one(running: Running, authority: Authority) -> None:
    certificate, key = authority.issue("localhost")
    tls = ListenerTls(certificate, key)
    authority.issue("localhost", into="other")[1].rename(key)  # another certificate's key
    with pytest.raises(TlsError, match="are no certificate and its key: KEY_VALUES_MISMATCH"):
        tls.reload(certificate, key)
    certificate.unlink()
    with pytest.raises(TlsError, match="cannot be read: No such file or directory"):
        tls.reload(certificate, key)
    async with tls_listener(running, tls) as port:
        client = await connect(running, port, authority.client(), "localhost")
        assert names_shown(client) == ("localhost",)


async def test_large_bodies_pass_over_tls_on_both_sides(running: Running, authority: Authority) -> None:
    block = bytes(range(256)) * 4096
    received = hashlib.sha256()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for _ in range(16):
            received.update(await reader.readexactly(_MIB))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (16 * _MIB))
        for _ in range(16):
            writer.write(block)
            await writer.drain()
        writer.close()

    async with (
        tls_upstream(running, authority, serve),
        tls_listener(running, ListenerTls(*authority.issue("localhost"))) as listening,
    ):
        client = await connect(running, listening, authority.client(), "localhost")
        await client.send(b"PUT /x HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % (16 * _MIB))
        for _ in range(16):
            await client.send(block)
        await client.read_head()
        answered = hashlib.sha256()
        for _ in range(16):
            answered.update(await client.read(_MIB))
    expected = hashlib.sha256(block * 16).hexdigest()
    assert (received.hexdigest(), answered.hexdigest()) == (expected, expected)


async def test_a_tunnel_passes_over_tls_and_ends_with_either_side(
    running: Running, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    ended = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        writer.write((await reader.readexactly(4)).upper())
        await reader.read(-1)
        ended.set()
        writer.close()

    async with (
        tls_upstream(running, authority, serve),
        tls_listener(running, ListenerTls(*authority.issue("localhost"))) as listening,
    ):
        client = await connect(running, listening, authority.client(), "localhost")
        await client.send(b"GET /ws HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nearl")
        await client.read_head()
        assert await client.read(4) == b"EARL"
        client.writer.close()
        await asyncio.wait_for(ended.wait(), 5)
    assert caplog.records == []
