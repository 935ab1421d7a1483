"""Where the upstream is: one address or several, each a URL or the path of a Unix socket."""

from dataclasses import dataclass

UNIX = "unix:"
# sockaddr_un holds 108 bytes, the last of them zero (unix(7)).
UNIX_PATH_BYTES_MAX = 107


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamAddress:
    """One address as it was written: a host, by name or by number, and its port; or a Unix socket (``path``)."""

    text: str
    host: str = ""
    port: int = 0
    path: str = ""
    tls: bool = False

    @property
    def authority(self) -> str:
        """What a Host field says of it."""
        return self.text.partition("//")[2].rstrip("/") or "localhost"


def is_socket_path(path: str) -> bool:
    """Whether a Unix socket can be at ``path``: absolute, and short enough for the kernel."""
    return path.startswith("/") and len(path.encode()) <= UNIX_PATH_BYTES_MAX and "\0" not in path
