"""The idempotency key of a request, where its policy has one (draft-ietf-httpapi-idempotency-key-header)."""

import re
from hashlib import sha256
from typing import TYPE_CHECKING

from gateway.relay import heads

if TYPE_CHECKING:
    from gateway.relay.request import Request

# What is kept of a key, so that it is short whatever clients send.
_DIGEST_LENGTH = 32
_key = re.compile(rb"[!-~]{1,255}").fullmatch


class BadKeyError(Exception):
    """A key by which two requests could not be told apart. The text says what was found and expected."""


def idempotency_key(header: str, request: "Request", fields: heads.Fields) -> str:
    """The digest of the key in the request's field ``header``; blank where there is none. Raises BadKeyError.

    To bill a call whose key was not understood would be what the client asked us not to do. And one whose key the
    service behind does not get, or may read another of, must not pass for a repeat: it would be done anew, and billed
    nothing.
    """
    name = header.encode()
    values = []
    lookalikes = 0
    for line in request.end_to_end_lines(fields):
        found, _, value = line.partition(b":")
        if len(found) == len(name):
            lowered = found.lower()
            if lowered == name:
                values.append(value.strip())
            elif lowered.replace(b"_", b"-") == name.replace(b"_", b"-"):  # to some servers that is the same field
                lookalikes += 1
    if not values:
        return ""
    if len(values) + lookalikes > 1:
        raise BadKeyError(f"{header}: expected one key, found {len(values) + lookalikes}")
    if _key(values[0]) is None:
        length = len(values[0])
        found_text = f"{length} characters" if length > 255 else "none" if not length else "others"
        raise BadKeyError(f"{header}: expected 1 to 255 visible ASCII characters, found {found_text}")
    return sha256(values[0]).hexdigest()[:_DIGEST_LENGTH]
