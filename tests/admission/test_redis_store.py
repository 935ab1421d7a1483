"""The one connection: what a URL may ask for, and what a caller hears when it ends."""

import asyncio
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from gateway.redis_store import RedisLink, RedisLostError, encoded, read_script
from gateway.redis_topology import topology
from tests.admission.killable import KillableRedis, killable_redis


@pytest.fixture
def server(tmp_path: Path) -> Iterator[KillableRedis]:
    with killable_redis("--unixsocket", str(tmp_path / "redis.sock")) as server:
        yield server


def nobody(_: str) -> None:
    pass


async def connect(url: str, *, timeout_s: float, lost: Callable[[str], None]) -> RedisLink:
    return await topology(url, timeout_s=timeout_s).connect(0, lost=lost)


async def test_commands_are_encoded_by_bytes_not_by_characters() -> None:
    assert encoded("SET", "ä", 5, b"\xff") == b"*4\r\n$3\r\nSET\r\n$2\r\n\xc3\xa4\r\n$1\r\n5\r\n$1\r\n\xff\r\n"


async def test_the_database_of_the_url_is_selected(server: KillableRedis) -> None:
    link = await connect(f"redis://127.0.0.1:{server.port}/3", timeout_s=5, lost=nobody)
    await link.call("SET", "key", "value")
    with redis.Redis(port=server.port, db=3) as client:
        assert client.get("key") == b"value"
    link.close()


async def test_a_unix_socket_will_do(server: KillableRedis, tmp_path: Path) -> None:
    link = await connect(f"unix://{tmp_path}/redis.sock?db=1", timeout_s=5, lost=nobody)
    assert await link.call("PING") == b"PONG"
    link.close()


async def test_user_and_password_log_in_and_a_wrong_one_does_not(server: KillableRedis) -> None:
    with redis.Redis(port=server.port) as client:
        client.execute_command("ACL", "SETUSER", "gate", "on", ">s3cret", "allcommands", "allkeys")
        client.config_set("requirepass", "other words")
    for login in ("gate:s3cret", ":other%20words"):
        link = await connect(f"redis://{login}@127.0.0.1:{server.port}/1", timeout_s=5, lost=nobody)
        assert await link.call("PING") == b"PONG"
        link.close()
    with pytest.raises(RedisLostError, match="WRONGPASS") as failure:
        await connect(f"redis://gate:wr0ng@127.0.0.1:{server.port}/1", timeout_s=5, lost=nobody)
    assert "wr0ng" not in str(failure.value)


async def test_nobody_listening_is_said_with_the_address(free_port: int) -> None:
    with pytest.raises(RedisLostError, match=f"127.0.0.1:{free_port}"):
        await connect(f"redis://127.0.0.1:{free_port}", timeout_s=5, lost=nobody)


async def test_a_server_that_accepts_and_says_nothing_costs_the_time_out(server: KillableRedis) -> None:
    server.hang()
    with pytest.raises(RedisLostError, match=r"no answer within 0\.1 s"):
        await connect(f"redis://127.0.0.1:{server.port}/1", timeout_s=0.1, lost=nobody)


async def test_who_waits_hears_at_once_that_the_connection_ended(server: KillableRedis) -> None:
    reasons: list[str] = []
    link = await connect(server.url, timeout_s=5, lost=reasons.append)
    server.hang()
    waiting = asyncio.ensure_future(link.call("PING"))
    await asyncio.sleep(0)
    server.kill()
    with pytest.raises(RedisLostError):
        await asyncio.wait_for(waiting, 5)
    assert len(reasons) == 1
    with pytest.raises(RedisLostError):
        await link.call("PING")


async def test_an_error_reply_is_an_exception_of_that_call_alone(server: KillableRedis) -> None:
    link = await connect(server.url, timeout_s=5, lost=nobody)
    with pytest.raises(RedisLostError, match="unknown command"):
        await link.call("NONSENSE")
    assert await link.call("PING") == b"PONG"
    link.close()


async def test_what_is_not_redis_protocol_ends_the_connection() -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.close()

    listener = await asyncio.start_server(greet, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    with pytest.raises(RedisLostError):
        await connect(f"redis://127.0.0.1:{port}/1", timeout_s=5, lost=nobody)
    listener.close()


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    made = tmp_path / "both.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=DNS:localhost", "-keyout", made, "-out", tmp_path / "cert.pem"),
        ],
        check=True,
        capture_output=True,
    )
    made.write_text(made.read_text() + (tmp_path / "cert.pem").read_text())
    return made


async def test_tls_is_spoken_and_the_certificate_is_checked(server: KillableRedis, certificate: Path) -> None:
    import ssl

    async def tunnel(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind_reader, behind_writer = await asyncio.open_connection("127.0.0.1", server.port)
        try:
            while data := await reader.read(65536):
                behind_writer.write(data)
                writer.write(await behind_reader.read(65536))
        finally:
            behind_writer.close()
            writer.close()
            ended.release()

    ended = asyncio.Semaphore(0)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    listener = await asyncio.start_server(tunnel, "localhost", 0, ssl=context)
    url = f"rediss://localhost:{listener.sockets[0].getsockname()[1]}/1"
    with pytest.raises(RedisLostError, match="certificate"):
        await connect(url, timeout_s=5, lost=nobody)
    for trusted in (f"{url}?ssl_ca_certs={certificate}", f"{url}?ssl_cert_reqs=none"):
        link = await connect(trusted, timeout_s=5, lost=nobody)
        assert await link.call("PING") == b"PONG"
        link.close()
        await ended.acquire()
    listener.close()


def test_a_script_is_its_files_in_order_and_its_parts_before_the_last() -> None:
    assert read_script("input", "facts").source == read_script("input").source + b"\n" + read_script("facts").source


def test_constants_stand_in_place_of_their_names() -> None:
    source = read_script("parts", "reads", "facts", parts=("limits_concurrency", "limits_fixed_window")).source
    assert b"for first = 1, #wanted, 1000 do" in source
    assert b"TTL_MS = 86400000," in source
    assert b"row[2] then return 0 end\n    return 1000\n" in source
    assert b"<= row[2] then" in source
    assert not re.search(rb"(?m)^local [A-Z]", source)


def test_parts_stand_before_the_last_file() -> None:
    source = read_script("parts", "facts", "orphans", parts=("join", "opens")).source
    places = [source.index(read_script(name).source) for name in ("parts", "facts", "join", "opens", "orphans")]
    assert places == sorted(places)
    assert source[: places[2]].endswith(b"run = function(name, given)\nif name == 'join' then\n")
    assert source[: places[3]].endswith(b"elseif name == 'opens' then\n")
