"""What the upstream is told of a request's way, and which address a rate limit by ``ip`` counts."""

from dataclasses import replace
from ipaddress import ip_network
from typing import Any

import pytest

from gateway.relay.forwarding import Forwarding
from gateway.relay.request import Request
from tests.relay.conftest import Running, answering

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
LOCAL = ip_network("127.0.0.0/8")
TRUSTED = (LOCAL, ip_network("10.0.0.0/8"), ip_network("fdaa::/16"))


def forwarding(running: Running, **changes: Any) -> None:
    running.relay.forwarding = replace(running.relay.forwarding, **changes)


async def head_of(running: Running, request: bytes) -> bytes:
    """The head that the upstream gets for a request."""
    running.upstream.answer = answering(OK)
    client = await running.connect()
    await client.send(request)
    assert b"200 OK" in await client.read_head()
    return running.upstream.heads[-1]


def lines(head: bytes, name: bytes) -> list[bytes]:
    return [line for line in head.split(b"\r\n") if line.lower().startswith(name.lower() + b":")]


async def test_nobody_is_trusted_by_default(running: Running) -> None:
    head = await head_of(
        running,
        b"GET /x HTTP/1.1\r\nHost: h\r\nX-Forwarded-For: 192.0.2.1\r\nX-Forwarded-Proto: https\r\n"
        b"X-Forwarded-Host: other\r\nVia: 1.1 cdn\r\n\r\n",
    )
    assert lines(head, b"X-Forwarded-For") == [b"X-Forwarded-For: 192.0.2.1, 127.0.0.1"]
    assert lines(head, b"X-Forwarded-Proto") == [b"X-Forwarded-Proto: http"]
    assert lines(head, b"X-Forwarded-Host") == [b"X-Forwarded-Host: h"]
    assert lines(head, b"Via") == [b"Via: 1.1 cdn"]


async def test_a_trusted_proxy_is_believed_the_scheme_and_the_host(running: Running) -> None:
    forwarding(running, trusted_proxies=TRUSTED)
    head = await head_of(
        running,
        b"GET /x HTTP/1.1\r\nHost: h\r\nX-Forwarded-For: 192.0.2.1\r\nX-Forwarded-Proto: https\r\n"
        b"X-Forwarded-Host: public.example\r\n\r\n",
    )
    assert lines(head, b"X-Forwarded-For") == [b"X-Forwarded-For: 192.0.2.1, 127.0.0.1"]
    assert lines(head, b"X-Forwarded-Proto") == [b"X-Forwarded-Proto: https"]
    assert lines(head, b"X-Forwarded-Host") == [b"X-Forwarded-Host: public.example"]


async def test_x_forwarded_can_be_left_as_it_came(running: Running) -> None:
    forwarding(running, x_forwarded=False)
    head = await head_of(running, b"GET /x HTTP/1.1\r\nHost: h\r\n\r\n")
    assert b"X-Forwarded" not in head
    head = await head_of(
        running,
        b"GET /x HTTP/1.1\r\nHost: h\r\nx-forwarded-for: 192.0.2.1\r\nX-FORWARDED-FOR: 192.0.2.2\r\n"
        b"X-Forwarded-Proto: gopher\r\n\r\n",
    )
    assert lines(head, b"X-Forwarded-For") == [b"x-forwarded-for: 192.0.2.1", b"X-FORWARDED-FOR: 192.0.2.2"]
    assert lines(head, b"X-Forwarded-Proto") == [b"X-Forwarded-Proto: gopher"]


async def test_via_names_the_gateway_both_ways(running: Running) -> None:
    forwarding(running, via=b"castgate")
    running.upstream.answer = answering(b"HTTP/1.1 200 OK\r\nVia: 1.1 inner\r\nContent-Length: 0\r\n\r\n")
    client = await running.connect()
    await client.send(b"GET /x HTTP/1.1\r\nHost: h\r\nVia: 1.1 cdn\r\n\r\n")
    assert lines(await client.read_head(), b"Via") == [b"Via: 1.1 inner", b"Via: 1.1 castgate"]
    assert lines(running.upstream.heads[0], b"Via") == [b"Via: 1.1 cdn", b"Via: 1.1 castgate"]
    await client.send(b"GET /x HTTP/1.0\r\n\r\n")
    await client.read_head()
    assert lines(running.upstream.heads[1], b"Via") == [b"Via: 1.0 castgate"]


@pytest.mark.parametrize(
    ("peer", "forwarded_for", "expected"),
    [
        (b"127.0.0.1", None, b"127.0.0.1"),  # the proxy itself asks
        (b"127.0.0.1", b"192.0.2.7", b"192.0.2.7"),
        (b"127.0.0.1", b"198.51.100.1, 192.0.2.7", b"192.0.2.7"),  # the left one is the client's claim
        (b"127.0.0.1", b"198.51.100.1, 192.0.2.7, 10.1.2.3", b"192.0.2.7"),  # two proxies
        (b"127.0.0.1", b"10.9.9.9, 10.1.2.3", b"10.9.9.9"),  # all are ours: the first of them asked
        (b"127.0.0.1", b"192.0.2.7:5000", b"192.0.2.7"),
        (b"127.0.0.1", b"[2001:db8::1]:5000", b"2001:db8::1"),
        (b"127.0.0.1", b"2001:DB8:0::1", b"2001:db8::1"),  # one address, one spelling: one rate limit
        (b"fdaa::9", b"::ffff:192.0.2.7", b"192.0.2.7"),
        (b"127.0.0.1", b"192.0.2.7, unknown", b"127.0.0.1"),  # what nobody understands ends the chain
        (b"127.0.0.1", b"192.0.2.7,", b"127.0.0.1"),
        (b"127.0.0.1", b"\xff\xfe", b"127.0.0.1"),
        (b"127.0.0.1", b"192.0.2.7, " + b", ".join([b"10.0.0.1"] * 5000), b"10.0.0.1"),
    ],
)
def test_x_forwarded_for_is_read_from_the_right(peer: bytes, forwarded_for: bytes | None, expected: bytes) -> None:
    request = Request()
    request.forwarded_for = forwarded_for
    assert Forwarding(trusted_proxies=TRUSTED).client_address(peer, request) == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([b"192.0.2.7"], b"192.0.2.7"),
        ([b"2001:DB8::0:1"], b"2001:db8::1"),
        ([], b"127.0.0.1"),
        ([b"nobody"], b"127.0.0.1"),
        ([b"192.0.2.7", b"192.0.2.8"], b"127.0.0.1"),  # two answers are none
    ],
)
def test_the_address_may_stand_in_a_field_of_its_own(values: list[bytes], expected: bytes) -> None:
    request = Request()
    request.forwarded_for = b"203.0.113.9"
    request.lines = [b"Host: h\r\n", *[b"Fly-Client-IP: %b\r\n" % value for value in values]]
    told = Forwarding(trusted_proxies=TRUSTED, client_address_field=b"fly-client-ip")
    assert told.client_address(b"127.0.0.1", request) == expected


def test_who_is_no_proxy_of_ours_is_not_trusted() -> None:
    told = Forwarding(trusted_proxies=TRUSTED)
    assert told.is_trusted(b"10.255.0.1")
    assert told.is_trusted(b"::ffff:10.0.0.1")
    assert not told.is_trusted(b"11.0.0.1")
    assert not told.is_trusted(b"unknown")  # a Unix socket's peer
    assert not Forwarding().is_trusted(b"127.0.0.1")
