"""What some server would read as a policed path is never passed without its policy: generated spellings, model servers.

Each model is how a kind of server comes from a target to the path that it routes by. The gateway knows none of them.
"""

import itertools
import re
from collections.abc import Callable, Sequence
from random import Random
from urllib.parse import unquote_to_bytes

import pytest

from gateway.policy.routes import Ambiguous, RouteTable
from gateway.policy.rules import Policy

CAST = Policy(name="cast", methods=frozenset({"POST"}), path="/v1/cast")
BELOW = Policy(name="below", methods=frozenset(), path="/v2/*")
TABLE = RouteTable((CAST, BELOW))
Rewrite = Callable[[Random, bytes], bytes]


def _path(target: bytes) -> bytes:
    return re.sub(rb"^[A-Za-z][A-Za-z0-9+.-]*://[^/?#]*", b"", target).partition(b"#")[0].partition(b"?")[0]


def _without_dots(path: bytes) -> bytes:
    kept: list[bytes] = []
    for segment in path.split(b"/"):
        if segment == b"..":
            if len(kept) > 1:
                kept.pop()
        elif segment != b".":
            kept.append(segment)
    return b"/".join(kept)


def _merged(path: bytes) -> bytes:
    return re.sub(rb"/+", b"/", path)


def byte_for_byte(target: bytes) -> bytes:
    return _path(target)


def nginx(target: bytes) -> bytes:
    """Decodes once, merges slashes, resolves dots."""
    return _without_dots(_merged(unquote_to_bytes(_path(target))))


def decodes_twice(target: bytes) -> bytes:
    """A proxy that decodes before a server that decodes."""
    return _without_dots(_merged(unquote_to_bytes(unquote_to_bytes(_path(target)))))


def tomcat(target: bytes) -> bytes:
    """Strips path parameters before it resolves dots."""
    return _without_dots(_merged(unquote_to_bytes(re.sub(rb";[^/]*", b"", _path(target)))))


def iis(target: bytes) -> bytes:
    """Backslashes are slashes, case does not matter, dots and blanks at a segment's end do not count."""
    path = unquote_to_bytes(_path(target)).replace(b"\\", b"/").lower()
    return b"/".join(segment.rstrip(b". ") or segment for segment in _without_dots(_merged(path)).split(b"/"))


def lenient_framework(target: bytes) -> bytes:
    """Redirects or routes with and without a trailing slash."""
    return nginx(target).rstrip(b"/") or b"/"


def c_string(target: bytes) -> bytes:
    """Ends at a NUL."""
    return unquote_to_bytes(_path(target)).partition(b"\0")[0]


SERVERS = (byte_for_byte, nginx, decodes_twice, tomcat, iis, lenient_framework, c_string)


def _escape_one(random: Random, path: bytes) -> bytes:
    place = random.randrange(1, len(path))
    digits = random.choice((b"%%%02x", b"%%%02X"))
    return path[:place] + digits % path[place] + path[place + 1 :]


def _escape_all(_random: Random, path: bytes) -> bytes:
    return b"/" + b"".join(b"%%%02x" % character for character in path[1:])


def _inserted(*pieces: bytes) -> Rewrite:
    """One of the pieces in the place of some slash."""

    def rewrite(random: Random, path: bytes) -> bytes:
        slashes = [place for place, character in enumerate(path) if character == 47]
        if not slashes:
            return path
        place = random.choice(slashes)
        return path[:place] + random.choice(pieces) + path[place + 1 :]

    return rewrite


def _appended(*pieces: bytes) -> Rewrite:
    return lambda random, path: path + random.choice(pieces)


def _prefixed(*pieces: bytes) -> Rewrite:
    return lambda random, path: random.choice(pieces) + path


def _other_case(random: Random, path: bytes) -> bytes:
    place = random.randrange(len(path))
    return path[:place] + path[place : place + 3].swapcase() + path[place + 3 :]


REWRITES: Sequence[Rewrite] = (
    _escape_one,
    _escape_all,
    _inserted(b"//", b"///", b"/./", b"/a/../", b"/.//", b"/a/b/../../", b"/x/..//"),
    _inserted(b"/%2e/", b"/a/%2e%2e/", b"/a/.%2E/", b"%2f", b"%2F", b"/%252e/"),
    _inserted(b"\\", b"%5c", b"%5C", b"/;x/", b"/a/..;/", b"/.;x=y/"),
    _appended(
        b"/", b"//", b"/.", b"/x/..", b".", b"%20", b"%00", b"%00.html", b";a=b", b"?", b"?a=b", b"#x", b"%2f", b";"
    ),
    _prefixed(b"http://h", b"HTTP://h:80", b"https://u@h", b"/", b"/..", b"/a/.."),
    _other_case,
)


def variants(path: bytes) -> set[bytes]:
    """Some thousands of spellings: every pair of rewrites, with several choices each, and some triples."""
    found = {path}
    for number, rewrites in enumerate(itertools.product(REWRITES, repeat=2)):
        for choice in range(25):
            random = Random(number * 1000 + choice)
            spelling = path
            for rewrite in rewrites:
                spelling = rewrite(random, spelling)
            found.add(spelling)
            found.add(random.choice(REWRITES)(random, spelling))
    return found


@pytest.mark.parametrize("server", SERVERS, ids=lambda server: server.__name__)
def test_no_spelling_that_a_server_reads_as_policed_gets_past(server: Callable[[bytes], bytes]) -> None:
    policed = 0
    for spelling in variants(b"/v1/cast"):
        if server(spelling) != b"/v1/cast":
            continue
        policed += 1
        match = TABLE.match(b"POST", spelling)
        assert match is CAST or (isinstance(match, Ambiguous) and match.policy is CAST), spelling
        if match is CAST:
            assert spelling.partition(b"?")[0].partition(b"#")[0] == b"/v1/cast"
    assert policed > 10, "the model reads hardly any of the spellings as the path"


@pytest.mark.parametrize("server", SERVERS, ids=lambda server: server.__name__)
def test_no_spelling_gets_out_from_below_a_wildcard(server: Callable[[bytes], bytes]) -> None:
    policed = 0
    for spelling in variants(b"/v2/a/b"):
        if server(spelling).startswith(b"/v2/"):
            policed += 1
            match = TABLE.match(b"GET", spelling)
            assert match is BELOW or isinstance(match, Ambiguous), spelling
    assert policed > 10
