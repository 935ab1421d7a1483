"""``config.yaml``: who connects to the gateway, what it connects to, and what one connection may take."""

from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Annotated

from pydantic import BeforeValidator, Field, SecretStr, model_validator

from gateway.config.addresses import UNIX, UpstreamAddress, is_socket_path
from gateway.config.models import Section, contradiction
from gateway.config.scalars import duration_s, expected, flag, optional, reader_of, secret, size_bytes, text, whole
from gateway.config.upstream_urls import upstream_addresses

Host = Annotated[str, text("a host name or an IP address", r"[A-Za-z0-9._:-]+")]
Port = Annotated[int, whole(0, 65535)]
File = Annotated[str | None, optional(text("a file", length_max=4096))]
AdminToken = Annotated[SecretStr | None, secret("a token of at least 16 characters", {}, length_min=16)]


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens on ``host``."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _listen_host() -> BeforeValidator:
    what = "a host name, an IP address or unix:/path"
    read_host = reader_of(text(what, r"[A-Za-z0-9._:-]+"))

    def read(value: object) -> str:
        name = value.strip() if isinstance(value, str) else ""
        if not name.startswith(UNIX):
            host: str = read_host(value)
            return host
        if not is_socket_path(name.removeprefix(UNIX)):
            raise expected(what, value)
        return name

    return BeforeValidator(read)


def _open_paths() -> BeforeValidator:
    known = ("/metrics", "/healthz", "/readyz")

    def read(value: object) -> tuple[str, ...]:
        listed = value.split(",") if isinstance(value, str) else value or []
        paths = [str(path).strip() for path in listed] if isinstance(listed, list) else ["?"]
        if not all(path in known for path in paths if path):
            raise expected(f"some of {', '.join(known)}", value)
        return tuple(path for path in paths if path)

    return BeforeValidator(read)


def _network() -> BeforeValidator:
    def read(value: object) -> IPv4Network | IPv6Network:
        try:
            return ip_network(value.strip() if isinstance(value, str) else "")
        except ValueError:
            raise expected("a network such as 10.0.0.0/8 or an address", value) from None

    return BeforeValidator(read)


class ListenTls(Section):
    """The certificate that clients are shown: PEM files, seen from the folder of config.yaml."""

    certificate: File = None
    key: File = None

    @model_validator(mode="after")
    def _both_or_none(self) -> "ListenTls":
        for name, other in (("key", "certificate"), ("certificate", "key")):
            if getattr(self, name) is None and getattr(self, other) is not None:
                raise contradiction((name,), f"expected a file, found none, yet there is a {other}")
        return self

    @property
    def files(self) -> tuple[str, ...]:
        """Certificate and key; none where TLS is off."""
        return (self.certificate, self.key) if self.certificate and self.key else ()


class Listen(Section):
    """Where clients connect."""

    # Nothing listens wider than it was asked to; a container sets HOST=0.0.0.0. unix:/path has no port.
    host: Annotated[str, _listen_host()] = "127.0.0.1"
    port: Port = 8080  # 0: any free port
    # Connections that the kernel keeps while all workers are busy; a burst of one client's whole pool and more.
    backlog: Annotated[int, whole(1, 65535)] = 1024
    tls: ListenTls = ListenTls()


class Admin(Section):
    """Where Prometheus and operators connect."""

    host: Host = "127.0.0.1"
    port: Port = 9090
    # Asked for by every path; without one the listener must stay on loopback.
    token: AdminToken = None
    # Answered without the token all the same, for scrapers and probes that cannot carry one.
    open_paths: Annotated[tuple[str, ...], _open_paths()] = ()


class Upstream(Section):
    """Phase 1: where it is and how long it may take."""

    addresses: Annotated[tuple[UpstreamAddress, ...], upstream_addresses()] = Field(alias="url")
    # Who vouches for the certificate of an https:// address: a PEM file. Blank: the authorities that the system trusts.
    ca_file: File = None
    # The name that the certificate must have, where it is not the host of the address.
    server_name: Annotated[str | None, optional(text("a host name", r"[A-Za-z0-9._-]+"))] = None
    # Names are looked up again this often, beside the calls; a lookup does not tell the name's own time to live.
    dns_ttl_s: Annotated[float, duration_s("100ms", "1d")] = Field(default=30.0, alias="dns_ttl")
    # Failures in a row (no connection, none of an answer, none in time) after which an address gets no calls, unless
    # it is the last one. One failure may be a restart; three are not chance.
    eject_after: Annotated[int, whole(1, 1000)] = 3
    # And for how long: then one call tries it. Twice as long each time that fails, up to eight times.
    eject_for_s: Annotated[float, duration_s("10ms", "1h")] = Field(default=10.0, alias="eject_for")
    # It stands in the same network; one lost SYN (1 s) may be sent again.
    connect_timeout_s: Annotated[float, duration_s("1ms", "1m")] = Field(default=2.0, alias="connect_timeout")
    # From the end of the request to the answer's head: the slowest cast, with room.
    first_byte_timeout_s: Annotated[float, duration_s("1ms", "1h")] = Field(default=30.0, alias="first_byte_timeout")
    # Between two pieces of an answer: event streams send a comment every 15 to 30 s.
    idle_timeout_s: Annotated[float, duration_s("1ms", "1h")] = Field(default=60.0, alias="idle_timeout")
    # actix closes idle connections after 5 s; whoever lets go first never writes into a closing connection.
    keepalive_idle_s: Annotated[float, duration_s("0s", "1h")] = Field(default=4.0, alias="keepalive_idle")
    # Per worker and address. actix accepts 25,000 in all; more at once than this is a queue better kept on our side.
    connections_max: Annotated[int, whole(1, 65_536)] = 256


