"""Listening sockets: one for each worker on the same port, and one clear line where that cannot be had.

A Unix socket (``unix:/path``) cannot be shared out like that: there the workers accept from one and the same queue.
"""

import contextlib
import ctypes
import errno
import os
import socket
import struct
from pathlib import Path
from typing import Any

from gateway.config.addresses import UNIX

# asm-generic/socket.h; Python has no name for it.
_SO_ATTACH_FILTER = 26


class ListenError(Exception):
    """A port that cannot be listened on; one line for the person at the terminal."""


def listen(host: str, port: int, *, count: int, backlog: int) -> list[socket.socket]:
    """``count`` sockets on one port, between which the kernel spreads connections (SO_REUSEPORT); port 0: any free one.

    The first is bound alone, and opened to its siblings only then: otherwise a second gateway of the same user would
    silently take half of the first one's connections. ``host`` is a name or an address; ``::`` serves IPv4 as well;
    of a Unix socket there is one, that many times. Raises ListenError.
    """
    if host.startswith(UNIX):
        return _listen_unix(Path(host.removeprefix(UNIX)), count=count, backlog=backlog)
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


def url_of(listener: socket.socket, scheme: str = "http") -> str:
    """``http://127.0.0.1:8080``, ``http://[::1]:8080`` or ``unix:/run/castgate.sock``."""
    if listener.family == socket.AF_UNIX:
        return f"{UNIX}{listener.getsockname()}"
    host, port = listener.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if listener.family == socket.AF_INET6 else f"{scheme}://{host}:{port}"


def refuse_new(listener: socket.socket) -> None:
    """Begins no more connections, in any process that holds this socket; those in its queue can still be accepted.

    Closing a socket resets what waits in its queue, and shutting it down does the same. So the kernel is told to drop
    requests for a new connection (SYN without ACK) and nothing else: whoever asks is not answered, asks again after
    a second, and finds either a successor or nobody. What is in the queue by then is accepted, and nothing is reset.
    """
    if listener.family == socket.AF_UNIX:
        with contextlib.suppress(OSError):
            Path(listener.getsockname()).unlink()
        return
    try:
        _drop_syn(listener)
    except OSError:  # not Linux, or not allowed: one connection may still queue, and be reset
        listener.listen(0)


def _drop_syn(listener: socket.socket) -> None:
    """A socket filter (linux/filter.h): it sees segments from the TCP header on, whose byte 13 holds the flags."""
    instructions = (
        (0x30, 0, 0, 13),  # load byte 13
        (0x54, 0, 0, 0x12),  # and SYN | ACK
        (0x15, 0, 1, 0x02),  # equal to SYN? else skip one
        (0x06, 0, 0, 0),  # drop it
        (0x06, 0, 0, 0xFFFFFFFF),  # keep all of it
    )
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *one) for one in instructions))
    listener.setsockopt(
        socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", len(instructions), ctypes.addressof(code))
    )


def _listen_unix(path: Path, *, count: int, backlog: int) -> list[socket.socket]:
    """One socket at ``path``, ``count`` times. A file that a gateway left behind there is taken over."""
    first = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.is_socket():
            with (
                socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other,
                contextlib.suppress(ConnectionRefusedError),
            ):
                other.connect(str(path))
                raise ListenError(f"{path} is already in use")
            path.unlink()
        first.bind(str(path))
        first.listen(backlog)
    except OSError as error:
        first.close()
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise ListenError(f"cannot listen on {path}: {reason}") from error
    except ListenError:
        first.close()
        raise
    return [first, *(first.dup() for _ in range(count - 1))]


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
