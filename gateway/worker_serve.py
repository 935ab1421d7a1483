"""What a worker does: it serves until the supervisor says ``drain`` or is gone, and does what it is told.

What is said both ways is in ``worker_process.py``, the other end of the socket. ``worker_main`` is the program.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import json
import resource
import signal
import socket
import zoneinfo
from typing import TYPE_CHECKING

import structlog
import uvloop

from gateway import log
from gateway.tasks import Tasks
from gateway.worker import Worker
from gateway.worker_parameters import Parameters, configuration

if TYPE_CHECKING:
    from gateway.config import Loaded

_log = structlog.get_logger()


class _Control:
    """The socket to the supervisor: JSON lines both ways. Its end is the end of the supervisor."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    def say(self, **event: str) -> None:
        with contextlib.suppress(ConnectionError):  # the supervisor is gone: the reader sees it too
            self._writer.write(json.dumps(event).encode() + b"\n")

    async def obey(self, worker: Worker, stop: asyncio.Event) -> None:
        """Sets ``stop`` on ``drain``, and when nobody is left to say it."""
        try:
            while line := await self._reader.readline():
                operation = json.loads(line)["op"]
                if operation == "drain":
                    break
                if operation == "prepare":
                    try:
                        self.say(event="prepared", version=await worker.prepare())
                    except Exception as error:  # noqa: BLE001  whatever it is, the supervisor waits for an answer
                        self.say(event="reload_failed", error=f"{type(error).__name__}: {error}")
                        _log.exception("not_prepared")
                elif operation == "take":
                    self.say(event="reloaded", version=worker.take())
        finally:
            stop.set()

    def close(self) -> None:
        self._writer.close()


async def _serve(parameters: Parameters, loaded: Loaded) -> None:
    """Serves until the supervisor says ``drain`` or is gone, or until SIGTERM."""
    control = _Control(*await asyncio.open_connection(sock=socket.socket(fileno=parameters.control_fd)))
    tasks = Tasks()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    worker = Worker(parameters, loaded)
    try:
        try:
            await worker.start()
        except Exception as error:
            control.say(event="failed", error=f"{type(error).__name__}: {error}")
            raise
        control.say(event="ready", version=loaded.rules.version)
        tasks.start("control", control.obey(worker, stop))
        await stop.wait()
        control.say(event="stopping")
    finally:
        await worker.stop()
        control.close()
        await tasks.drain(0)


def _allow_many_files() -> None:
    """Each connection is a file. Shells and service managers start programs with 1,024 of them, and allow many more."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # where "unlimited" is more than the kernel takes
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def run(parameters: Parameters, interpreted: str) -> None:
    """Serves; ``interpreted`` says why nothing is compiled, and is blank where the hot path is."""
    faulthandler.enable()  # a fault in machine code says where it was, and the supervisor that it was one
    # Several gateways must find the same windows whatever their machines' own time zone data say: the wheel's count.
    zoneinfo.reset_tzpath(())
    # A Ctrl-C at the terminal is the supervisor's to handle.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _allow_many_files()
    loaded = configuration(parameters)
    log.configure(loaded.settings.log.level, loaded.settings.log.format)
    structlog.contextvars.bind_contextvars(worker=parameters.index)
    _log.info("hot_path", compiled=not interpreted, **({"reason": interpreted} if interpreted else {}))
    uvloop.run(_serve(parameters, loaded))
