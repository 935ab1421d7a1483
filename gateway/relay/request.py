"""A request as it is being received: one parsed head, and what has arrived of its body."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gateway.policy import answers
from gateway.relay import heads

if TYPE_CHECKING:
    from gateway.credentials import Credentials
    from gateway.identify import Met
    from gateway.policy.routes import RouteTable
    from gateway.policy.rules import Policy
    from gateway.relay.alike import Varying

# A length of more digits is more than any server counts to, or hides behind zeros.
_LENGTH_DIGITS_MAX = 18


class Request:
    """What the parser has found so far; filled in by the client connection, read and emptied by the exchange."""

    __slots__ = (
        "api_key",
        "authorization",
        "body",
        "body_bytes",
        "broken",
        "chunked",
        "complete",
        "connection_options",
        "content_length",
        "cookie",
        "credentials",
        "expects_continue",
        "forwarded_end",
        "forwarded_for",
        "forwarded_head",
        "forwarded_host",
        "forwarded_lines",
        "forwarded_proto",
        "has_length",
        "has_two_credentials",
        "has_two_request_ids",
        "head_bytes",
        "host",
        "hosts",
        "http_1_0",
        "keep_alive",
        "lines",
        "matched_by",
        "max_forwards",
        "met",
        "method",
        "overrides",
        "policy",
        "refusal",
        "request_id",
        "target",
        "trailers",
        "upgrade",
        "varying",
        "wants_trailers",
    )

    def __init__(self) -> None:
        self.method = b""
        self.target = b""
        self.lines: list[bytes] = []  # field lines to pass on, each ending in CRLF
        self.head_bytes = 0
        self.host: bytes | None = None
        self.hosts = 0
        self.authorization: bytes | None = None
        self.has_two_credentials = False
        self.api_key: bytes | None = None
        self.cookie: bytes | None = None
        self.request_id: bytes | None = None
        self.has_two_request_ids = False
        # What proxies before this one say, or the client claims: not in ``lines``, for it is said anew.
        self.forwarded_lines: list[bytes] = []
        self.forwarded_for: bytes | None = None
        self.forwarded_proto: bytes | None = None
        self.forwarded_host: bytes | None = None
        self.max_forwards: bytes | None = None
        self.overrides: list[tuple[int, bytes]] = []  # what some servers would take for the method or the target
        self.wants_trailers = False
        self.connection_options: list[bytes] = []
        self.upgrade: bytes | None = None
        self.expects_continue = False
        self.has_length = False
        self.content_length = 0
        self.chunked = False
        self.http_1_0 = False
        self.keep_alive = True
        self.body: list[bytes] = []  # arrived, not yet passed on
        self.body_bytes = 0
        self.trailers: list[bytes] = []
        self.complete = False
        self.broken = False  # the parser refused the rest of it
        self.refusal: answers.Answer | None = None  # what the head alone is refused with
        # What the exchange found out about the head; a request with the same head need not find it out again.
        self.matched_by: RouteTable | None = None
        self.policy: Policy | None = None
        self.credentials: Credentials | None = None
        self.met: Met | None = None  # what identity knows these credentials by
        self.forwarded_head = b""
        self.forwarded_end = b""
        self.varying: Varying | None = None  # where the next one with nearly the same head will differ

    def take_field(self, field: int, name: bytes, value: bytes) -> None:
        """A field that the relay looks at: ``field`` is one of heads' constants."""
        if field == heads.HOST:
            self.host = value
            self.hosts += 1
        elif field == heads.CONTENT_LENGTH:
            self.has_length = True
            # What is no number the parser refuses.
            self.content_length = int(value) if value.isdigit() and len(value) <= _LENGTH_DIGITS_MAX else 0
            if len(value) > _LENGTH_DIGITS_MAX:
                self.refuse_field("This Content-Length is too long a number.", value)
        elif field == heads.AUTHORIZATION:
            self.has_two_credentials |= self.authorization is not None
            self.authorization = value
        elif field == heads.API_KEY:
            self.has_two_credentials |= self.api_key is not None
            self.api_key = value
        elif field == heads.COOKIE:
            self.cookie = value if self.cookie is None else self.cookie + b"; " + value
        elif heads.FORWARDED_FOR <= field <= heads.FORWARDED_HOST:
            self._take_forwarded(field, name, value)
            return
        elif field == heads.REQUEST_ID:
            self.has_two_request_ids |= self.request_id is not None
            self.request_id = value
        elif field == heads.MAX_FORWARDS:
            self.max_forwards = value
        elif field in (heads.METHOD_OVERRIDE, heads.TARGET_OVERRIDE):
            self.overrides.append((field, value.strip()))
        elif field == heads.LOOKALIKE:
            self.refuse_field("Some servers would read this field's name as another's.", name)
        elif field == heads.EXPECT:
            self.expects_continue |= value != b""
            if value and value.lower() != b"100-continue":
                self.refusal = answers.error(
                    417,
                    "invalid_request",
                    "This expectation cannot be met.",
                    details=f"found Expect: {value[:64].decode('latin-1')!r}, expected 100-continue",
                )
        else:
            self._take_hop_by_hop(field, value)
            return
        self.lines.append(b"%b: %b\r\n" % (name, value))

    def end_to_end_lines(self, fields: heads.Fields) -> Sequence[bytes]:
        """The field lines that the service behind gets: without those that ``Connection`` names."""
        if self.connection_options:
            return heads.without_named(self.lines, self.connection_options, fields)
        return self.lines

    def refuse_field(self, message: str, found: bytes) -> None:
        """A field that does not go on, nor the request with it."""
        self.refusal = answers.error(400, "invalid_request", message, details=f"found {found[:64].decode('latin-1')!r}")

    def _take_forwarded(self, field: int, name: bytes, value: bytes) -> None:
        self.forwarded_lines.append(b"%b: %b\r\n" % (name, value))
        if field == heads.FORWARDED_FOR:
            self.forwarded_for = value if self.forwarded_for is None else self.forwarded_for + b", " + value
        elif field == heads.FORWARDED_PROTO:
            self.forwarded_proto = value
        else:
            self.forwarded_host = value

    def _take_hop_by_hop(self, field: int, value: bytes) -> None:
        """A field that ends here: the next hop gets its own, where it needs one."""
        if field == heads.CONNECTION:
            self.connection_options += heads.connection_tokens(value)
        elif field == heads.UPGRADE:
            self.upgrade = value
        elif field == heads.TE:
            self.wants_trailers |= b"trailers" in heads.connection_tokens(value)
        elif field == heads.TRANSFER_ENCODING:
            self.chunked = True
            if value.strip().lower() != b"chunked":
                self.refusal = answers.error(
                    501,
                    "invalid_request",
                    "This transfer coding is not supported.",
                    details=f"found Transfer-Encoding: {value[:64].decode('latin-1')!r}, expected chunked",
                )
