"""Origins of URLs (RFC 6454): scheme, host and port, in one spelling, so that they can be compared as text.

Stricter than any browser: what two parsers could read differently (a backslash, user information, white space, a host
that is not ASCII) is no URL here. An allow-list is only as good as the agreement on what the host is.
"""

import re

URL_LENGTH_MAX = 2048
_DEFAULT_PORTS = {"http": 80, "https": 443}
_URL = re.compile(
    r"""
    (?P<scheme>https?)://
    (?P<host>[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?|\[[0-9A-Fa-f:.]{2,45}\])
    (?::(?P<port>[0-9]{1,5}))?
    (?:[/?\#][!-\[\]-~]*)?                        # printable ASCII without the backslash
    """,
    re.VERBOSE,
)


def origin_of(url: str) -> str | None:
    """``scheme://host[:port]`` in lower case, without a default port; None for what is not plainly an http(s) URL."""
    if len(url) > URL_LENGTH_MAX:
        return None
    match = _URL.fullmatch(url)
    if match is None:
        return None
    scheme, host = match["scheme"], match["host"].lower()
    port = int(match["port"] or _DEFAULT_PORTS[scheme])
    if not 0 < port < 65536 or ".." in host:
        return None
    return f"{scheme}://{host}" if port == _DEFAULT_PORTS[scheme] else f"{scheme}://{host}:{port}"
