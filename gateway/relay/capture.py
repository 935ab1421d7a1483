"""What an answer tells about its call: the cast's id, at a JSON pointer (RFC 6901) into the body."""

import json
import re
import zlib
from functools import lru_cache

from gateway.policy.pointers import names_of, value_at

# An id longer than this is not one, and a compressed answer may not grow beyond what a plain one may have.
_IDENTIFIER_CHARACTERS_MAX = 128
_INFLATED_BYTES_MAX = 1024 * 1024
_GZIP_MAGIC = b"\x1f\x8b"


def identifier_in(pieces: list[bytes], pointer: str) -> str | None:
    """The string or integer at ``pointer`` in an answer of JSON, or of server-sent events (the last that has it).

    None where the answer is neither, is cut off, or has nothing there: the charge does not depend on it.
    """
    first = _first_member(pointer).match(pieces[0])
    if first is not None:  # the usual answer begins with its id: no need to read on
        return first[1].decode()
    body = b"".join(pieces)
    if body.startswith(_GZIP_MAGIC):
        try:
            body = zlib.decompressobj(wbits=31).decompress(body, _INFLATED_BYTES_MAX)
        except zlib.error:
            return None
    found = _identifier_at(body, pointer)
    if found is None and b"data:" in body:
        for line in reversed(body.splitlines()):
            if line.startswith(b"data:"):
                found = _identifier_at(line[5:], pointer)
                if found is not None:
                    break
    return found


def _identifier_at(text: bytes, pointer: str) -> str | None:
    first = _first_member(pointer).match(text)
    if first is not None:
        return first[1].decode()
    try:
        value = json.loads(text.decode())
    except (ValueError, RecursionError):
        return None
    value = value_at(value, pointer)
    if isinstance(value, bool) or not isinstance(value, str | int):
        return None
    identifier = str(value)
    # What cannot be printed (NUL, half a surrogate pair) cannot be stored either.
    return identifier if 0 < len(identifier) <= _IDENTIFIER_CHARACTERS_MAX and identifier.isprintable() else None


@lru_cache(maxsize=1024)
def _first_member(pointer: str) -> re.Pattern[bytes]:
    """Matches an object whose first member is the one at ``pointer``, and a string without escapes."""
    names = names_of(pointer)
    if len(names) != 1:
        return re.compile(rb"(?!)")  # matches nothing
    return re.compile(
        rb'[ \t\r\n]*\{[ \t\r\n]*"%b"[ \t\r\n]*:[ \t\r\n]*"([A-Za-z0-9_.:-]{1,128})"' % re.escape(names[0].encode())
    )
