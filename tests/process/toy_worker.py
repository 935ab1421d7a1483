"""A worker for the supervisor's tests: obeys the same orders as the real one, and misbehaves when it is told to.

Answers each connection with one HTTP response that says its pid. ``TOY`` in the environment: ``exits`` (dies before it
is ready), ``says_why`` (so, with a reason), ``stubborn`` (ignores orders to drain and SIGTERM), ``slow`` (answers once
it is told to drain), ``silent`` (never ready), ``unprepared`` (the second of them takes no new configuration).
"""

import asyncio
import json
import os
import signal
import socket
import sys
from pathlib import Path

from gateway import accepted
from gateway.config import load
from gateway.metrics import Metrics

told = json.loads(os.environ["CASTGATE_WORKER"])
toy = os.environ.get("TOY", "")


async def main() -> None:
    reader, writer = await asyncio.open_connection(sock=socket.socket(fileno=told["control_fd"]))

    def say(**event: str) -> None:
        writer.write(json.dumps(event).encode() + b"\n")

    if toy == "says_why":
        say(event="failed", error="the toy is broken")
        await writer.drain()
    if toy in ("exits", "says_why"):
        sys.exit(3)
    if toy == "silent":
        os.write(1, b"the toy is silent\n")  # at once: there are two of them
        await asyncio.Event().wait()
    metrics = Metrics(Path(told["runtime_dir"]), f"worker-{told['index']}")
    answered = metrics.counter("castgate_requests_total", kind="plain")
    draining = asyncio.Event()
    under_way: set[asyncio.StreamWriter] = set()
    idle = asyncio.Event()
    idle.set()

    async def answer(client_reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        under_way.add(client)
        idle.clear()
        try:
            await client_reader.readuntil(b"\r\n\r\n")
            answered.add()
            if toy == "slow":
                metrics.gauge("castgate_connections_open").set(1)
                await draining.wait()
            body = str(os.getpid()).encode()
            client.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
            await client.drain()
        finally:
            client.close()
            under_way.discard(client)
            if not under_way:
                idle.set()

    server = await asyncio.start_server(answer, sock=socket.socket(fileno=told["listen_fd"]))
    if toy == "stubborn":
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, lambda: None)
    load(Path(told["config"]), os.environ)  # which ends a toy whose files are wrong
    in_force = accepted.read(Path(told["runtime_dir"]))
    assert in_force is not None
    version = in_force.rules.version
    metrics.config_version(version)
    say(event="ready", version=version)
    while line := await reader.readline():
        op = json.loads(line)["op"]
        if op == "drain" and toy != "stubborn":
            break
        if op == "prepare":
            if toy == "unprepared" and told["index"] == 1:
                say(event="reload_failed", error="the toy will not")
                continue
            offered = accepted.read_offered(Path(told["runtime_dir"])) or accepted.read(Path(told["runtime_dir"]))
            assert offered is not None
            version = offered.rules.version
            say(event="prepared", version=version)
        elif op == "take":
            metrics.config_version(version)
            say(event="reloaded", version=version)
    say(event="stopping")
    # What waits in the socket's queue is still answered: one more turn of the loop accepts it.
    await asyncio.sleep(0.05)
    server.close()
    draining.set()
    await idle.wait()
    metrics.close()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    asyncio.run(main())
