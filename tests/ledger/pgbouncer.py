"""A pgbouncer in transaction mode in front of a database, for tests."""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from gateway.embedded import free_port

PROGRAM = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
WHY_NOT = "no pgbouncer here; `apt-get install --no-install-recommends pgbouncer` installs it"
START_TIMEOUT_S = 10.0


@contextmanager
def pgbouncer(database_url: str, *, pool_size: int = 4, **settings: str) -> Iterator[str]:
    """The address of the database through it. Transactions take turns on all server connections there are."""
    assert PROGRAM is not None
    parts = urlsplit(database_url)
    port = free_port()
    folder = Path(tempfile.mkdtemp(prefix="castgate-pgbouncer-"))
    (folder / "users").write_text(f'"{parts.username}" "{parts.password}"\n')
    lines = {
        "listen_addr": "127.0.0.1",
        "listen_port": str(port),
        "unix_socket_dir": "",
        "auth_type": "plain",
        "auth_file": str(folder / "users"),
        "pool_mode": "transaction",
        "default_pool_size": str(pool_size),
        "max_client_conn": "500",
        "server_round_robin": "1",
        **settings,
    }
    text = f"[databases]\n* = host={parts.hostname} port={parts.port}\n[pgbouncer]\n"
    (folder / "pgbouncer.ini").write_text(text + "".join(f"{name} = {value}\n" for name, value in lines.items()))
    command = [PROGRAM, str(folder / "pgbouncer.ini")]
    if os.geteuid() == 0:  # as which it refuses to run
        folder.chmod(0o755)
        command[1:1] = ["-u", "nobody"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        _wait_for(port, process, folder / "log")
        yield urlunsplit(parts._replace(netloc=f"{parts.username}:{parts.password}@127.0.0.1:{port}"))
    finally:
        process.terminate()
        process.wait()
        shutil.rmtree(folder)


def _wait_for(port: int, process: "subprocess.Popen[bytes]", log: Path) -> None:
    for _ in range(int(START_TIMEOUT_S / 0.02)):
        assert process.poll() is None, log.read_text()
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise AssertionError("pgbouncer does not listen: " + log.read_text())
