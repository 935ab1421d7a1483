"""What a request shows of itself, read out of raw header values, and what the operator's SQL is asked by."""

import hashlib
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

# A longer one is not looked up: signed tokens are about 1 KiB, cookies end at 4 KiB in every browser (RFC 6265, 6.1).
CREDENTIAL_BYTES_MAX = 4096
IS_PRINTABLE = re.compile(rb"[ -~]*").fullmatch
_COOKIE_TOKEN = re.compile(rb"[!#-+\--:<-\[\]-~]+").fullmatch  # RFC 6265, 4.1.1: cookie-octet


class Credentials(NamedTuple):
    """What a request shows of itself, raw; a tuple, because it is made and hashed for every request."""

    api_key: bytes | None
    alternative_key: bytes | None
    session: bytes | None

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={'…' if value else value}" for name, value in zip(self._fields, self, strict=True))
        return f"Credentials({shown})"


def key_in_header(value: bytes | None, scheme: bytes | None) -> bytes | None:
    """The key in an Authorization value (RFC 9110, 11.6.2) of ``scheme`` (lower case), or the whole value without one.

    None where the scheme is another one, nothing follows it, or the key is over CREDENTIAL_BYTES_MAX.
    """
    if value is None:
        return None
    if scheme is not None:
        begin, _, rest = value.partition(b" ")
        if begin.lower() != scheme:
            length = len(scheme)
            if value[:length].lower() != scheme or value[length : length + 1] != b"\t":
                return None
            rest = value[length:]
        value = rest
    key = value.strip(b" \t")
    return key if 0 < len(key) <= CREDENTIAL_BYTES_MAX else None


def value_in_cookie(header: bytes | None, name: bytes) -> bytes | None:
    """The value of the first cookie ``name`` in a Cookie header (RFC 6265, 5.4), without quotes around it."""
    if header is None or name not in header:
        return None
    for pair in header.split(b";"):
        found, equals, value = pair.partition(b"=")
        if equals and found.strip(b" \t") == name:
            value = value.strip(b" \t")
            if len(value) > 1 and value[:1] == b'"' == value[-1:]:
                value = value[1:-1]
            return value if 0 < len(value) <= CREDENTIAL_BYTES_MAX else None
    return None


def doubt_about_cookie(header: bytes, name: bytes) -> str | None:
    """Why a server might read another cookie ``name`` out of this value than we do; None where it cannot.

    It must be there once, however the header is taken apart, and be written plainly.
    """
    plain = [pair.partition(b"=") for pair in header.split(b";")]
    values = [value for found, equals, value in plain if equals and found.strip(b" ") == name]
    # As a lenient server sees it: also split at commas, with anything odd around the name taken off.
    loose = [pair.partition(b"=")[0] for pair in re.split(rb"[;,]", header)]
    places = sum(re.sub(rb"[^!#-~]", b"", found).lower() == name.lower() for found in loose)
    if places != len(values):
        return "found the session cookie written in an unusual way"
    if len(values) > 1:
        return f"found the session cookie {len(values)} times, expected it once"
    if values and (_COOKIE_TOKEN(values[0].strip(b" ")) is None or len(values[0]) > CREDENTIAL_BYTES_MAX):
        return "found a session cookie whose value is quoted, escaped, empty or too long"
    return None


def size_bytes(credentials: Credentials) -> int:
    """Of all that is shown, for the bound of a cache."""
    return sum(len(credential) for credential in credentials if credential is not None)


def _as_it_is(credential: bytes) -> str | None:
    """The credential as text; None for what no text column can hold."""
    try:
        text = credential.decode()
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else text


def _sha256_hex(credential: bytes) -> str | None:
    return hashlib.sha256(credential).hexdigest()


# By the name of the setting ``hash``: how Phase 1 keeps what it gave out.
HASHES: Mapping[str, Callable[[bytes], str | None]] = {"sha256_hex": _sha256_hex, "none": _as_it_is}
