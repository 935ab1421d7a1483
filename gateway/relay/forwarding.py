"""What the next hop is told of the way a message came here, and whose word on the client's address is taken.

``X-Forwarded-For`` grows at its right end: each proxy appends the address that it was called from. So its entries are
believed from the right, as long as a trusted proxy wrote them; the first that no trusted proxy has is the client, and
all further left is what the client itself claims.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway.config.settings_connections import Forwarding as ForwardingSettings
    from gateway.relay.client import ClientConnection
    from gateway.relay.heads import Fields
    from gateway.relay.request import Request

Network = IPv4Network | IPv6Network
# Proxies that stand one behind the other; what claims to have passed more of them is not read to its end.
_PROXIES_MAX = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Forwarding:
    """``config.yaml``'s section of the same name."""

    x_forwarded: bool = True
    via: bytes = b""  # this gateway's name; empty: no Via
    via_line: bytes = field(init=False, default=b"")  # of answers
    trusted_proxies: tuple[Network, ...] = ()
    client_address_field: bytes | None = None  # lower case; None: X-Forwarded-For

    @classmethod
    def from_settings(cls, settings: "ForwardingSettings") -> "Forwarding":
        """As ``config.yaml`` has it."""
        return cls(
            x_forwarded=settings.x_forwarded,
            via=(settings.via or "").encode(),
            trusted_proxies=settings.trusted_proxies,
            client_address_field=settings.client_address_header.lower().encode()
            if settings.client_address_header
            else None,
        )

    def __post_init__(self) -> None:
        if self.via:
            object.__setattr__(self, "via_line", b"Via: 1.1 %b\r\n" % self.via)

    def is_trusted(self, address: bytes) -> bool:
        """Whether what connects from ``address`` is a proxy of ours."""
        if not self.trusted_proxies:
            return False
        found = _address(address)
        return found is not None and any(found in network for network in self.trusted_proxies)

    def client_address(self, peer: bytes, request: "Request") -> bytes:
        """Who asks, where a trusted proxy called from ``peer``; ``peer`` itself where it says nothing of use."""
        if self.client_address_field is not None:
            values = list(_values(request.lines, self.client_address_field))
            found = _address(values[0]) if len(values) == 1 else None
            return peer if found is None else str(found).encode()
        client = peer
        for entry in reversed((request.forwarded_for or b"").rsplit(b",", _PROXIES_MAX)):
            found = _address(entry)
            if found is None:
                break
            client = str(found).encode()
            if not self.is_trusted(client):
                break
        return client

    def head(self, request: "Request", fields: "Fields", client: "ClientConnection", host_line: bytes) -> bytes:
        """The head's lines that are the same for every request with the same head on this connection."""
        parts = [request.method, b" ", request.target, b" HTTP/1.1\r\n", *request.end_to_end_lines(fields)]
        if request.host is None:  # HTTP/1.0
            parts.append(host_line)
        self.tell(parts, request, client)
        return b"".join(parts)

    def tell(self, parts: list[bytes], request: "Request", client: "ClientConnection") -> None:
        """Appends the field lines about the way to the head of a request."""
        if not self.x_forwarded:
            parts += request.forwarded_lines
        elif request.forwarded_lines:
            self._tell_further(parts, request, client)
        else:
            if request.host is not None:  # HTTP/1.0 may name none
                parts.append(b"X-Forwarded-Host: %b\r\n" % request.host)
            parts.append(client.forwarded_line)
        if self.via:
            parts.append(b"Via: 1.%d %b\r\n" % (not request.http_1_0, self.via))

    def _tell_further(self, parts: list[bytes], request: "Request", client: "ClientConnection") -> None:
        """The same for a request that has passed a proxy, or says so: its word counts where it is trusted."""
        host, proto = request.host, client.proto
        if client.is_trusted_proxy:
            host = request.forwarded_host or host
            proto = request.forwarded_proto or proto
        if host is not None:
            parts.append(b"X-Forwarded-Host: %b\r\n" % host)
        came_from = (
            client.address if request.forwarded_for is None else b"%b, %b" % (request.forwarded_for, client.address)
        )
        parts.append(b"X-Forwarded-For: %b\r\nX-Forwarded-Proto: %b\r\n" % (came_from, proto))


def _address(text: bytes) -> IPv4Address | IPv6Address | None:
    """An address as proxies write it: bare, with a port, or in brackets."""
    text = text.strip()
    if text.startswith(b"["):
        text = text[1:].partition(b"]")[0]
    elif text.count(b":") == 1:
        text = text.partition(b":")[0]
    try:
        found = ip_address(text.decode("ascii"))
    except ValueError:
        return None
    if isinstance(found, IPv6Address) and found.ipv4_mapped is not None:
        return found.ipv4_mapped  # a listener for both families sees ::ffff:192.0.2.1
    return found


def _values(lines: Iterable[bytes], name: bytes) -> Iterable[bytes]:
    for line in lines:
        found, _, value = line.partition(b":")
        if found.lower() == name:
            yield value
