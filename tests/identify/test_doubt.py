"""Credentials that Phase 1 might read differently are refused: else somebody casts for free, or at another's cost."""

import pytest

from tests.identify.conftest import Setting

PLAIN = [
    (b"Bearer ck_0123", None, None),
    (None, b"ck_0123", None),
    (None, None, b"session=abc.DEF-_~%41"),
    (None, None, b'a=b; session=abc; theme="dark, blue"; x=\xc3\xa4'),
    (None, None, b"session_id=1; mysession=2"),
    (b"Bearer a", b"b", b"session=c"),
]
DOUBTFUL = [
    (b"Bearer ck\xc2\xa0", None, None),
    (b"Bearer \xc2\xa0ck", None, None),
    (b"Bearer ck\t", None, None),
    (None, b"ck\xff", None),
    (None, None, b"session=junk; session=real"),
    (None, None, b"session=; session=real"),
    (None, None, b"session=real, session=junk"),
    (None, None, b"a=b, session=real"),
    (None, None, b'session="real"'),
    (None, None, b'session="\\162eal"'),
    (None, None, b'x="a; session=junk"; session=real'),
    (None, None, b"\xc2\xa0session=real"),
    (None, None, b"\x0bsession=real"),
    (None, None, b"session=re al"),
    (None, None, b"session=" + b"a" * 5000),
]
Shown = tuple[bytes | None, bytes | None, bytes | None]


@pytest.mark.parametrize("shown", PLAIN)
def test_what_everybody_reads_alike_is_taken(setting: Setting, shown: Shown) -> None:
    assert setting.identify.doubt_about(*shown) is None


@pytest.mark.parametrize("shown", DOUBTFUL)
def test_what_may_be_read_in_two_ways_is_not(setting: Setting, shown: Shown) -> None:
    doubt = setting.identify.doubt_about(*shown)
    assert doubt is not None
    assert doubt.startswith("found ")
