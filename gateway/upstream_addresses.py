"""From the configured addresses to an upstream that the relay can call: TCP or a Unix socket, plain or TLS."""

import asyncio
import ipaddress
import ssl
from pathlib import Path
from typing import TYPE_CHECKING

from gateway import tls
from gateway.config.addresses import UpstreamAddress
from gateway.relay.balancer import Balancer, Health, LookUp, Name, Target, look_up
from gateway.relay.pool import Connector, Pool
from gateway.relay.relay import Relay

if TYPE_CHECKING:
    from gateway.config.settings_connections import Upstream

# Calls that may wait for an upstream connection before the rest is told to come back later.
WAITING_MAX = 10_000
# A peer that does not answer our goodbye is left without one.
_TLS_SHUTDOWN_TIMEOUT_S = 2.0


def new_upstream(relay: Relay, settings: "Upstream", folder: Path, *, look_up: LookUp = look_up) -> Balancer:
    """The upstream of ``settings``; files are seen from ``folder``. ``look_up_forever`` is the caller's to start.

    Raises TlsError.
    """
    addresses = settings.addresses
    context = None
    if any(address.tls for address in addresses):
        context = tls.client_context(folder / settings.ca_file if settings.ca_file else None)
    targets, names = [], []
    for origin, address in enumerate(addresses):
        if address.path or _is_number(address.host):
            targets.append(Target(origin=origin, host=address.host, port=address.port, path=address.path))
        else:
            names.append(Name(origin=origin, host=address.host, port=address.port))

    def new_pool(owner: Balancer, target: Target) -> Pool:
        address = addresses[target.origin]
        verified = (context, settings.server_name or address.host) if context is not None and address.tls else None
        return Pool(
            relay,
            str(target),
            _connector(target, verified, settings.connect_timeout_s),
            host_line=_host_line(address),
            connections_max=settings.connections_max,
            waiting_max=WAITING_MAX,
            keepalive_idle_s=settings.keepalive_idle_s,
            owner=owner,
        )

    return Balancer(
        relay,
        targets=targets,
        names=names,
        health=Health(eject_after=settings.eject_after, eject_for_s=settings.eject_for_s, dns_ttl_s=settings.dns_ttl_s),
        new_pool=new_pool,
        host_line=_host_line(addresses[0]),
        waiting_max=WAITING_MAX,
        look_up=look_up,
    )


def _host_line(address: UpstreamAddress) -> bytes:
    return f"Host: {address.authority}\r\n".encode()


def _connector(target: Target, verified: tuple[ssl.SSLContext, str] | None, handshake_timeout_s: float) -> Connector:
    loop = asyncio.get_running_loop()
    if target.path:
        return lambda factory: loop.create_unix_connection(factory, target.path)
    if verified is None:
        return lambda factory: loop.create_connection(factory, target.host, target.port)
    context, name = verified
    return lambda factory: loop.create_connection(
        factory,
        target.host,
        target.port,
        ssl=context,
        server_hostname=name,
        ssl_handshake_timeout=handshake_timeout_s,
        ssl_shutdown_timeout=_TLS_SHUTDOWN_TIMEOUT_S,
    )


def _is_number(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
