"""A Redis URL means here what it means to redis-py."""

import pytest
from redis.asyncio.connection import SSLConnection, parse_url

from gateway.redis_address import read_address

URLS = (
    "redis://127.0.0.1:6379/0",
    "redis://localhost",
    "redis://:secret@10.0.0.1:7000/3",
    "redis://name:p%40ss%2Fword@example.com/12",
    "redis://[::1]:6380/1",
    "redis://example.com/1?db=4",
    "redis://example.com/none",
    "redis://example.com?username=name&password=secret",
    "unix:///run/redis.sock",
    "unix://name:secret@/run/a%20b.sock?db=2",
    "rediss://example.com:6390/0?ssl_ca_certs=/etc/ca.pem&ssl_cert_reqs=none&ssl_certfile=c.pem&ssl_keyfile=k.pem",
)


@pytest.mark.parametrize("url", URLS)
def test_it_is_read_as_redis_py_reads_it(url: str) -> None:
    theirs, ours = dict(parse_url(url)), read_address(url)
    assert ours.tls == (theirs.pop("connection_class", None) is SSLConnection)
    if url.startswith("unix"):
        assert (ours.path, ours.database) == (theirs.pop("path"), theirs.pop("db", 0))
    else:
        assert (ours.host, ours.port) == (theirs.pop("host"), theirs.pop("port", 6379))
        assert ours.database == theirs.pop("db", 0)
    assert (ours.username, ours.password) == (theirs.pop("username", ""), theirs.pop("password", ""))
    assert dict(ours.options) == theirs


@pytest.mark.parametrize("url", ["http://localhost", "localhost:6379", "redis://localhost?db=first", "redis://h:port"])
def test_what_is_no_redis_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  urllib has a text of its own for a port
        read_address(url)


def test_a_password_is_not_shown() -> None:
    assert "secret" not in repr(read_address("redis://:secret@localhost"))
