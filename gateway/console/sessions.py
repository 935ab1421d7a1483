"""Who is signed in to the console: a random cookie for whoever has shown the admin token, in memory for a while."""

import hmac
import secrets
import time
from collections.abc import Callable
from urllib.parse import SplitResult, urlsplit

from aiohttp import web

from gateway.config.settings_connections import is_loopback

COOKIE = "castgate_console"
LIFETIME_S = 12 * 3600.0  # a working day
SESSIONS_MAX = 100  # operators; the oldest makes room
# Every request that changes something carries it. No form and no page of another site can set it unasked.
WRITE_HEADER = "X-Castgate-Console"


class Sessions:
    """``token`` None: the listener is on loopback and asks nobody."""

    def __init__(self, token: str | None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._token = token
        self._clock = clock
        self._ends: dict[str, float] = {}

    @property
    def asks(self) -> bool:
        """Whether anybody is asked for the token."""
        return self._token is not None

    def sign_in(self, shown: str) -> str | None:
        """A new session's cookie; None where ``shown`` is not the token."""
        if self._token is None or not hmac.compare_digest(shown.encode(), self._token.encode()):
            return None
        while len(self._ends) >= SESSIONS_MAX:
            del self._ends[next(iter(self._ends))]
        session = secrets.token_urlsafe(32)
        self._ends[session] = self._clock() + LIFETIME_S
        return session

    def sign_out(self, request: web.Request) -> None:
        """Ends the request's session."""
        self._ends.pop(request.cookies.get(COOKIE, ""), None)

    def knows(self, request: web.Request) -> bool:
        """Whether the request comes from somebody who is signed in."""
        ends = self._ends.get(request.cookies.get(COOKIE, ""))
        return ends is not None and self._clock() < ends


def is_from_here(request: web.Request, *, writes: bool) -> bool:
    """Whether a browser's request comes from our own page: not from another site's, nor by another name of ours.

    Where nobody is asked for a token, a page whose name was made to lead to 127.0.0.1 (DNS rebinding) is told by the
    ``Host`` that it has to send.
    """
    origin = request.headers.get("Origin")
    if origin is not None and _split(origin).netloc != request.host:
        return False
    if request.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
        return False
    return not writes or request.headers.get(WRITE_HEADER) == "1"


def is_named_as_loopback(request: web.Request) -> bool:
    """Whether the request's ``Host`` is an address or name that only this machine has."""
    return is_loopback(_split(f"//{request.host}").hostname or "")


def _split(address: str) -> SplitResult:
    """What is no address at all has no parts: a stranger may send anything."""
    try:
        return urlsplit(address)
    except ValueError:
        return urlsplit("")
