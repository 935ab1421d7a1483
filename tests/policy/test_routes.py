"""Which policy a target falls under, and that no spelling of a policed path gets past its policy."""

from functools import partial
from timeit import repeat
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.policy.routes import Ambiguous, RouteTable, is_canonical, loosened
from gateway.policy.rules import Policy

CAST = Policy(name="cast", methods=frozenset({"POST"}), path="/v1/cast")
BELOW = Policy(name="below", methods=frozenset(), path="/v2/*")
DEEPER = Policy(name="deeper", methods=frozenset({"GET"}), path="/v2/deep/*")
TABLE = RouteTable((CAST, BELOW, DEEPER))


@pytest.mark.parametrize(
    ("method", "target", "policy"),
    [
        (b"POST", b"/v1/cast", CAST),
        (b"POST", b"/v1/cast?a=%2F..", CAST),
        (b"POST", b"/v1/cast?", CAST),
        (b"GET", b"/v1/cast", None),
        (b"POST", b"/v1/casts", None),
        (b"POST", b"/v1/cast/1", None),
        (b"GET", b"/v2/x", BELOW),
        (b"GET", b"/v2/a%20b/c", BELOW),
        (b"GET", b"/v2", None),
        (b"GET", b"/v2/deep/x", DEEPER),
        (b"POST", b"/v2/deep/x", BELOW),
        (b"OPTIONS", b"*", None),
        (b"GET", b"/", None),
        (b"GET", b"//", None),
        (b"GET", b"/a/%2e%2e/b", None),
    ],
)
def test_a_plain_target_finds_its_policy(method: bytes, target: bytes, policy: Policy | None) -> None:
    assert TABLE.match(method, target) is policy


@pytest.mark.parametrize(
    "target",
    [
        b"/v1/c%61st",
        b"/v1/c%2561st",
        b"/v1/c%252561st",
        b"//v1/cast",
        b"/v1//cast",
        b"/a/../v1/cast",
        b"/./v1/cast",
        b"/v1/cast/",
        b"/v1/cast/.",
        b"/v1/cast/x/..",
        b"/v1%2fcast",
        b"/v1%5Ccast",
        b"/v1\\cast",
        b"/V1/CAST",
        b"/v1/cast;a=b",
        b"/v1;x/cast",
        b"/v1/cast%00",
        b"/v1/cast%20",
        b"/v1/cast.",
        b"/..;/v1/cast",
        b"http://host/v1/cast",
        b"HTTPS://host:1/v1/cast?x",
        b"http://host//v1/%63ast",
    ],
)
def test_another_spelling_of_a_policed_path_is_ambiguous(target: bytes) -> None:
    match = TABLE.match(b"POST", target)
    assert isinstance(match, Ambiguous)
    assert match.policy is CAST


def test_a_wildcard_does_not_swallow_another_spelling_of_an_exact_path() -> None:
    everything = Policy(name="everything", methods=frozenset(), path="/*")
    table = RouteTable((CAST, everything))
    assert table.match(b"POST", b"/v1/cast") is CAST
    assert isinstance(table.match(b"POST", b"/v1/cast/"), Ambiguous)
    assert table.match(b"POST", b"/v1/keys") is everything


_segment = st.sampled_from(["a", "v1", "cast", "..", ".", "", "x;y", "%2e"])


@given(st.lists(_segment, max_size=6), st.integers(0, 3))
def test_what_a_decoding_and_normalising_server_reads_as_policed_never_passes(parts: list[str], rounds: int) -> None:
    path = "/" + "/".join(parts)
    for _ in range(rounds):
        path = quote(path, safe="/")
    loose = loosened(path.encode())
    match = TABLE.match(b"POST", path.encode())
    if loose == b"/v1/cast":
        assert match is CAST if path == "/v1/cast" else isinstance(match, Ambiguous)
    else:
        assert match is None


@given(st.binary(max_size=60))
def test_any_bytes_are_matched_without_an_exception(target: bytes) -> None:
    TABLE.match(b"POST", target)


@pytest.mark.parametrize(
    "path", [b"/", b"/v1/cast", b"/a.b/c-d_e~f", b"/a%20b", b"/caf%C3%A9", b"/a:b@c", b"/...", b"/a..b"]
)
def test_a_canonical_path_is_known_as_one(path: bytes) -> None:
    assert is_canonical(path)


@pytest.mark.parametrize(
    "path", [b"", b"a", b"/a b", b"/%61", b"/%2F", b"/%2f", b"/%", b"/%0a", b"/\xff", b"/a//b", b"/./a", b"/a;b"]
)
def test_any_other_path_is_not(path: bytes) -> None:
    assert not is_canonical(path)


# --- how long it takes


def _table_of(count: int) -> RouteTable:
    return RouteTable(
        Policy(name=f"p{n}", methods=frozenset({"POST"}), path=f"/v1/area{n}/cast" if n % 2 else f"/v1/area{n}/*")
        for n in range(count)
    )


@pytest.mark.parametrize("target", [b"/v1/area1/cast", b"/v1/area1/cast?q=1", b"/v1/area2/a/b/c", b"/elsewhere/at/all"])
def test_a_match_costs_no_more_with_five_thousand_policies_than_with_ten(target: bytes) -> None:
    few, many = _table_of(10), _table_of(5000)
    assert getattr(few.match(b"POST", target), "name", None) == getattr(many.match(b"POST", target), "name", None)
    took = {
        name: min(repeat(partial(table.match, b"POST", target), number=200, repeat=30))
        for name, table in (("few", few), ("many", many))
    }
    assert took["many"] < 2 * took["few"]
