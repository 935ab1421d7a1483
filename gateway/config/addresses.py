"""Where the upstream is: one address or several, each a URL or the path of a Unix socket."""

from dataclasses import dataclass
from urllib.parse import urlsplit

from pydantic import BeforeValidator

from gateway.config.scalars import expected, reader_of, url

UNIX = "unix:"
# sockaddr_un holds 108 bytes, the last of them zero (unix(7)).
UNIX_PATH_BYTES_MAX = 107
# More addresses than this are a service's own load balancer to know, by one name.
ADDRESSES_MAX = 64
_FORMS = "http://host:port, https://host:port or unix:/path"


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


def upstream_addresses() -> BeforeValidator:
    """Addresses, as a list or separated by commas, none of them twice."""
    read_url = reader_of(url(_FORMS, "http", "https", host_only=True))

    def read_one(text: object) -> UpstreamAddress:
        if isinstance(text, str) and text.strip().startswith(UNIX):
            path = text.strip().removeprefix(UNIX)
            if not is_socket_path(path):
                raise expected(_FORMS, text)
            return UpstreamAddress(text=text.strip(), path=path)
        address: str = read_url(text)
        parts = urlsplit(address)
        tls = parts.scheme == "https"
        return UpstreamAddress(
            text=address, host=parts.hostname or "", port=parts.port or (443 if tls else 80), tls=tls
        )

    def read(value: object) -> tuple[UpstreamAddress, ...]:
        if isinstance(value, list | tuple):
            listed = list(value)
        else:
            # A single one is read as it came, with the variable that it came from.
            listed = value.split(",") if isinstance(value, str) and "," in value else [value]
        if not 0 < len(listed) <= ADDRESSES_MAX:
            raise expected(f"1 to {ADDRESSES_MAX} addresses", f"{len(listed)} of them")
        addresses = tuple(read_one(one) for one in listed)
        for place, address in enumerate(addresses):
            if address in addresses[:place]:
                raise expected("each address once", address.text)
        return addresses

    return BeforeValidator(read)


def is_socket_path(path: str) -> bool:
    """Whether a Unix socket can be at ``path``: absolute, and short enough for the kernel."""
    return path.startswith("/") and len(path.encode()) <= UNIX_PATH_BYTES_MAX and "\0" not in path
