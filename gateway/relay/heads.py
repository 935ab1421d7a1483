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
    TE,
    MAX_FORWARDS,
    LOOKALIKE,
    METHOD_OVERRIDE,
    TARGET_OVERRIDE,
    OTHER,
) = range(20)

_SPELLINGS_MAX = 1000
_SPELLING_BYTES_MAX = 64

_ALWAYS_HOP_BY_HOP = {b"keep-alive": HOP_BY_HOP, b"proxy-connection": HOP_BY_HOP}

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
    b"te": TE,
    b"max-forwards": MAX_FORWARDS,
    # Some frameworks take these for the method and the target.
    b"x-http-method-override": METHOD_OVERRIDE,
    b"x-http-method": METHOD_OVERRIDE,
    b"x-method-override": METHOD_OVERRIDE,
    b"x-original-url": TARGET_OVERRIDE,
    b"x-rewrite-url": TARGET_OVERRIDE,
    **_ALWAYS_HOP_BY_HOP,
}
# Servers that hand fields on as variables of an environment read these underscores as hyphens.
_LOOKALIKES = {b"content_length": LOOKALIKE, b"transfer_encoding": LOOKALIKE}


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
    fields = _REQUEST_FIELDS | _LOOKALIKES
    for name, field in ((alternative_field, API_KEY), (key_field, AUTHORIZATION)):
        if name is not None:
            spelling = name.lower().encode()
            fields[spelling.replace(b"-", b"_")] = LOOKALIKE
            fields[spelling] = field
    return Fields(fields)


RESPONSE_FIELDS = Fields(
    {
        b"content-length": CONTENT_LENGTH,
        b"transfer-encoding": TRANSFER_ENCODING,
        b"connection": CONNECTION,
        b"upgrade": UPGRADE,
        b"te": HOP_BY_HOP,
        **_ALWAYS_HOP_BY_HOP,
    }
)


def connection_tokens(value: bytes) -> list[bytes]:
    """The lower-cased options of a Connection or Upgrade field (RFC 9110 §7.6.1)."""
    return [token.strip().lower() for token in value.split(b",")]


def hop_lines(upgrade: bytes | None, *, wants_trailers: bool) -> bytes:
    """The connection's own fields for the next hop, which gets them anew."""
    options = [b"Upgrade"] * (upgrade is not None) + [b"TE"] * wants_trailers
    fields = b"" if upgrade is None else b"Upgrade: %b\r\n" % upgrade
    return b"Connection: %b\r\n%b%b" % (b", ".join(options), fields, b"TE: trailers\r\n" if wants_trailers else b"")


def without_named(lines: Iterable[bytes], options: Iterable[bytes], fields: Fields) -> list[bytes]:
    """Field lines but those that the sender's Connection options named as hop-by-hop.

    What the relay itself has looked at stays: the next hop must not read another message than the one that was judged.
    """
    named = {option for option in options if fields[option] == OTHER}
    return [line for line in lines if line.partition(b":")[0].lower() not in named]
