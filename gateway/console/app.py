"""``/console`` and what its page asks for. All of it is this listener's own: no script or style from elsewhere.

Without a session a page is the sign-in page (401), and everything else a 401 in JSON. Where no token is set (loopback)
nobody is asked, but the request must be made by a name of this machine, and writes by our own page.
"""

import asyncio
import base64
import hashlib
import json
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
from aiohttp import web

from gateway.billing_replay import NoEventError, replay
from gateway.billing_sync import FAULTS, AlreadySyncingError
from gateway.billing_sync_command import billing_of, sync_from_command, teller
from gateway.breaker import Breaker
from gateway.console.accounts import Accounts
from gateway.console.audit import BILLING_SYNCED, EVENT_REPLAYED, EXPLAINED, Audit, Operator, page_of
from gateway.console.holds import Holds
from gateway.console.live import live
from gateway.console.sessions import COOKIE, LIFETIME_S, Sessions, is_from_here, is_named_as_loopback
from gateway.database import Database, StoreError
from gateway.hosted.answers import RefusedError, refusal
from gateway.hosted.body import read_json_object
from gateway.hosted.budget_body import read_budget
from gateway.policy.periods import PERIODS
from gateway.policy.stripe_events import EventError

if TYPE_CHECKING:
    from gateway.config import Loaded
    from gateway.metrics import Metrics
    from gateway.policy.explanation import Explanation

PATH = "/console"
AUDIT_PATH = "/audit"  # also for programs, which show the token
EXPLAIN_PATH = "/explain"  # of the listener's other paths, one that is asked by POST
# Whoever guesses waits.
REFUSED_PAUSE_S = 0.3
ACCOUNT_CHARACTERS_MAX = 255
CONNECTIONS_MAX = 2  # to Postgres, for people who look
# One look that takes too long (through all accounts, say) does not mean that Postgres is away.
FAILURES_IN_A_ROW_MAX = 3
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_log = structlog.get_logger()
_STATIC = files("gateway.console").joinpath("static")
_SCRIPTS = ("console.js", "page.js", "charts.js", "account.js", "webhooks.js")
_KINDS = {**dict.fromkeys(_SCRIPTS, "text/javascript"), "console.css": "text/css"}
_EVENT_ID = re.compile(r"evt_[A-Za-z0-9_]{1,250}")
_HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)


@asynccontextmanager
async def opened(
    *,
    loaded: "Callable[[], Loaded]",
    metrics: "Metrics",
    runtime_dir: Path,
    about: Callable[[], object],
) -> AsyncIterator["Console"]:
    """The console, and what it needs, until the block ends. Connects to nothing before it is looked at."""
    settings = loaded().settings
    database = Database(
        settings.database.url,
        breaker=Breaker(clock=time.monotonic, failures_max=FAILURES_IN_A_ROW_MAX),
        metrics=metrics,
        connections_max=CONNECTIONS_MAX,
        connect_timeout_s=settings.database.connect_timeout_s,
        acquire_timeout_s=settings.database.acquire_timeout_s,
        statement_timeout_s=settings.database.statement_timeout_s,
    )
    token = settings.admin.token.get_secret_value() if settings.admin.token else None
    audit = Audit(database)
    accounts = Accounts(
        database,
        lambda: loaded().rules,
        teller(settings.redis),
        audit=audit,
        holds=Holds(database, lambda: settings.redis),
    )
    try:
        yield Console(token=token, accounts=accounts, audit=audit, loaded=loaded, runtime_dir=runtime_dir, about=about)
    finally:
        await database.close()


