"""Fields of a caller's request by which it is told apart or weighed, as operators name them."""

from gateway.config.scalars import Kind, expected, reader_of, text

NAME = r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}"
# Of the connection (RFC 9110, 7.6.1), of the message's framing, or told by the gateway itself: a call is not known by
# them, and a caller may leave them out or have them twice as it likes.
_NOT_THE_CALLERS = frozenset(
    (
        *("connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade", "expect"),
        *("content-length", "host", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto"),
    )
)
_WHAT = "a header name that is the caller's own (not of the connection, the framing or X-Forwarded-…)"


def check_request_field(name: str, value: object) -> None:
    """Raises where ``name`` is none that a call can be known by; ``value`` is what the operator wrote."""
    if name.lower() in _NOT_THE_CALLERS:
        raise expected(_WHAT, value)


def request_field() -> Kind:
    """The name of a field that a caller's request brings."""
    one = text("a header name", NAME)
    read_name = reader_of(one)

    def read(value: object) -> str:
        name = str(read_name(value))
        check_request_field(name, value)
        return name

    return Kind(read, schema=one.schema)
