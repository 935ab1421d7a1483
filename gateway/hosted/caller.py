"""Who asks: the same credentials and the same cache as on the relay's own path.

Against forged requests from other sites' pages, a session cookie alone does not authorise a change where the browser
says that the request comes from elsewhere (``Origin``, ``Sec-Fetch-Site``). Browsers send ``Origin`` with every
cross-site request that is neither GET nor HEAD, so one without it comes from no page. Besides, PUT, DELETE and a
POST of ``application/json`` need a preflight across sites, and this application permits none.
"""

import asyncio
from urllib.parse import urlsplit

from aiohttp import hdrs, web

from gateway.accounts import Account
from gateway.credentials import Credentials
from gateway.database import StoreError
from gateway.hosted.answers import Problem, RefusedError, invalid
from gateway.hosted.services import SERVICES
from gateway.identify import Identify

_SAFE_METHODS = frozenset({"GET", "HEAD"})
_SAME_SITE = frozenset({"same-origin", "none"})


async def caller_of(request: web.Request) -> Account:
    """The account behind the request; raises RefusedError (401 unknown, 400 ambiguous) and StoreError."""
    services = request.app[SERVICES]
    identity = services.settings().identity
    credentials = services.identify.credentials_from(
        _field(request, identity.api_key.header),
        _field(request, identity.api_key.alternative_header),
        _field(request, hdrs.COOKIE),
    )
    if credentials is None:
        raise _unauthorized("No API key and no session were given.")
    by_cookie = credentials.api_key is None and credentials.alternative_key is None
    if by_cookie and request.method not in _SAFE_METHODS and _from_elsewhere(request):
        raise _unauthorized("A session cookie does not authorise a request that another site's page has made.")
    account = services.identify.cached(credentials) or await _resolved(services.identify, credentials)
    if account is None and identity.cache.negative_ttl_s > 0:
        # "Unknown" is remembered; where it is not, the lookup has failed, and 401 would send people to renew good keys.
        account = services.identify.cached(credentials)
        if account is None:
            raise StoreError("the credentials could not be looked up")
    if not isinstance(account, Account):
        raise _unauthorized("The API key or session is not known.")
    return account


async def _resolved(identify: Identify, credentials: Credentials) -> Account | None:
    found: asyncio.Future[Account | None] = asyncio.get_running_loop().create_future()

    def done(account: Account | None) -> None:
        if not found.done():
            found.set_result(account)

    identify.resolve(credentials, done)
    return await found


def _field(request: web.Request, name: str | None) -> bytes | None:
    """The one value of a header field as it came; raises RefusedError (400) where there are two."""
    values = request.headers.getall(name, ()) if name else ()
    if not values:
        return None
    if len(values) > 1 and name != hdrs.COOKIE:
        raise invalid(Problem(field=str(name), found=f"{len(values)} fields", expected="at most one"))
    # HTTP/2 clients may send cookies in several fields (RFC 9113 §8.2.3); aiohttp decodes what is not UTF-8 reversibly.
    return "; ".join(values).encode("utf-8", "surrogateescape")


def _from_elsewhere(request: web.Request) -> bool:
    if request.headers.get("Sec-Fetch-Site", "none") not in _SAME_SITE:
        return True
    origin = request.headers.get(hdrs.ORIGIN)
    if origin is None:
        return False
    # The scheme is left out: TLS may end in front of the gateway. "null" has no host, and so is elsewhere.
    try:
        return urlsplit(origin).netloc.lower() != request.host.lower()
    except ValueError:
        return True


def _unauthorized(message: str) -> RefusedError:
    return RefusedError(401, "unauthorized", message, headers={hdrs.WWW_AUTHENTICATE: "Bearer"})
