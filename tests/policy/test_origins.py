"""Origins: what is one, in which spelling, and what only looks like one."""

import pytest

from gateway.policy.origins import origin_of


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://shop.example", "https://shop.example"),
        ("https://SHOP.example:443/a?b#c", "https://shop.example"),
        ("http://shop.example:80/", "http://shop.example"),
        ("http://localhost:3000/x?session={CHECKOUT_SESSION_ID}", "http://localhost:3000"),
        ("http://[::1]:8080/", "http://[::1]:8080"),
        ("https://shop.example?x=1", "https://shop.example"),
    ],
)
def test_an_origin_has_one_spelling(url: str, origin: str) -> None:
    assert origin_of(url) == origin


@pytest.mark.parametrize(
    "url",
    [
        "",
        "shop.example",
        "//shop.example",
        "/path",
        "ftp://shop.example",
        "javascript:alert(1)",
        "https:shop.example",
        "https:///shop.example",
        "https://",
        "https://:443",
        "https://user@shop.example",
        "https://shop.example@evil.example",
        "https://shop.example\\@evil.example",
        "https://evil.example\\.shop.example",
        "https://shop.example:0",
        "https://shop.example:65536",
        "https://shop.example:x",
        "https://shop example",
        " https://shop.example",
        "https://shop.example\n",
        "https://shop.example/\r\nSet-Cookie: a",
        "https://shöp.example",
        "https://shop..example",
        "https://-shop.example",
        "HTTPS://shop.example",
        "https://shop.example/" + "x" * 2048,
        "https://shop.example\x00",
    ],
)
def test_what_two_parsers_could_read_differently_is_none(url: str) -> None:
    assert origin_of(url) is None
