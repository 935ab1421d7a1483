"""What rate limits count apart: for each kind of key, and for several together."""

from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.credentials import Credentials
from gateway.policy.rules import KEY_SEPARATOR, Policy
from gateway.relay.rate_keys import rate_key

POLICY = Policy(name="cast", methods=frozenset(), path="/v1/cast")
LINES = [b"Host: a\r\n", b"x-tenant:  acme \r\n", b"X-Empty:\r\n"]


def digest(value: bytes) -> str:
    return sha256(value).hexdigest()[:32]


def key_of(key: str, lines: list[bytes] = LINES, credentials: Credentials | None = None) -> str:
    return rate_key(key, POLICY, "42", lines, credentials, b"192.0.2.7")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("account", "42"),
        ("ip", "192.0.2.7"),
        ("route", "cast"),
        ("header:X-Tenant", digest(b"acme")),
        ("header:X-Empty", digest(b"")),
        ("header:X-None", ""),
        ("account,route", "42|cast"),
        ("ip,header:X-None", "192.0.2.7|"),
    ],
)
def test_each_kind_of_key(key: str, value: str) -> None:
    assert key_of(key) == value


def test_a_key_of_an_api_key_does_not_show_it() -> None:
    assert key_of("api_key", credentials=Credentials(b"secret", None, None)) == digest(b"secret")
    assert key_of("api_key", credentials=Credentials(None, None, b"session")) == digest(b"session")
    assert key_of("api_key") == digest(b"")


@given(st.lists(st.tuples(st.text(max_size=4), st.text(max_size=4)), min_size=2, max_size=2, unique=True))
def test_different_values_never_make_the_same_key_together(pairs: list[tuple[str, str]]) -> None:
    keys = [
        rate_key(
            KEY_SEPARATOR.join(("account", "route")),
            Policy(name=route, methods=frozenset(), path="/"),
            account,
            (),
            None,
            b"",
        )
        for account, route in pairs
    ]
    assert keys[0] != keys[1]