class Limits(Section):
    """What one client, and all of them together, may take of a worker."""

    # nginx's and actix's order of size; cookies and tokens rarely pass 8 KiB.
    head_bytes_max: Annotated[int, size_bytes("1KiB", "1MiB")] = 32 * 1024
    headers_max: Annotated[int, whole(8, 1000)] = 128  # aiohttp's parser, behind us, takes no more
    target_bytes_max: Annotated[int, size_bytes("64B", "64KiB")] = 8 * 1024
    # Slow loris: a head takes one packet or two.
    header_timeout_s: Annotated[float, duration_s("100ms", "10m")] = Field(default=10.0, alias="header_timeout")
    # A body that stops coming; longer than any mobile network's handover.
    body_stall_timeout_s: Annotated[float, duration_s("100ms", "1h")] = Field(default=30.0, alias="body_stall_timeout")
    # nginx's default; above the 60 s after which load balancers let go first.
    keepalive_timeout_s: Annotated[float, duration_s("0s", "1h")] = Field(default=75.0, alias="keepalive_timeout")
    # WebSockets on which neither side says anything; most libraries ping every 20 to 60 s.
    tunnel_idle_timeout_s: Annotated[float, duration_s("1s", "1d")] = Field(default=600.0, alias="tunnel_idle_timeout")
    connections_max: Annotated[int, whole(1, 1_000_000)] = 20_000  # per worker; some 5 KiB each while idle: 100 MiB
    # Per worker and client address. 0 is no limit: behind a load balancer all clients have its address.
    connections_per_address_max: Annotated[int, whole(0, 1_000_000)] = 0
    # Per worker: calls that have begun and not ended. Sixteen for each upstream connection may wait; with up to twice
    # buffered_bytes_max each, and what the kernel keeps, that is at most some 600 MiB.
    in_flight_max: Annotated[int, whole(1, 1_000_000)] = 4096
    # Of one request. Bodies stream, so this costs no memory; it bounds what one call may move. Policies may differ.
    body_bytes_max: Annotated[int, size_bytes("0B", "1024GiB")] = 4 * 1024**3
    # A second, asked of uploads only while other calls wait for the upstream connections that slow ones hold.
    body_bytes_per_s_min: Annotated[int, size_bytes("0B", "1GiB")] = Field(default=1024, alias="body_rate_min")
    # Per stream and direction, before its sender is paused: 20,000 streams that all stall stay under 3 GiB.
    buffered_bytes_max: Annotated[int, size_bytes("4KiB", "16MiB")] = 64 * 1024
    # Of an answer, to read the cast's id from; a longer answer is charged without one.
    captured_bytes_max: Annotated[int, size_bytes("1KiB", "16MiB")] = 64 * 1024


class Forwarding(Section):
    """What Phase 1 is told of a request's way to it, and whose word on the client's address is taken."""

    # false: X-Forwarded-… of the request pass as they came, and none is added.
    x_forwarded: Annotated[bool, flag()] = True
    # This gateway's name in Via, on requests and answers. None by default: clients are not to know of the gateway.
    via: Annotated[str | None, optional(text("a name", r"[A-Za-z0-9!#$%&'*+.^_`|~:-]+"))] = None
    trusted_proxies: tuple[Annotated[IPv4Network | IPv6Network, _network()], ...] = ()
    # The field in which they tell the client's address. None: X-Forwarded-For, read from the right.
    client_address_header: Annotated[str | None, optional(text("a header name", r"[A-Za-z0-9-]+"))] = None

    @model_validator(mode="after")
    def _somebody_is_trusted(self) -> "Forwarding":
        if self.client_address_header is not None and not self.trusted_proxies:
            raise contradiction(
                ("client_address_header",), "expected trusted_proxies beside it: nobody else is believed"
            )
        return self