class Console:
    """The console of one gateway."""

    def __init__(
        self,
        *,
        token: str | None,
        accounts: Accounts,
        audit: Audit,
        loaded: "Callable[[], Loaded]",
        runtime_dir: Path,
        about: Callable[[], object],
    ) -> None:
        """``about`` is what the overview says of the supervisor: workers, version."""
        self._sessions = Sessions(token)
        self._accounts = accounts
        self._audit = audit
        self._loaded = loaded
        self._runtime_dir = runtime_dir
        self._about = about

    def routes(self) -> list[web.RouteDef]:
        """Every path below ``/console``, and ``/audit``."""
        return [
            web.get(PATH, self._guarded(self._page, page=True)),
            web.post(f"{PATH}/sign-in", self._sign_in),
            web.post(f"{PATH}/sign-out", self._guarded(self._sign_out, writes=True)),
            *(web.get(f"{PATH}/{name}", self._guarded(self._static(name))) for name in _KINDS),
            web.get(f"{PATH}/live", self._guarded(self._live)),
            web.get(f"{PATH}/near-limits", self._guarded(self._near_limits)),
            web.get(f"{PATH}/webhooks", self._guarded(self._webhooks)),
            web.post(f"{PATH}/webhooks/{{event}}/replay", self._guarded(self._replay, writes=True)),
            web.post(f"{PATH}/sync", self._guarded(self._sync, writes=True)),
            web.get(f"{PATH}/accounts", self._guarded(self._search)),
            web.get(f"{PATH}/accounts/{{id}}", self._guarded(self._account)),
            web.put(f"{PATH}/accounts/{{id}}/budget", self._guarded(self._set_budget, writes=True)),
            web.delete(f"{PATH}/accounts/{{id}}/budget", self._guarded(self._remove_budget, writes=True)),
            web.get(AUDIT_PATH, self._guarded(self._entries, asks=False)),
        ]

    def lets_in(self, request: web.Request) -> bool:
        """Whether the listener's door is the console's to keep for this request: it does so itself, path by path.

        Somebody who is signed in may read the listener's other paths as well, from the console's own page.
        """
        is_ours = request.path == PATH or request.path.startswith(f"{PATH}/")
        if (
            is_ours and request.match_info.http_exception is None
        ):  # which says nothing to strangers, not even "not here"
            return True
        asks = request.method == "GET" or (request.method == "POST" and request.path == EXPLAIN_PATH)
        return asks and self._sessions.knows(request) and is_from_here(request, writes=request.method != "GET")

    # --- who is let in

    def guarded(self, handler: Handler) -> Handler:
        """For what else on the listener tells of accounts or rules: not to a page of another site."""
        return self._guarded(handler, asks=False)

    def _guarded(self, handler: Handler, *, page: bool = False, writes: bool = False, asks: bool = True) -> Handler:
        """``asks`` False: the listener's door has asked already."""

        async def guard(request: web.Request) -> web.StreamResponse:
            # A link from elsewhere may lead to the page, which tells nothing to where it came from.
            if not page and not is_from_here(request, writes=writes):
                return _refused(403, "forbidden", "The console answers its own page only.")
            if not self._sessions.asks:
                if not is_named_as_loopback(request):
                    return _refused(403, "forbidden", "Without a token the console answers on localhost only.")
            elif asks and not self._sessions.knows(request):
                return _sign_in_page() if page else _refused(401, "unauthorized", "Sign in at /console.")
            try:
                return await handler(request)
            except RefusedError as refused:
                return refusal(refused)
            except StoreError as error:
                return _refused(503, "overloaded", str(error))

        return guard

    async def _sign_in(self, request: web.Request) -> web.StreamResponse:
        if request.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
            return _refused(403, "forbidden", "The console answers its own page only.")
        try:
            form = await request.post()
            session = self._sessions.sign_in(str(form.get("token", "")))
        except (ValueError, LookupError, AssertionError):  # no form: strangers send anything
            session = None
        if session is None:
            await asyncio.sleep(REFUSED_PAUSE_S)
            return _sign_in_page("This is not the token.")
        answer = web.Response(status=303, headers={**_HEADERS, "Location": PATH})
        answer.set_cookie(
            COOKIE,
            session,
            max_age=int(LIFETIME_S),
            path="/",
            httponly=True,
            samesite="Strict",
            secure=request.headers.get("X-Forwarded-Proto", request.scheme) == "https",
        )
        return answer

    async def _sign_out(self, request: web.Request) -> web.StreamResponse:
        self._sessions.sign_out(request)
        answer = web.Response(status=204, headers=_HEADERS)
        answer.del_cookie(COOKIE, path="/")
        return answer

    # --- what is shown

    async def _page(self, request: web.Request) -> web.StreamResponse:
        """The page, with the first look in it, so that there is something to see at once."""
        paths = {resource.canonical for resource in request.app.router.resources()}
        known = {
            "asks": self._sessions.asks,
            "policies": "/policies" in paths,
            "explain": EXPLAIN_PATH in paths,
            "live": self._look(),
        }
        first = json.dumps(known).replace("<", "\\u003c")
        text = _STATIC.joinpath("console.html").read_text("utf-8").replace("{{first}}", first)
        return web.Response(
            text=text, content_type="text/html", headers={**_HEADERS, "Content-Security-Policy": _POLICY}
        )

    def _static(self, name: str) -> Handler:
        body = _STATIC.joinpath(name).read_bytes()

        async def send(_: web.Request) -> web.StreamResponse:
            return web.Response(body=body, content_type=_KINDS[name], charset="utf-8", headers=_HEADERS)

        return send

    def _look(self) -> dict[str, object]:
        return {**live(self._runtime_dir), "about": self._about()}

    async def _live(self, _: web.Request) -> web.StreamResponse:
        return _answer(self._look())

    async def _near_limits(self, _: web.Request) -> web.StreamResponse:
        return _answer(await self._accounts.near_limits())

    async def _webhooks(self, _: web.Request) -> web.StreamResponse:
        return _answer(await self._accounts.events(None))

    async def _search(self, request: web.Request) -> web.StreamResponse:
        beginning = request.query.get("q", "").strip()[:ACCOUNT_CHARACTERS_MAX]
        return _answer(await self._accounts.search(beginning) if beginning and "\0" not in beginning else [])

    async def _account(self, request: web.Request) -> web.StreamResponse:
        return _answer(await self._accounts.picture(_account_of(request)))

    # --- what is changed

    async def _sync(self, request: web.Request) -> web.StreamResponse:
        """As ``castgate billing sync``."""
        loaded = self._billing_is_on()
        try:
            async with self._audit.act(self._operator(request), BILLING_SYNCED) as outcome:
                report = await sync_from_command(loaded)
                outcome.facts |= asdict(report)
        except AlreadySyncingError:
            return _refused(409, "conflict", "A sync is at work, or has just been done; try again in a minute.")
        except FAULTS as error:
            return _refused(503, "billing_unavailable", f"Stripe or Postgres could not be read: {error}")
        return _answer(asdict(report))

    async def _replay(self, request: web.Request) -> web.StreamResponse:
        """One event again, as it is at Stripe."""
        event_id = request.match_info["event"]
        if _EVENT_ID.fullmatch(event_id) is None:
            raise RefusedError(404, "not_found", "Stripe's events have ids such as evt_1ABC.")
        loaded = self._billing_is_on()
        try:
            async with self._audit.act(self._operator(request), EVENT_REPLAYED, event=event_id) as outcome:
                async with billing_of(loaded) as billing:
                    done = await replay(billing, event_id)
                outcome.account_id, outcome.before = done.account_id, done.before
                stands = json.loads(done.after) if done.after else {}
                outcome.facts |= {"type": done.type, "result": done.result, **stands}
        except NoEventError as error:
            return _refused(404, "not_found", f"{error}.")
        except EventError as error:
            return _refused(502, "billing_unavailable", f"Stripe's answer is no event that can be handled: {error}.")
        except FAULTS as error:
            return _refused(503, "billing_unavailable", f"Stripe or Postgres could not be read: {error}")
        told = {"event": event_id, "type": done.type, "result": done.result, "account": done.account_id}
        return _answer({**told, "subscription": done.subscription_id, "subscription_read": done.subscription})

    async def _set_budget(self, request: web.Request) -> web.StreamResponse:
        account_id = _account_of(request)
        body = read_budget(await read_json_object(request))
        await self._accounts.set_budget(account_id, body, self._operator(request))
        return _answer(await self._accounts.picture(account_id))

    async def _remove_budget(self, request: web.Request) -> web.StreamResponse:
        account_id, period = _account_of(request), request.query.get("period", "")
        if period not in PERIODS or not await self._accounts.remove_budget(account_id, period, self._operator(request)):
            raise RefusedError(404, "not_found", "The account has no such budget of its own.")
        return _answer(await self._accounts.picture(account_id))

    # --- the audit

    async def explained(self, request: web.Request, explanation: "Explanation") -> None:
        """What was asked of an account; its path without the query, which may hold anything."""
        if explanation.account_id is None:
            return
        asked = {"method": explanation.method, "path": explanation.target.partition("?")[0]}
        told = {"verdict": explanation.verdict, "status": explanation.status, "why": explanation.why}
        await self._audit.note(self._operator(request), EXPLAINED, explanation.account_id, {**asked, **told})

    async def _entries(self, request: web.Request) -> web.StreamResponse:
        account_id, before_id, entries_max = page_of(request.query)
        entries = await self._audit.entries(account_id, before_id=before_id, entries_max=entries_max)
        return _answer({"entries": entries, "before": entries[-1]["id"] if len(entries) == entries_max else None})

    def _operator(self, request: web.Request) -> Operator:
        token = "ADMIN_TOKEN" if self._sessions.asks else "none"
        return Operator(token=token, address=request.remote or "unknown")

    def _billing_is_on(self) -> "Loaded":
        loaded = self._loaded()
        if not loaded.billing_enabled:
            raise RefusedError(503, "billing_disabled", "Billing is switched off on this gateway.")
        return loaded


