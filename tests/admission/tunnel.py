"""A port that speaks TLS to who begins with it and plain TCP to others, in front of a server that knows no TLS."""

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable
from pathlib import Path

import trustme

HOST = "127.0.0.1"
_TLS_HANDSHAKE = b"\x16"  # RFC 8446 §5.1


class Tunnel:
    """Use as a context manager. ``port`` is known from the beginning, ``target`` may be set later."""

    def __init__(self, authority: trustme.CA, target: int = 0) -> None:
        self.target = target
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("localhost", HOST).configure_cert(self._context)
        self._listener = socket.create_server((HOST, 0))
        self.port: int = self._listener.getsockname()[1]
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> "Tunnel":
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in list(self._threads):
            thread.join(10)
        for connection in self._open:
            connection.close()

    def _start(self, what: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=what, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                self._start(self._serve, self._listener.accept()[0])

    def _serve(self, client: socket.socket) -> None:
        self._open.append(client)
        with contextlib.suppress(OSError):
            if client.recv(1, socket.MSG_PEEK) == _TLS_HANDSHAKE:
                client = self._context.wrap_socket(client, server_side=True)
                self._open.append(client)
            server = socket.create_connection((HOST, self.target))
            self._open.append(server)
            self._start(self._pump, server, client)
            self._pump(client, server)

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def trusted_by(folder: Path) -> tuple[trustme.CA, Path]:
    """An authority, and the file by which it is trusted."""
    authority = trustme.CA()
    file = folder / "authority.pem"
    authority.cert_pem.write_to_path(str(file))
    return authority, file
