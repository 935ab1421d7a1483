"""How much memory a large body takes on its way through: ``python -m bench.transfer``.

An upload and a download of 2 GiB, one after the other; after each the worker's peak since its begin (VmHWM, proc(5)) is
compared with what it had while idle. What arrived is counted and hashed: the bytes must be those that were sent.
"""

import asyncio
import contextlib
import hashlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import uvloop

from bench.plain_gateway import PlainGateway, plain_gateway
from bench.processes import START_TIMEOUT_S, BenchError
from gateway import tether
from gateway.embedded import free_port, stop_process

MIB = 1024 * 1024
ABOVE_IDLE_MIB_MAX = 32.0
TRANSFER_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 5.0
_BLOCK = bytes(range(256)) * (MIB // 256)


@dataclass(frozen=True, slots=True, kw_only=True)
class Passed:
    """One body that has passed."""

    direction: str
    mib: int
    seconds: float
    idle_bytes: int
    peak_bytes: int

    @property
    def above_idle_mib(self) -> float:
        return (self.peak_bytes - self.idle_bytes) / MIB

    def __str__(self) -> str:
        return (
            f"{self.direction} of {self.mib} MiB: at most {self.above_idle_mib:.1f} MiB above idle "
            f"({self.idle_bytes / MIB:.1f} MiB), {self.mib / self.seconds:.0f} MiB/s"
        )


def measure(gateway: PlainGateway, mib: int) -> list[Passed]:
    """Both directions; raises BenchError where the bytes are not the same."""
    return [_measured(gateway, "upload", mib), _measured(gateway, "download", mib)]


def _measured(gateway: PlainGateway, direction: str, mib: int) -> Passed:
    status = Path(f"/proc/{gateway.worker}/status")
    Path(f"/proc/{gateway.worker}/clear_refs").write_text("5")  # the peak begins anew
    idle_bytes = _status_bytes(status, "VmRSS")
    started = time.monotonic()
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=TRANSFER_TIMEOUT_S) as connection:
        found = (_upload if direction == "upload" else _download)(connection, mib)
    seconds = time.monotonic() - started
    if found != _expected(mib):
        raise BenchError(f"the {direction} did not arrive as it was sent")
    return Passed(
        direction=direction,
        mib=mib,
        seconds=seconds,
        idle_bytes=idle_bytes,
        peak_bytes=_status_bytes(status, "VmHWM"),
    )


def _status_bytes(status: Path, name: str) -> int:
    for line in status.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise BenchError(f"{status} has no {name}")


def _expected(mib: int) -> str:
    digest = hashlib.sha1(usedforsecurity=False)
    for _ in range(mib):
        digest.update(_BLOCK)
    return digest.hexdigest()


def _upload(connection: socket.socket, mib: int) -> str:
    """Sends, and returns what the upstream says that it got."""
    connection.sendall(b"PUT /bytes HTTP/1.1\r\nHost: castgate.test\r\nContent-Length: %d\r\n\r\n" % (mib * MIB))
    for _ in range(mib):
        connection.sendall(_BLOCK)
    with connection.makefile("rb") as answer:
        _head(answer)
        return answer.read(40).decode()


def _download(connection: socket.socket, mib: int) -> str:
    connection.sendall(b"GET /bytes/%d HTTP/1.1\r\nHost: castgate.test\r\n\r\n" % mib)
    digest = hashlib.sha1(usedforsecurity=False)
    left = mib * MIB
    with connection.makefile("rb", buffering=MIB) as answer:
        _head(answer)
        while left and (piece := answer.read(min(left, MIB))):
            digest.update(piece)
            left -= len(piece)
    return digest.hexdigest()


def _head(answer: "object") -> None:
    line = answer.readline()  # type: ignore[attr-defined]
    if not line.startswith(b"HTTP/1.1 200 "):
        raise BenchError(f"the answer began with {line!r}")
    while answer.readline() != b"\r\n":  # type: ignore[attr-defined]
        pass


# --- what stands behind


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
        while head := await reader.readuntil(b"\r\n\r\n"):
            if head.startswith(b"GET /bytes/"):
                mib = int(head.split()[1].rpartition(b"/")[2])
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (mib * MIB))
                for _ in range(mib):
                    writer.write(_BLOCK)
                    await writer.drain()
                continue
            if head.startswith(b"HEAD "):
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                continue
            digest = hashlib.sha1(usedforsecurity=False)
            left = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0] or 0)
            while left:
                piece = await reader.read(min(left, MIB))
                if not piece:
                    raise ConnectionResetError
                digest.update(piece)
                left -= len(piece)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 40\r\n\r\n" + digest.hexdigest().encode())
    writer.close()


async def _serve_for_ever(port: int) -> None:
    server = await asyncio.start_server(_serve, "127.0.0.1", port)
    await server.serve_forever()


@contextlib.contextmanager
def byte_upstream() -> Iterator[str]:
    """A service that gives and takes any number of bytes, as a process; its URL."""
    port = free_port()
    words = [sys.executable, "-m", "bench.transfer", "--only-serve", str(port)]
    process = subprocess.Popen(tether.command(words, dies_by=signal.SIGTERM))
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1.0):
                break
            if process.poll() is not None or time.monotonic() > deadline:
                raise BenchError("the upstream did not start")
            time.sleep(0.02)
        yield f"http://127.0.0.1:{port}"
    finally:
        stop_process(process, signal.SIGTERM, STOP_TIMEOUT_S)


@click.command()
@click.option("--mib", default=2048, show_default=True, type=click.IntRange(1, 4095), help="Size of each body.")
@click.option("--only-serve", type=click.IntRange(1, 65535), hidden=True, metavar="PORT")
def main(mib: int, only_serve: int | None) -> None:
    """Send and fetch a large body; exit code 1 where the worker grew by more than 32 MiB."""
    if only_serve is not None:
        uvloop.run(_serve_for_ever(only_serve))
        return
    try:
        with byte_upstream() as upstream_url, plain_gateway(upstream_url) as gateway:
            passed = measure(gateway, mib)
    except (BenchError, OSError) as error:
        raise click.ClickException(str(error)) from None
    for one in passed:
        click.echo(str(one))
    if any(one.above_idle_mib > ABOVE_IDLE_MIB_MAX for one in passed):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
