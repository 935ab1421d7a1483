"""Listening sockets: one for each worker on the same port, and one clear line where that cannot be had."""

import errno
import os
import socket
from typing import Any


class ListenError(Exception):
    """A port that cannot be listened on; one line for the person at the terminal."""


def listen(host: str, port: int, *, count: int, backlog: int) -> list[socket.socket]:
    """``count`` sockets on one port, between which the kernel spreads connections (SO_REUSEPORT); port 0: any free one.

    The first is bound alone, and opened to its siblings only then: otherwise a second gateway of the same user would
    silently take half of the first one's connections. ``host`` is a name or an address; ``::`` serves IPv4 as well.
    Raises ListenError.
    """
    family, address = _resolve(host, port)
    sockets: list[socket.socket] = []
    try:
        first = _socket(family, address)
        sockets.append(first)
        first.bind(address)
        address = (address[0], first.getsockname()[1], *address[2:])
        # No longer shared with whoever reuses addresses, from now on with our own siblings alone.
        first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        if count > 1:
            first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        for _ in range(count - 1):
            sibling = _socket(family, address)
            sockets.append(sibling)
            sibling.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sibling.bind(address)
        # Connections inherit this; without it those that wait to be forgotten would block the next start.
        first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        for one in sockets:
            one.listen(backlog)
    except OSError as error:
        for one in sockets:
            one.close()
        raise ListenError(_why(error, host, address[1])) from error
    return sockets


def url_of(listener: socket.socket) -> str:
    """``http://127.0.0.1:8080``, or ``http://[::1]:8080``."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if listener.family == socket.AF_INET6 else f"http://{host}:{port}"


def _resolve(host: str, port: int) -> tuple[socket.AddressFamily, tuple[Any, ...]]:
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror:
        raise ListenError(f"cannot listen on {host}:{port}: no such host") from None
    # A name such as localhost may have both kinds of address: IPv4 is the one that every client tries.
    found.sort(key=lambda one: one[0] != socket.AF_INET)
    return found[0][0], found[0][4]


def _socket(family: socket.AddressFamily, address: tuple[Any, ...]) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    # Connections of the last run that still wait to be forgotten (TIME_WAIT) do not keep us from starting.
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(address[0] != "::"))
    return made


def _why(error: OSError, host: str, port: object) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is already in use"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"cannot listen on {host}:{port}: this machine has no such address"
    if error.errno == errno.EACCES:
        return f"cannot listen on {host}:{port}: this port needs privileges"
    return f"cannot listen on {host}:{port}: {os.strerror(error.errno) if error.errno else error}"
