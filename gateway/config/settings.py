"""``config.yaml``: everything about the gateway but its policies and plans.

Every limit has a default here and its reason beside it. In YAML a key has no unit in its name and its value has one
(``connect_timeout: 2s``); in Python it is the other way round (``connect_timeout_s: float``).
"""

import os
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Annotated, Literal, get_args
from urllib.parse import unquote, urlsplit

from pydantic import BeforeValidator, Field, SecretStr, model_validator

from gateway.config.addresses import UNIX, UpstreamAddress, is_socket_path
from gateway.config.models import Section, contradiction
from gateway.config.redis_address import read_redis_url
from gateway.config.redis_url import redis_url
from gateway.config.scalars import (
    choice,
    database_url,
    duration_s,
    expected,
    flag,
    months_kept,
    optional,
    reader_of,
    secret,
    secret_url,
    share,
    signing_secrets,
    size_bytes,
    text,
    url,
    whole,
)
from gateway.config.upstream_urls import upstream_addresses
from gateway.policy.origins import origin_of

# Where Redis is a cluster and nobody says otherwise: some five for each primary of the smallest one, so that each has
# its share of the accounts, and not so many that batches become small. Each worker has a connection for each.
CLUSTER_PARTITIONS = 16
# Each holds its own pools of connections to Postgres and Redis.
WORKERS_MAX = 64
_EVERYWHERE = {"0.0.0.0", "::"}  # noqa: S104 - to compare with, not to bind

