"""What raw header values show, and what they never let through."""

import pytest

from gateway.credentials import CREDENTIAL_BYTES_MAX, Credentials, key_in_header, value_in_cookie
from tests.identify.conftest import Setting

LONG = b"x" * CREDENTIAL_BYTES_MAX


@pytest.mark.parametrize(
    ("value", "key"),
    [
        (b"Bearer ck_1", b"ck_1"),
        (b"bearer ck_1", b"ck_1"),
        (b"BEARER \t ck_1 ", b"ck_1"),
        (b"Bearer\tck_1", b"ck_1"),
        (b"Bearer a b", b"a b"),
        (b"Bearer", None),
        (b"Bearer ", None),
        (b"Bearerck_1", None),
        (b"Basic ck_1", None),
        (b"", None),
        (b"Bearer " + LONG, LONG),
        (b"Bearer x" + LONG, None),
        (None, None),
    ],
)
def test_a_key_follows_its_scheme_in_any_case(value: bytes | None, key: bytes | None) -> None:
    assert key_in_header(value, b"bearer") == key


@pytest.mark.parametrize(("value", "key"), [(b" ck_1 ", b"ck_1"), (b"", None), (b"  ", None), (LONG + b"x", None)])
def test_without_a_scheme_the_whole_value_is_the_key(value: bytes, key: bytes | None) -> None:
    assert key_in_header(value, None) == key


@pytest.mark.parametrize(
    ("header", "value"),
    [
        (b"session=abc", b"abc"),
        (b"a=1; session=abc; b=2", b"abc"),
        (b"a=1;session=abc", b"abc"),
        (b"a=1; \tsession = abc ;", b"abc"),
        (b'session="abc"', b"abc"),
        (b'session="', b'"'),
        (b"session=a=b", b"a=b"),
        (b"session=first; session=second", b"first"),
        (b"xsession=1; session=abc", b"abc"),
        (b"sessionx=1; session=abc", b"abc"),
        (b"session; session=abc", b"abc"),
        (b"a=session; b=2", None),
        (b"Session=abc", None),
        (b"session=", None),
        (b"", None),
        (None, None),
        (b"session=" + LONG, LONG),
        (b"session=x" + LONG, None),
    ],
)
def test_the_session_is_the_first_cookie_of_its_name(header: bytes | None, value: bytes | None) -> None:
    assert value_in_cookie(header, b"session") == value


def test_credentials_never_show_themselves() -> None:
    text = repr(Credentials(b"ck_secret", None, b"cookie_secret"))
    assert "secret" not in text
    assert "None" in text


async def test_headers_that_show_nothing_are_no_credentials(setting: Setting) -> None:
    identify = setting.identify
    assert identify.credentials_from(None, None, None) is None
    assert identify.credentials_from(b"Basic eA==", b"", b"a=1") is None
    assert identify.credentials_from(b"Bearer a", b"b", b"session=c") == Credentials(b"a", b"b", b"c")
    assert identify.credentials_from(b"Basic eA==", b"b", None) == Credentials(None, b"b", None)
