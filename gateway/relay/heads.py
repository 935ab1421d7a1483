"""Header blocks on their way through an intermediary (RFC 9110 §7.6).

Field lines keep their order and spelling; only hop-by-hop fields are taken out, and the gateway's own are added.
"""

from collections.abc import Iterable, Mapping

# What the relay itself looks at; every other field passes unread. Lower-case name -> what it is.
(
    HOST,
    CONTENT_LENGTH,
    TRANSFER_ENCODING,
    CONNECTION,
    HOP_BY_HOP,
    UPGRADE,
    EXPECT,
    AUTHORIZATION,
    API_KEY,
    COOKIE,
    FORWARDED_FOR,
    FORWARDED_PROTO,
    FORWARDED_HOST,
    REQUEST_ID,
    OTHER,
) = range(15)

_SPELLINGS_MAX = 1000
_SPELLING_BYTES_MAX = 64

_ALWAYS_HOP_BY_HOP = {b"keep-alive": HOP_BY_HOP, b"proxy-connection": HOP_BY_HOP, b"te": HOP_BY_HOP}

_REQUEST_FIELDS = {
    b"host": HOST,
    b"content-length": CONTENT_LENGTH,
    b"transfer-encoding": TRANSFER_ENCODING,
    b"connection": CONNECTION,
    b"upgrade": UPGRADE,
    b"expect": EXPECT,
    b"cookie": COOKIE,
    b"x-forwarded-for": FORWARDED_FOR,
    b"x-forwarded-proto": FORWARDED_PROTO,
    b"x-forwarded-host": FORWARDED_HOST,
    b"x-request-id": REQUEST_ID,
    **_ALWAYS_HOP_BY_HOP,
}


class Fields(dict[bytes, int]):
    """What a field is, by its name in any spelling; OTHER where the relay passes it unread.

    Spellings that were met are kept, up to a bound: most clients spell alike, and a look-up is all that costs.
    """

    def __init__(self, known: Mapping[bytes, int]) -> None:
        super().__init__(known)
        self._known = known

    def __missing__(self, name: bytes) -> int:
        field = self._known.get(name.lower(), OTHER)
        if len(self) < _SPELLINGS_MAX and len(name) <= _SPELLING_BYTES_MAX:
            self[name] = field
        return field


def request_fields(key_field: str, alternative_field: str | None) -> Fields:
    """What each request field is, given the names of the fields that carry an API key."""
    fields = dict(_REQUEST_FIELDS)
    if alternative_field is not None:
        fields[alternative_field.lower().encode()] = API_KEY
    fields[key_field.lower().encode()] = AUTHORIZATION
    return Fields(fields)


RESPONSE_FIELDS = Fields(
    {
        b"content-length": CONTENT_LENGTH,
        b"transfer-encoding": TRANSFER_ENCODING,
        b"connection": CONNECTION,
        b"upgrade": UPGRADE,
        **_ALWAYS_HOP_BY_HOP,
    }
)


def connection_tokens(value: bytes) -> list[bytes]:
    """The lower-cased options of a Connection or Upgrade field (RFC 9110 §7.6.1)."""
    return [token.strip().lower() for token in value.split(b",")]


def without_named(lines: Iterable[bytes], options: Iterable[bytes], fields: Fields) -> list[bytes]:
    """Field lines but those that the sender's Connection options named as hop-by-hop.

    What the relay itself has looked at stays: the next hop must not read another message than the one that was judged.
    """
    named = {option for option in options if fields[option] == OTHER}
    return [line for line in lines if line.partition(b":")[0].lower() not in named]
