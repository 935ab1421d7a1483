"""Which policy a request falls under, and why a policy cannot be walked around.

Upstreams differ in what they make of ``/v1/c%61st``, ``/a/../v1/cast``, ``//v1/cast``, ``/v1/cast/`` or ``/V1/CAST``:
some serve them as ``/v1/cast``. So a target has two readings here. The *strict* reading takes the path as it came
and finds the policy of a canonical target. The *loose* reading folds together everything that some server somewhere
folds together. A target that only the loose reading finds under a policy is ambiguous, and refused (400).
Everything else is nobody's business but the upstream's.
"""

import re
from collections.abc import Iterable
from urllib.parse import unquote_to_bytes

from gateway.policy.rules import Policy

# Decoding more than once matters only to a chain of servers that each decode; nobody runs four of them.
_DECODE_ROUNDS_MAX = 4
_CANONICAL_PATH = re.compile(rb"/(?:[A-Za-z0-9._~!$&'()*+,;=:@/-]|%(?:[013-7A-F][0-9A-F]|2[0-9A-E]))*")
_ABSOLUTE_FORM = re.compile(rb"[A-Za-z][A-Za-z0-9+.-]*://[^/?#]*")


class Ambiguous:
    """The verdict on a target that is not canonical, yet falls under a policy once it is made so."""

    __slots__ = ("policy",)

    def __init__(self, policy: Policy) -> None:
        self.policy = policy


class RouteTable:
    """Policies by method and path; the cost of a match depends on the path's depth, not on how many there are."""

    def __init__(self, policies: Iterable[Policy]) -> None:
        self._strict: dict[bytes, dict[bytes, Policy]] = {}
        self._strict_below: dict[bytes, dict[bytes, Policy]] = {}
        self._loose: dict[bytes, dict[bytes, Policy]] = {}
        self._loose_below: dict[bytes, dict[bytes, Policy]] = {}
        for policy in policies:
            path = policy.path.encode()
            below = path.endswith(b"/*")
            stem = path[:-2] if below else path
            methods = [method.encode() for method in policy.methods] or [b"*"]
            for method in methods:
                (self._strict_below if below else self._strict).setdefault(stem, {})[method] = policy
                (self._loose_below if below else self._loose).setdefault(loosened(stem), {})[method] = policy

    def match(self, method: bytes, target: bytes) -> Policy | Ambiguous | None:
        """The policy of a request; None where no policy applies; Ambiguous where the request must be refused."""
        by_method = self._strict.get(target)
        if by_method is not None:  # the usual case: a policed path without a query
            policy = by_method.get(method) or by_method.get(b"*")
            if policy is not None:
                return policy
        return self._match_slowly(method, target)

    def _match_slowly(self, method: bytes, target: bytes) -> Policy | Ambiguous | None:
        path = target.partition(b"?")[0].partition(b"#")[0]
        absolute = _ABSOLUTE_FORM.match(path)
        strict = None
        if absolute is None and is_canonical(path):
            strict = _find(self._strict, self._strict_below, method, path)
        loose = _find(self._loose, self._loose_below, method, loosened(path[absolute.end() :] if absolute else path))
        # The loose reading may find another policy (/v1/cast/ under /v1/*, beside one for /v1/cast): neither is safe.
        return strict if loose is None or loose is strict else Ambiguous(loose)


def _find(
    exact: dict[bytes, dict[bytes, Policy]], below: dict[bytes, dict[bytes, Policy]], method: bytes, path: bytes
) -> Policy | None:
    by_method = exact.get(path)
    if by_method is not None:
        policy = by_method.get(method) or by_method.get(b"*")
        if policy is not None:
            return policy
    if below:
        end = len(path)
        while end >= 0:  # the longest stem first
            by_method = below.get(path[:end])
            if by_method is not None and end < len(path):
                policy = by_method.get(method) or by_method.get(b"*")
                if policy is not None:
                    return policy
            end = path.rfind(b"/", 0, end) if end > 0 else -1
    return None


def is_canonical(path: bytes) -> bool:
    """Whether a path has one reading only: no dot segments, empty segments, path parameters, or needless escapes.

    An escape is needless where it hides an unreserved character (RFC 3986 §2.3), a slash or a control character.
    """
    if _CANONICAL_PATH.fullmatch(path) is None or b"//" in path or b";" in path:
        return False
    if b"/." in path and any(segment in (b".", b"..") for segment in path.split(b"/")):
        return False
    if b"%" not in path:
        return True
    return all(not _is_needless_escape(int(escape, 16)) for escape in re.findall(rb"%(..)", path))


def _is_needless_escape(octet: int) -> bool:
    character = bytes((octet,))
    return character.isalnum() or character in b"-._~/\\" or octet < 0x20 or octet == 0x7F


def loosened(path: bytes) -> bytes:
    """Everything that some server folds together, folded: escapes, case, slashes, dots, path parameters."""
    for _ in range(_DECODE_ROUNDS_MAX):
        if b"%" not in path:
            break
        decoded = unquote_to_bytes(path)
        if decoded == path:
            break
        path = decoded
    path = path.partition(b"\0")[0].replace(b"\\", b"/").lower()
    segments: list[bytes] = []
    for segment in path.split(b"/"):
        name = segment.partition(b";")[0].strip()
        if name == b"..":
            if segments:
                segments.pop()
        elif name not in (b"", b"."):
            segments.append(name.rstrip(b"."))
    return b"/" + b"/".join(segments)