Host = Annotated[str, text("a host name or an IP address", r"[A-Za-z0-9._:-]+")]
Port = Annotated[int, whole(0, 65535)]
Sql = Annotated[str, text("an SQL statement", length_max=10_000)]
HeaderName = Annotated[str, text("a header name", r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")]
File = Annotated[str | None, optional(text("a file", length_max=4096))]
HttpUrl = Annotated[str, url("an http or https URL", "http", "https")]
WebhookUrl = Annotated[str | None, optional(secret_url("an http or https URL", "http", "https"))]
DatabaseUrl = Annotated[str, database_url()]
RedisUrl = Annotated[str, redis_url()]
_STRIPE_KEY = "a Stripe secret key (sk_… or rk_…)"
_STRIPE_WEBHOOK = "a Stripe webhook signing secret (whsec_…)"
StripeKey = Annotated[
    SecretStr | None, secret(_STRIPE_KEY, {"pk_": "a publishable key", "whsec_": "a webhook signing secret"})
]
StripeWebhookSecret = Annotated[
    SecretStr | None,
    secret(_STRIPE_WEBHOOK, {"pk_": "a publishable key", "sk_": "a secret key", "rk_": "a restricted key"}),
]
AdminToken = Annotated[SecretStr | None, secret("a token of at least 16 characters", {}, length_min=16)]
HashName = Literal["sha256_hex", "none"]
LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["json", "console"]
Flag = Annotated[bool, flag()]
Share = Annotated[float, share()]


def _cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return min(len(affinity(0)) if affinity else os.cpu_count() or 1, WORKERS_MAX)


def _workers() -> BeforeValidator:
    read_count = reader_of(whole(1, WORKERS_MAX))

    def read(value: object) -> int:
        if value == "auto":
            return _cores()
        if isinstance(value, str) and not value.strip().lstrip("+-").isdigit():
            raise expected(f"auto or an integer of 1 to {WORKERS_MAX}", value)
        return int(read_count(value))

    return BeforeValidator(read)


def _partitions() -> BeforeValidator:
    read_count = reader_of(whole(1, 1024))

    def read(value: object) -> int | None:
        if value is None or value == "auto":
            return None
        if isinstance(value, str) and not value.strip().lstrip("+-").isdigit():
            raise expected("auto or an integer of 1 to 1024", value)
        return int(read_count(value))

    return BeforeValidator(read)


def _open_paths() -> BeforeValidator:
    known = ("/metrics", "/healthz", "/readyz")

    def read(value: object) -> tuple[str, ...]:
        listed = value.split(",") if isinstance(value, str) else value or []
        paths = [str(path).strip() for path in listed] if isinstance(listed, list) else ["?"]
        if not all(path in known for path in paths if path):
            raise expected(f"some of {', '.join(known)}", value)
        return tuple(path for path in paths if path)

    return BeforeValidator(read)


def _return_url() -> BeforeValidator:
    def read(value: object) -> str:
        address = value.strip() if isinstance(value, str) else ""
        if origin_of(address) is None:
            raise expected("an http or https URL", value)
        return address

    return BeforeValidator(read)


def _origin() -> BeforeValidator:
    def read(value: object) -> str:
        address = value.strip() if isinstance(value, str) else ""
        origin = origin_of(address)
        if origin is None or urlsplit(address).path.strip("/") or "?" in address or "#" in address:
            raise expected("an origin such as https://shop.example", value)
        return origin

    return BeforeValidator(read)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens on ``host``."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _listen_host() -> BeforeValidator:
    what = "a host name, an IP address or unix:/path"
    read_host = reader_of(text(what, r"[A-Za-z0-9._:-]+"))

    def read(value: object) -> str:
        name = value.strip() if isinstance(value, str) else ""
        if not name.startswith(UNIX):
            host: str = read_host(value)
            return host
        if not is_socket_path(name.removeprefix(UNIX)):
            raise expected(what, value)
        return name

    return BeforeValidator(read)


def _network() -> BeforeValidator:
    def read(value: object) -> IPv4Network | IPv6Network:
        try:
            return ip_network(value.strip() if isinstance(value, str) else "")
        except ValueError:
            raise expected("a network such as 10.0.0.0/8 or an address", value) from None

    return BeforeValidator(read)


_RETURN_URL = _return_url()


class ListenTls(Section):
    """The certificate that clients are shown: PEM files, seen from the folder of config.yaml."""

    certificate: File = None
    key: File = None

    @model_validator(mode="after")
    def _both_or_none(self) -> "ListenTls":
        for name, other in (("key", "certificate"), ("certificate", "key")):
            if getattr(self, name) is None and getattr(self, other) is not None:
                raise contradiction((name,), f"expected a file, found none, yet there is a {other}")
        return self

    @property
    def files(self) -> tuple[str, ...]:
        """Certificate and key; none where TLS is off."""
        return (self.certificate, self.key) if self.certificate and self.key else ()


class Listen(Section):
    """Where clients connect."""

    # Nothing listens wider than it was asked to; a container sets HOST=0.0.0.0. unix:/path has no port.
    host: Annotated[str, _listen_host()] = "127.0.0.1"
    port: Port = 8080  # 0: any free port
    # Connections that the kernel keeps while all workers are busy; a burst of one client's whole pool and more.
    backlog: Annotated[int, whole(1, 65535)] = 1024
    tls: ListenTls = ListenTls()


class Admin(Section):
    """Where Prometheus and operators connect."""

    host: Host = "127.0.0.1"
    port: Port = 9090
    # Asked for by every path; without one the listener must stay on loopback.
    token: AdminToken = None
    # Answered without the token all the same, for scrapers and probes that cannot carry one.
    open_paths: Annotated[tuple[str, ...], _open_paths()] = ()


class Upstream(Section):
    """Phase 1: where it is and how long it may take."""

    addresses: Annotated[tuple[UpstreamAddress, ...], upstream_addresses()] = Field(alias="url")
    # Who vouches for the certificate of an https:// address: a PEM file. Blank: the authorities that the system trusts.
    ca_file: File = None
    # The name that the certificate must have, where it is not the host of the address.
    server_name: Annotated[str | None, optional(text("a host name", r"[A-Za-z0-9._-]+"))] = None
    # Names are looked up again this often, beside the calls; a lookup does not tell the name's own time to live.
    dns_ttl_s: Annotated[float, duration_s("100ms", "1d")] = Field(default=30.0, alias="dns_ttl")
    # Failures in a row (no connection, none of an answer, none in time) after which an address gets no calls, unless
    # it is the last one. One failure may be a restart; three are not chance.
    eject_after: Annotated[int, whole(1, 1000)] = 3
    # And for how long: then one call tries it. Twice as long each time that fails, up to eight times.
    eject_for_s: Annotated[float, duration_s("10ms", "1h")] = Field(default=10.0, alias="eject_for")
    # It stands in the same network; one lost SYN (1 s) may be sent again.
    connect_timeout_s: Annotated[float, duration_s("1ms", "1m")] = Field(default=2.0, alias="connect_timeout")
    # From the end of the request to the answer's head: the slowest cast, with room.
    first_byte_timeout_s: Annotated[float, duration_s("1ms", "1h")] = Field(default=30.0, alias="first_byte_timeout")
    # Between two pieces of an answer: event streams send a comment every 15 to 30 s.
    idle_timeout_s: Annotated[float, duration_s("1ms", "1h")] = Field(default=60.0, alias="idle_timeout")
    # actix closes idle connections after 5 s; whoever lets go first never writes into a closing connection.
    keepalive_idle_s: Annotated[float, duration_s("0s", "1h")] = Field(default=4.0, alias="keepalive_idle")
    # Per worker and address. actix accepts 25,000 in all; more at once than this is a queue better kept on our side.
    connections_max: Annotated[int, whole(1, 65_536)] = 256


class Limits(Section):
    """What one client, and all of them together, may take of a worker."""

    # nginx's and actix's order of size; cookies and tokens rarely pass 8 KiB.
    head_bytes_max: Annotated[int, size_bytes("1KiB", "1MiB")] = 32 * 1024
    headers_max: Annotated[int, whole(8, 1000)] = 128  # aiohttp's parser, behind us, takes no more
    target_bytes_max: Annotated[int, size_bytes("64B", "64KiB")] = 8 * 1024
    # Slow loris: a head takes one packet or two.
    header_timeout_s: Annotated[float, duration_s("100ms", "10m")] = Field(default=10.0, alias="header_timeout")
    # A body that stops coming; longer than any mobile network's handover.
    body_stall_timeout_s: Annotated[float, duration_s("100ms", "1h")] = Field(default=30.0, alias="body_stall_timeout")
    # nginx's default; above the 60 s after which load balancers let go first.
    keepalive_timeout_s: Annotated[float, duration_s("0s", "1h")] = Field(default=75.0, alias="keepalive_timeout")
    # WebSockets on which neither side says anything; most libraries ping every 20 to 60 s.
    tunnel_idle_timeout_s: Annotated[float, duration_s("1s", "1d")] = Field(default=600.0, alias="tunnel_idle_timeout")
    connections_max: Annotated[int, whole(1, 1_000_000)] = 20_000  # per worker; some 5 KiB each while idle: 100 MiB
    # Per worker and client address. 0 is no limit: behind a load balancer all clients have its address.
    connections_per_address_max: Annotated[int, whole(0, 1_000_000)] = 0
    # Per worker: calls that have begun and not ended. Sixteen for each upstream connection may wait; with up to twice
    # buffered_bytes_max each, and what the kernel keeps, that is at most some 600 MiB.
    in_flight_max: Annotated[int, whole(1, 1_000_000)] = 4096
    # Of one request. Bodies stream, so this costs no memory; it bounds what one call may move. Policies may differ.
    body_bytes_max: Annotated[int, size_bytes("0B", "1024GiB")] = 4 * 1024**3
    # A second, asked of uploads only while other calls wait for the upstream connections that slow ones hold.
    body_bytes_per_s_min: Annotated[int, size_bytes("0B", "1GiB")] = Field(default=1024, alias="body_rate_min")
    # Per stream and direction, before its sender is paused: 20,000 streams that all stall stay under 3 GiB.
    buffered_bytes_max: Annotated[int, size_bytes("4KiB", "16MiB")] = 64 * 1024
    # Of an answer, to read the cast's id from; a longer answer is charged without one.
    captured_bytes_max: Annotated[int, size_bytes("1KiB", "16MiB")] = 64 * 1024


class Forwarding(Section):
    """What Phase 1 is told of a request's way to it, and whose word on the client's address is taken."""

    x_forwarded: Flag = True  # false: X-Forwarded-… of the request pass as they came, and none is added
    # This gateway's name in Via, on requests and answers. None by default: clients are not to know of the gateway.
    via: Annotated[str | None, optional(text("a name", r"[A-Za-z0-9!#$%&'*+.^_`|~:-]+"))] = None
    trusted_proxies: tuple[Annotated[IPv4Network | IPv6Network, _network()], ...] = ()
    # The field in which they tell the client's address. None: X-Forwarded-For, read from the right.
    client_address_header: Annotated[str | None, optional(text("a header name", r"[A-Za-z0-9-]+"))] = None

    @model_validator(mode="after")
    def _somebody_is_trusted(self) -> "Forwarding":
        if self.client_address_header is not None and not self.trusted_proxies:
            raise contradiction(
                ("client_address_header",), "expected trusted_proxies beside it: nobody else is believed"
            )
        return self


class Database(Section):
    """Postgres, shared with Phase 1."""

    url: DatabaseUrl = Field(repr=False)
    # Per worker. The ledger, seeding and identification each take one at a time; the rest is for hosted endpoints.
    pool_max: Annotated[int, whole(1, 100)] = 6
    connect_timeout_s: Annotated[float, duration_s("10ms", "1m")] = Field(default=2.0, alias="connect_timeout")
    # No statement of ours touches more than a batch of rows; a longer one waits for a lock or for a dying server.
    statement_timeout_s: Annotated[float, duration_s("10ms", "1m")] = Field(default=2.0, alias="statement_timeout")
    acquire_timeout_s: Annotated[float, duration_s("10ms", "1m")] = Field(default=1.0, alias="acquire_timeout")
    # How long a call may wait for Postgres to admit it while Redis is away; it includes the 15 ms in which all workers
    # notice that. Then the worker decides by itself.
    admission_timeout_s: Annotated[float, duration_s("1ms", "10s")] = Field(default=0.045, alias="admission_timeout")


class Redis(Section):
    """One Redis, a Redis Cluster, or what Sentinels watch: counters and holds that can be rebuilt."""

    url: RedisUrl = Field(repr=False)
    # None (auto): 1 where one server has all data, CLUSTER_PARTITIONS on a cluster.
    # Changing it on a running fleet loses sight of holds and windows: stop all gateways first.
    partitions_wanted: Annotated[int | None, _partitions()] = Field(default=None, alias="partitions")
    # A script call takes about 1 ms; a store that hangs is as lost as one that refuses.
    timeout_s: Annotated[float, duration_s("1ms", "10s")] = Field(default=0.025, alias="timeout")
    connect_timeout_s: Annotated[float, duration_s("1ms", "1m")] = Field(default=1.0, alias="connect_timeout")
    # Redis serves nobody else while the script runs: 256 calls are about 2 ms.
    batch_max: Annotated[int, whole(1, 4096)] = 256

    @property
    def partitions(self) -> int:
        """By how many hash tags the accounts are shared out."""
        if self.partitions_wanted is not None:
            return self.partitions_wanted
        return CLUSTER_PARTITIONS if read_redis_url(self.url).form == "cluster" else 1


class ApiKey(Section):
    """Where an API key stands in a request, how Phase 1 stores it, and whose it is.

    ``sql`` gets the hashes as ``$1::text[]`` and returns rows ``hash, account_id``, both text; unknown keys have none.
    """

    header: HeaderName = "Authorization"
    scheme: Annotated[str | None, optional(text("an authentication scheme such as Bearer", r"[A-Za-z0-9-]+"))] = (
        "Bearer"
    )
    # A header whose whole value is the key, for a second way that Phase 1 accepts.
    alternative_header: Annotated[str | None, optional(text("a header name", r"[A-Za-z0-9_-]+"))] = "X-API-Key"
    hash: Annotated[HashName, choice(*get_args(HashName))] = "sha256_hex"
    sql: Sql = "SELECT key_sha256 AS hash, user_id::text AS account_id FROM api_keys WHERE key_sha256 = ANY($1::text[])"


class Session(Section):
    """The same for the session cookie."""

    cookie: Annotated[str, text("a cookie name", r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")] = "session"
    hash: Annotated[HashName, choice(*get_args(HashName))] = "sha256_hex"
    sql: Sql = (
        "SELECT token_sha256 AS hash, user_id::text AS account_id FROM sessions "
        "WHERE token_sha256 = ANY($1::text[]) AND expires_at > now()"
    )


class IdentityCache(Section):
    """How long an answer about a credential is believed. Phase 1 still checks each one, so stale is never open."""

    entries_max: Annotated[int, whole(1, 10_000_000)] = 100_000  # per worker; about 300 bytes each
    ttl_s: Annotated[float, duration_s("0s", "1d")] = Field(default=30.0, alias="ttl")
    negative_ttl_s: Annotated[float, duration_s("0s", "1d")] = Field(default=5.0, alias="negative_ttl")
    # While Postgres is away an entry serves for this long after it was read.
    stale_max_s: Annotated[float, duration_s("0s", "7d")] = Field(default=3600.0, alias="stale_max")


class Identity(Section):
    """Credentials to accounts, by read-only SQL on Phase 1's tables."""

    api_key: ApiKey = ApiKey()
    session: Session = Session()
    cache: IdentityCache = IdentityCache()


class Accounts(Section):
    """What is remembered of an account: plan and budgets."""

    # Changes made through the gateway count at once; this is for rows that somebody changed by hand.
    facts_ttl_s: Annotated[float, duration_s("0s", "1d")] = Field(default=30.0, alias="facts_ttl")
    entries_max: Annotated[int, whole(1, 10_000_000)] = 100_000  # per worker; about 1 KiB each


class Spool(Section):
    """Where charged calls wait on this machine's disk while Postgres is away."""

    # Seen from the folder of config.yaml; it must outlive the gateway, and belongs to one database. Blank: no spool,
    # events wait in memory.
    folder: Annotated[str | None, optional(text("a folder", length_max=1000))] = ".castgate/spool"
    # Of all files there: a million events, some 15 minutes of 1,000 casts a second.
    bytes_max: Annotated[int, size_bytes("64KiB", "1024GiB")] = 256 * 1024**2
    # A spool that nobody has emptied for so long is not watched; the windows of most budgets are over too.
    age_max_s: Annotated[float, duration_s("1s", "365d")] = Field(default=7 * 86400.0, alias="age_max")
    # How long an event waits for company on its way to the disk; a killed process loses as much.
    fsync_interval_s: Annotated[float, duration_s("1ms", "10s")] = Field(default=0.02, alias="fsync_interval")
    # What becomes of an event for which there is no room here nor in the queue. hold: it counts as held until its
    # worker ends and is then charged as expired; drop: it is not charged; refuse: as hold, and calls that cost are
    # answered 503 until there is room.
    at_bound: Annotated[Literal["hold", "drop", "refuse"], choice("hold", "drop", "refuse")] = "hold"


class Ledger(Section):
    """Charged calls on their way to Postgres."""

    # Holds stay in Redis for this long after a call, so that a limit is exact again 20 ms after the last cast.
    flush_interval_s: Annotated[float, duration_s("1ms", "10s")] = Field(default=0.02, alias="flush_interval")
    # Rows of one transaction: some 60 ms of Postgres. Calls make one of the interval, a few hundred; where a thousand
    # connections keep the loop busy, each write waits for several of its rounds, and smaller ones fall ever behind.
    batch_max: Annotated[int, whole(1, 10_000)] = 2_000
    queue_max: Annotated[int, whole(1, 10_000_000)] = 100_000  # per worker; about 500 bytes each: 50 MiB
    # Gets cast ids as $1::text[] and costs in cents as $2::numeric[]; blank where there is no such column.
    cast_cost_sql: Annotated[str | None, optional(text("an SQL statement", length_max=10_000))] = (
        "UPDATE casts SET cost_cents = new.cost_cents FROM unnest($1::text[], $2::numeric[]) AS new(id, cost_cents) "
        "WHERE casts.id = new.id::uuid"
    )
    # What casts cost, for castgate reconcile: gets cast ids as $1::text[] and returns rows (id, cost_cents), id as
    # text; blank where casts cannot be read.
    cast_read_sql: Annotated[str | None, optional(text("an SQL statement", length_max=10_000))] = (
        "SELECT casts.id::text AS id, casts.cost_cents FROM casts WHERE casts.id = ANY($1::text[]::uuid[])"
    )
    # How often one worker of a gateway compares a few accounts' ledger, counters and Redis for the drift metrics: some
    # ms of each store. 0s: never.
    drift_interval_s: Annotated[float, duration_s("0s", "1d")] = Field(default=60.0, alias="drift_interval")
    # Full months before this one whose events castgate maintain keeps; it drops the others. 0: all are kept. At least
    # 2, so that no window but a total begins in what is dropped and still changes.
    retention_months: Annotated[int, months_kept()] = 0
    # Months whose partitions are made ahead, by a worker or by castgate maintain.
    partitions_ahead: Annotated[int, whole(1, 24)] = 3
    spool: Spool = Spool()


class Billing(Section):
    """Stripe. Off where a key is blank: casts go on, hosted billing endpoints answer 503."""

    stripe_secret_key: StripeKey = None
    # Several, separated by commas, while one takes over from another.
    stripe_webhook_secret: StripeWebhookSecret = None
    stripe_api_base: HttpUrl = "https://api.stripe.com"
    # Stripe answers within a second or two; who waits for a payment page waits a little longer than for others.
    connect_timeout_s: Annotated[float, duration_s("10ms", "1m")] = Field(default=2.0, alias="connect_timeout")
    timeout_s: Annotated[float, duration_s("10ms", "20s")] = Field(
        default=5.0, alias="timeout"
    )  # of a call, retry included
    # The plan of accounts that have none.
    default_plan: Annotated[str, text("the name of a plan")] = "free"
    # How long an unpaid plan is kept while Stripe tries to collect: most cards that fail are mended within days.
    grace_days: Annotated[int, whole(0, 90)] = 7
    # Where the payment page leads back to. Blank: our own front page, /, at the address of listen.
    success_url: Annotated[str | None, optional(_RETURN_URL)] = None
    cancel_url: Annotated[str | None, optional(_RETURN_URL)] = None
    # Sites to which a request's own success_url, cancel_url and return_url may lead, as https://host or https://host:port.
    return_origins: tuple[Annotated[str, _origin()], ...] = ()

    @property
    def stripe_webhook_secrets(self) -> tuple[str, ...]:
        """The signing secrets to try, in order."""
        listed = self.stripe_webhook_secret.get_secret_value() if self.stripe_webhook_secret else ""
        return tuple(secret.strip() for secret in listed.split(",") if secret.strip())


class BudgetWebhook(Section):
    """Where announcements of soft limits go; off where no URL is."""

    # Perhaps with a token in it: not shown.
    url: WebhookUrl = Field(default=None, repr=False)
    # Several, separated by commas, while one takes over from another: every message is signed with each.
    secret: Annotated[SecretStr | None, signing_secrets()] = None
    timeout_s: Annotated[float, duration_s("10ms", "1m")] = Field(default=10.0, alias="timeout")  # of one attempt
    # Whichever comes first; then the message is dead until castgate outbox retry.
    attempts_max: Annotated[int, whole(1, 1000)] = 50
    age_max_s: Annotated[float, duration_s("1s", "30d")] = Field(default=3 * 86400.0, alias="age_max")

    @model_validator(mode="after")
    def _is_signed(self) -> "BudgetWebhook":
        if self.url is not None and self.secret is None:
            raise contradiction(("secret",), "expected a secret, with which the messages are signed")
        return self

    @property
    def secrets(self) -> tuple[str, ...]:
        """What to sign with, in order."""
        listed = self.secret.get_secret_value() if self.secret else ""
        return tuple(one for one in listed.split(",") if one)


class SoftLimits(Section):
    """Announcements of how far budgets are used; which shares of them is the plans' to say."""

    # How often somebody looks for what was not noticed at once: a limit that was lowered, a worker that was killed. A
    # pass takes a tenth of one Postgres backend. 0s: never.
    sweep_interval_s: Annotated[float, duration_s("0s", "1d")] = Field(default=60.0, alias="sweep_interval")
    webhook: BudgetWebhook = BudgetWebhook()


class Metrics(Section):
    """Who may read ``/metrics``; the admin listener always serves it."""

    public: Flag = False  # whether the public listener serves it too
    # The share of requests whose stages are timed (castgate_stage_duration_seconds): enough for quantiles.
    stage_sample: Share = 0.01


class Log(Section):
    """What is written to standard error, and how."""

    level: Annotated[LogLevel, choice(*get_args(LogLevel))] = "info"
    format: Annotated[LogFormat, choice(*get_args(LogFormat))] = "json"
    # The share of requests that have a line of their own: about 60 µs of a worker each.
    request_sample: Share = 0.0


class Traces(Section):
    """Spans for an OpenTelemetry collector; off where none is named."""

    endpoint: Annotated[str | None, optional(url("an http or https URL", "http", "https"))] = None
    # Of requests that bring no traceparent; one that does is traced where its caller says so.
    sample: Share = 0.01
    # name=value, several separated by commas: what the collector asks for, such as an Authorization.
    headers: Annotated[SecretStr | None, secret("headers such as name=value,other=value", {})] = None

    @property
    def header_fields(self) -> dict[str, str]:
        """``headers`` by name."""
        listed = self.headers.get_secret_value() if self.headers else ""
        pairs = (pair.partition("=") for pair in listed.split(",") if pair.strip())
        return {name.strip(): unquote(value.strip()) for name, _, value in pairs}


class Settings(Section):
    """``config.yaml``, read once and never changed."""

    listen: Listen = Listen()
    admin: Admin = Admin()
    # auto: one for each core this process may run on.
    workers: Annotated[int, _workers()] = Field(default_factory=_cores)
    # How long calls under way may take to end after SIGTERM; then they are cut. Fly's kill_timeout must be longer.
    drain_timeout_s: Annotated[float, duration_s("0s", "1h")] = Field(default=10.0, alias="drain_timeout")
    # How long the holds of a worker that died stay before they are settled: longer than a pause that it may wake from.
    hold_ttl_s: Annotated[float, duration_s("1s", "1d")] = Field(default=60.0, alias="hold_ttl")
    upstream: Upstream
    limits: Limits = Limits()
    forwarding: Forwarding = Forwarding()
    database: Database
    redis: Redis
    identity: Identity = Identity()
    accounts: Accounts = Accounts()
    ledger: Ledger = Ledger()
    billing: Billing = Billing()
    soft_limits: SoftLimits = SoftLimits()
    metrics: Metrics = Metrics()
    log: Log = Log()
    traces: Traces = Traces()
    # The folder of policies and plans, seen from the folder of config.yaml.
    policies: Annotated[str, text("a folder")] = "policies"

    @model_validator(mode="after")
    def _who_is_let_in_from_elsewhere_has_a_token(self) -> "Settings":
        if self.admin.token is None and not is_loopback(self.admin.host):
            message = f"expected a token (ADMIN_TOKEN), as {self.admin.host} can be reached from other machines"
            raise contradiction(("admin", "token"), message)
        return self

    @model_validator(mode="after")
    def _listeners_differ(self) -> "Settings":
        if self.listen.host.startswith(UNIX):
            return self
        hosts = {self.listen.host, self.admin.host}
        is_same_host = len(hosts) == 1 or hosts & _EVERYWHERE
        if is_same_host and self.admin.port == self.listen.port != 0:
            raise contradiction(("admin", "port"), f"expected a port other than listen.port, found {self.admin.port}")
        return self
