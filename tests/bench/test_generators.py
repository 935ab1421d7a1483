"""The generators send what they were told, to as many accounts as there are, at the price of one."""

import asyncio
import re
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from bench.generators import Request, generator_named, wrk_script
from bench.many_accounts import key_of
from bench.processes import BenchError, split_cores
from tests.bench.test_command import GENERATORS

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


def request_of(folder: Path, count: int, first_key: int = 0) -> Request:
    keys_file = folder / "keys"
    keys_file.write_text("".join(f"{key_of(number)}\n" for number in range(count)))
    body = '{"input":"a spell"}'
    return Request(path="/v1/cast", method="POST", body=body, keys_file=keys_file, first_key=first_key)


@pytest.mark.parametrize("generator", GENERATORS)
async def test_each_request_has_the_next_key_and_nothing_else_that_is_new(tmp_path: Path, generator: str) -> None:
    requests: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.readuntil(b"\r\n\r\n"):
            body = await reader.readexactly(int(re.findall(rb"(?i)content-length: (\d+)", head)[0]))
            requests.append(head + body)
            writer.write(OK)

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await answer(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    load = generator_named(generator, folder=tmp_path, cores=split_cores().rest)
    async with await asyncio.start_server(connected, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        sample = await asyncio.to_thread(load, url, request_of(tmp_path, 23, first_key=20), 1, 0.5)
    assert sample.requests > 46
    assert sample.errors == sample.refused == 0
    keys = [re.findall(rb"Bearer ([^\r]+)\r\n", request)[0].decode() for request in requests]
    assert keys == [key_of((20 + place) % 23) for place in range(len(keys))]
    assert len({request.replace(key.encode(), b"") for request, key in zip(requests, keys, strict=True)}) == 1


@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed (apt-get install wrk)")
def test_wrk_makes_one_request_however_many_keys_there_are(tmp_path: Path) -> None:
    """Counted in bytes: a hundred thousand requests of their own would be twenty million."""

    def lua_bytes(count: int) -> float:
        report = "local make = init; init = function() make(); collectgarbage(); " \
            "io.stderr:write(collectgarbage('count') * 1024); os.exit(0) end\n"  # fmt: skip
        script = tmp_path / "wrk.lua"
        script.write_text(wrk_script(request_of(tmp_path, count)) + report)
        with socket.create_server(("127.0.0.1", 0)) as server:
            url = f"http://127.0.0.1:{server.getsockname()[1]}"
            words = ["wrk", "--threads", "1", "--connections", "1", "--duration", "1s", "--script", str(script), url]
            ended = subprocess.run(words, capture_output=True, text=True, check=True, timeout=30)
        return float(ended.stderr)

    # The keys, and what they were read into.
    assert lua_bytes(100_000) - lua_bytes(1) < 2 * 100_000 * len(f"{key_of(1)}\n")


def test_keys_that_do_not_fit_over_each_other_are_refused(tmp_path: Path) -> None:
    keys_file = tmp_path / "keys"
    keys_file.write_text("ck_1\nck_10\n")
    with pytest.raises(BenchError, match="expected keys of one length, found 2 lengths"):
        wrk_script(Request(path="/", keys_file=keys_file))