def _account_of(request: web.Request) -> str:
    account_id = request.match_info["id"]
    if not account_id.isprintable() or len(account_id) > ACCOUNT_CHARACTERS_MAX:
        raise RefusedError(404, "not_found", "No account has such an id.")
    return account_id


def _answer(value: object) -> web.Response:
    return web.json_response(value, headers=_HEADERS)


def _refused(status: int, code: str, message: str) -> web.Response:
    return web.json_response({"error": code, "message": message}, status=status, headers=_HEADERS)


_SIGN_IN_STYLE = _STATIC.joinpath("sign-in.css").read_text("utf-8")
_SIGN_IN_HASH = base64.b64encode(hashlib.sha256(_SIGN_IN_STYLE.encode()).digest()).decode()
_SIGN_IN_POLICY = (
    f"default-src 'none'; style-src 'sha256-{_SIGN_IN_HASH}'; img-src data:; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'"
)


def _sign_in_page(problem: str = "") -> web.Response:
    """401, with a way to sign in: whole in itself, as nothing else is given to who is not signed in."""
    told = f'<p role="alert">{escape(problem)}</p>' if problem else ""
    text = (
        _STATIC.joinpath("sign-in.html")
        .read_text("utf-8")
        .replace("{{style}}", _SIGN_IN_STYLE)
        .replace("{{problem}}", told)
    )
    headers = {**_HEADERS, "Content-Security-Policy": _SIGN_IN_POLICY, "WWW-Authenticate": "Bearer"}
    return web.Response(text=text, content_type="text/html", status=401, headers=headers)
