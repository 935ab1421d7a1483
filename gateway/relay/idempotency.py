"""The idempotency key of a request, where its policy has one (draft-ietf-httpapi-idempotency-key-header)."""

import re
from collections.abc import Sequence
from hashlib import sha256

# What is kept of a key, so that it is short whatever clients send.
_DIGEST_LENGTH = 32
_key = re.compile(rb"[!-~]{1,255}").fullmatch


class BadKeyError(Exception):
    """A key by which two requests could not be told apart. The text says what was found and expected."""


def idempotency_key(header: str, lines: Sequence[bytes]) -> str:
    """The digest of the key in the field lines ``lines``; blank where there is none. Raises BadKeyError.

    To bill a call whose key was not understood would be what the client asked us not to do.
    """
    name = header.encode()
    values = []
    for line in lines:
        found, _, value = line.partition(b":")
        found = found.lower()
        if found == name:
            values.append(value.strip())
        elif b"_" in found and found.replace(b"_", b"-") == name:
            # Servers that read underscores as hyphens would see another key than is billed by, or two.
            raise BadKeyError(f"{header}: expected hyphens in the field's name, found underscores")
    if not values:
        return ""
    if len(values) > 1:
        raise BadKeyError(f"{header}: expected one key, found {len(values)}")
    if _key(values[0]) is None:
        length = len(values[0])
        found_text = f"{length} characters" if length > 255 else "none" if not length else "others"
        raise BadKeyError(f"{header}: expected 1 to 255 visible ASCII characters, found {found_text}")
    return sha256(values[0]).hexdigest()[:_DIGEST_LENGTH]
