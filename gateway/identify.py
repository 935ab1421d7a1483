"""Credentials to accounts: what a request shows, whose it is by the operator's SQL, and a cache in between.

Any valid credential identifies: the API key, then the alternative header's key, then the session. An unknown one beside
a valid one changes nothing, since Phase 1 might accept the valid one and somebody must pay for that call.

An answer is fresh for ``ttl_s``. For as long again it still serves while it is read anew in the background, so a busy
key never waits; after that a request waits for the reading. While Postgres is away, what was true at most
``stale_max_s`` ago serves. Phase 1 checks every credential itself, so an old answer lets nobody in: it says who pays.
Unknown credentials have a smaller cache of their own, which a flood of guesses cannot use to push out the known.
Raw credentials are the keys (they are in memory anyway, in the request): one lookup and no hash in the hot path. Of a
request that shows nothing but its Authorization, that value is a key as well, and need not be read at all.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from itertools import islice
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote_to_bytes

import asyncpg
import structlog

from gateway.accounts import NOT_LOADED, Account, Accounts
from gateway.credentials import (
    CREDENTIAL_BYTES_MAX,
    HASHES,
    IS_PRINTABLE,
    Credentials,
    doubt_about_cookie,
    key_in_header,
    size_bytes,
    value_in_cookie,
)
from gateway.database import StoreError

if TYPE_CHECKING:
    from gateway.config.settings_accounts import Identity
    from gateway.database import Database
    from gateway.metrics import Metrics
    from gateway.tasks import Tasks

# Credentials looked up by one statement: some 5 ms of Postgres.
_BATCH_MAX = 500
# Credentials that wait for a lookup; more come in only while Postgres is slower than the arrivals.
_WAITING_MAX = 20_000
# Credentials kept, in all: one valid key beside changing junk must not fill the memory.
_KNOWN_BYTES_MAX = 64 * 1024 * 1024
_UNKNOWN_MAX = 10_000  # of CREDENTIAL_BYTES_MAX each: 40 MiB
# Between two looks at an entry that should be read again but is not yet.
_LOOK_AGAIN_S = 1.0
_NEVER = float("-inf")

_log = structlog.get_logger()


class Unknown(Enum):
    """The answer for credentials that belong to nobody."""

    UNKNOWN = "unknown"


UNKNOWN: Final = Unknown.UNKNOWN
Done = Callable[[Account | None], None]


class Met:
    """Credentials that were met before, and whose they are; one object for as long as they are remembered."""

    __slots__ = ("account", "authorization", "credentials", "look_at", "read_at")

    def __init__(self, credentials: Credentials, account: Account, read_at: float) -> None:
        self.credentials = credentials
        self.account = account
        self.authorization: bytes | None = None  # the value that showed them, alone, when they came last
        self.read_at = read_at
        self.look_at = read_at  # until then it may be used without another thought


class Identify:
    """Whose credentials these are, for one worker."""

    def __init__(
        self,
        database: Database,
        accounts: Accounts,
        settings: Identity,
        tasks: Tasks,
        metrics: Metrics,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._accounts = accounts
        self._tasks = tasks
        self._clock = clock
        self._scheme = settings.api_key.scheme.lower().encode() if settings.api_key.scheme else None
        self._cookie = settings.session.cookie.encode()
        self._key_sql = settings.api_key.sql
        self._session_sql = settings.session.sql
        self._hash_key = HASHES[settings.api_key.hash]
        self._hash_session = HASHES[settings.session.hash]
        self._entries_max = settings.cache.entries_max
        self._ttl_s = settings.cache.ttl_s
        self._negative_ttl_s = settings.cache.negative_ttl_s
        self._stale_max_s = settings.cache.stale_max_s
        self._known: OrderedDict[Credentials, Met] = OrderedDict()
        self._by_authorization: dict[bytes, Met] = {}  # some of these
        self._known_bytes = 0
        self._unknown: OrderedDict[Credentials, float] = OrderedDict()  # until when
        self._waiting: dict[Credentials, list[Done]] = {}
        self._working = False
        self._failing = False
        self._entries = metrics.gauge("castgate_identify_cache_entries")
        self._hits = metrics.counter("castgate_identify_total", result="hit")
        self._negatives = metrics.counter("castgate_identify_total", result="negative")
        self._misses = metrics.counter("castgate_identify_total", result="miss")
        self._unknowns = metrics.counter("castgate_identify_total", result="unknown")
        self._stales = metrics.counter("castgate_identify_total", result="stale")
        self._errors = metrics.counter("castgate_identify_total", result="error")

    def credentials_from(
        self, header: bytes | None, alternative: bytes | None, cookie: bytes | None
    ) -> Credentials | None:
        """What raw header values show: of ``api_key.header``, of ``api_key.alternative_header``, and of ``Cookie``.

        None where they show nothing.
        """
        api_key = key_in_header(header, self._scheme) if header is not None else None
        alternative_key = key_in_header(alternative, None) if alternative is not None else None
        session = value_in_cookie(cookie, self._cookie) if cookie is not None else None
        if api_key is None and alternative_key is None and session is None:
            return None
        return Credentials(api_key, alternative_key, session)

    def doubt_about(self, header: bytes | None, alternative: bytes | None, cookie: bytes | None) -> str | None:
        """Why Phase 1 might read other credentials out of these values than we do; None where it cannot.

        Servers differ in what they strip, unquote and take of several. Whoever is somebody else there than here, or
        nobody here, would cast for free.
        """
        for value in (header, alternative):
            if value is not None and IS_PRINTABLE(value) is None:
                return "found a character in the credentials that is not printable ASCII"
        if cookie is not None and self._cookie in cookie:
            return doubt_about_cookie(cookie, self._cookie)
        return None

    def met_with(self, authorization: bytes) -> Met | None:
        """What a request shows that has this Authorization and nothing else to show, if that is remembered. No IO."""
        return self._by_authorization.get(authorization)

    def remember(self, authorization: bytes, credentials: Credentials) -> Met | None:
        """To be met with by this value, alone, from now on: ``credentials``, as they were read out of it. No IO.

        One that is longer than credentials may be (a short key behind many blanks) is read anew each time.
        """
        entry = self._known.get(credentials)
        has_room = self._known_bytes < _KNOWN_BYTES_MAX and len(authorization) <= CREDENTIAL_BYTES_MAX
        if entry is not None and has_room:
            self._forget_authorization(entry)
            self._by_authorization[authorization] = entry
            self._known_bytes += len(authorization)
            entry.authorization = authorization
        return entry

    def cached(self, credentials: Credentials, met: Met | None = None) -> Account | Unknown | None:
        """The account, UNKNOWN, or None where ``resolve`` must find out; ``met`` is what was met with them. No IO."""
        if met is not None and self._clock() < met.look_at:
            self._hits.add()
            return met.account
        entry = self._known.get(credentials)
        if entry is not None and self._clock() < entry.look_at:
            self._hits.add()
            return entry.account
        return self._look_closer(credentials, entry)

    def resolve(self, credentials: Credentials, done: Done) -> None:
        """Find out whose ``credentials`` are, then call ``done``: with None where they are unknown.

        While Postgres is away: with the account known of old, or else with None, which is counted as an error.
        """
        self._misses.add()
        self._enqueue(credentials, done)

    async def owner_of(self, credentials: Credentials) -> Account | None:
        """Whose ``credentials`` are by the tables as they are, past the cache. Raises StoreError."""
        account = (await self._accounts_of([credentials])).get(credentials)
        if account is not None and account.version == NOT_LOADED:
            await self._accounts.load([account])
        return account

    def forget(self, credentials: Credentials) -> None:
        """Credentials thought unknown were good after all: Phase 1 accepted them."""
        self._unknown.pop(credentials, None)

    def _look_closer(self, credentials: Credentials, entry: Met | None) -> Account | Unknown | None:
        now = self._clock()
        if entry is None:
            until = self._unknown.get(credentials)
            if until is None:
                return None
            if now < until:
                self._negatives.add()
                return UNKNOWN
            del self._unknown[credentials]
            return None
        age_s = now - entry.read_at
        if age_s >= 2 * self._ttl_s:
            return None  # kept for the case that Postgres cannot be asked
        if age_s >= self._ttl_s:
            entry.look_at = now + min(_LOOK_AGAIN_S, self._ttl_s)  # before it may be forgotten
            self._enqueue(credentials, None)  # and with them the account's facts, where they are due
        else:
            self._accounts.refresh(entry.account)
            entry.look_at = self._next_look(entry, now)
        self._hits.add()
        return entry.account

    def _next_look(self, entry: Met, now: float) -> float:
        """When the entry is no longer fresh, or its account's facts are due, whichever is first."""
        return min(entry.read_at + self._ttl_s, max(self._accounts.due_s(entry.account), now + _LOOK_AGAIN_S))

    def _enqueue(self, credentials: Credentials, done: Done | None) -> None:
        waiting = self._waiting.get(credentials)
        if waiting is None:
            if len(self._waiting) >= _WAITING_MAX:
                self._failed(credentials, [done] if done else [])
                return
            waiting = self._waiting[credentials] = []
        if done is not None:
            waiting.append(done)
        if not self._working:
            self._working = True
            self._tasks.start("identify.lookups", self._look_up())

    async def _look_up(self) -> None:
        """While one statement is under way the next credentials queue up, and go together."""
        try:
            while self._waiting:
                batch = list(islice(self._waiting, _BATCH_MAX))
                started = self._clock()
                try:
                    accounts = await self._accounts_of(batch)
                except Exception as error:  # noqa: BLE001  whatever it is, requests wait for an answer
                    self._report(error)
                    for credentials in batch:
                        self._failed(credentials, self._waiting.pop(credentials))
                    continue
                self._report(None)
                for credentials in batch:
                    self._found(credentials, accounts.get(credentials), started, self._waiting.pop(credentials))
        finally:
            self._working = False

    async def _accounts_of(self, batch: Sequence[Credentials]) -> Mapping[Credentials, Account]:
        """The accounts of those credentials that have one, loaded where their facts can be read."""
        found: dict[Credentials, str] = {}
        hashes = {key: self._hash_key(key) for shown in batch for key in shown[:2] if key is not None}
        account_ids = await self._ask(self._key_sql, hashes.values())
        for shown in batch:
            for key in (shown.api_key, shown.alternative_key):
                account_id = account_ids.get(hashes[key]) if key is not None else None
                if account_id is not None:
                    found.setdefault(shown, account_id)
        sessions = {
            shown: self._hash_session(shown.session)
            for shown in batch
            if shown.session is not None and shown not in found
        }
        # Some servers percent-encode what they set and decode what they get; both spellings are the same session then.
        decoded = {
            shown: self._hash_session(unquote_to_bytes(shown.session))
            for shown in sessions
            if shown.session is not None and b"%" in shown.session
        }
        account_ids = await self._ask(self._session_sql, [*sessions.values(), *decoded.values()])
        for spelling in (decoded, sessions):
            for shown, hashed in spelling.items():
                if hashed in account_ids:
                    found[shown] = account_ids[hashed]
        accounts = {shown: self._accounts.get(account_id) for shown, account_id in found.items()}
        now = self._clock()
        due = {
            account
            for account in accounts.values()
            if account.version == NOT_LOADED or self._accounts.due_s(account) <= now
        }
        try:
            await self._accounts.load(list(due))
        except (StoreError, asyncpg.PostgresError) as error:
            # Whose they are is known, and so who pays: admission reads the rest, or decides without.
            _log.warning("facts_not_loaded", accounts=len(due), error=str(error).partition("\n")[0])
        return accounts

    async def _ask(self, sql: str, hashes: Iterable[str | None]) -> Mapping[str | None, str]:
        texts = list({text for text in hashes if text is not None})
        if not texts:
            return {}
        rows = await self._database.fetch(sql, texts)
        if rows and len(rows[0]) != 2:
            raise ValueError(f"identity SQL must return two columns, hash and account_id; found {len(rows[0])}")
        return {hashed: str(account_id) for hashed, account_id in rows}

    def _found(
        self, credentials: Credentials, account: Account | None, started: float, waiting: Sequence[Done]
    ) -> None:
        now = self._clock()
        if account is None:
            self._forget_known(credentials)
            self._unknowns.add()
            if self._negative_ttl_s > 0:
                self._unknown[credentials] = now + self._negative_ttl_s
                self._unknown.move_to_end(credentials)
                if len(self._unknown) > _UNKNOWN_MAX:
                    self._unknown.popitem(last=False)
        else:
            self._unknown.pop(credentials, None)
            entry = self._known.get(credentials)
            if entry is None:
                self._known_bytes += size_bytes(credentials)
                entry = self._known[credentials] = Met(credentials, account, started)
            else:
                entry.account, entry.read_at = account, started
            entry.look_at = self._next_look(entry, now)
            # Whoever is in use is read again every ttl_s and so goes to the end: the first is the longest unused.
            self._known.move_to_end(credentials)
            while len(self._known) > self._entries_max or (
                self._known_bytes > _KNOWN_BYTES_MAX and len(self._known) > 1
            ):
                self._forget_known(next(iter(self._known)))
        self._entries.set(len(self._known) + len(self._unknown))
        _tell(waiting, account)

    def _failed(self, credentials: Credentials, waiting: Sequence[Done]) -> None:
        entry = self._known.get(credentials)
        if entry is None:
            self._errors.add(len(waiting))
            _tell(waiting, None)
        elif self._clock() - entry.read_at < self._stale_max_s:
            self._accounts.refresh(entry.account)
            self._stales.add(len(waiting))
            _tell(waiting, entry.account)
        else:
            self._forget_known(credentials)
            self._errors.add(len(waiting))
            _tell(waiting, None)

    def _forget_known(self, credentials: Credentials) -> None:
        entry = self._known.pop(credentials, None)
        if entry is not None:
            self._known_bytes -= size_bytes(credentials)
            self._forget_authorization(entry)
            entry.look_at = _NEVER  # requests that have met it look for another

    def _forget_authorization(self, entry: Met) -> None:
        if entry.authorization is not None:
            del self._by_authorization[entry.authorization]
            self._known_bytes -= len(entry.authorization)
            entry.authorization = None

    def _report(self, error: Exception | None) -> None:
        """One line when lookups begin to fail, one when they work again."""
        if error is not None and not self._failing:
            _log.warning("identify_failing", error=str(error) or repr(error))
        elif error is None and self._failing:
            _log.info("identify_recovered")
        self._failing = error is not None


def _tell(waiting: Sequence[Done], account: Account | None) -> None:
    for done in waiting:
        try:
            done(account)
        except Exception:  # noqa: BLE001  one request's fault is not its neighbours', who wait for the same answer
            _log.exception("identify_callback_failed")
