"""``config.yaml``: whose a call is, what is remembered of an account, how it pays, what is announced of its budgets."""

from typing import Annotated, Literal, get_args
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, SecretStr, model_validator

from gateway.config.models import Section, contradiction
from gateway.config.request_fields import request_field
from gateway.config.scalars import (
    choice,
    duration_s,
    expected,
    optional,
    secret,
    secret_url,
    signing_secrets,
    text,
    url,
    whole,
)
from gateway.policy.origins import origin_of

Sql = Annotated[str, text("an SQL statement", length_max=10_000)]
HashName = Literal["sha256_hex", "none"]
HttpUrl = Annotated[str, url("an http or https URL", "http", "https")]
WebhookUrl = Annotated[str | None, optional(secret_url("an http or https URL", "http", "https"))]
_STRIPE_KEY = "a Stripe secret key (sk_… or rk_…)"
_STRIPE_WEBHOOK = "a Stripe webhook signing secret (whsec_…)"
StripeKey = Annotated[
    SecretStr | None, secret(_STRIPE_KEY, {"pk_": "a publishable key", "whsec_": "a webhook signing secret"})
]
StripeWebhookSecret = Annotated[
    SecretStr | None,
    secret(_STRIPE_WEBHOOK, {"pk_": "a publishable key", "sk_": "a secret key", "rk_": "a restricted key"}),
]


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


_RETURN_URL = _return_url()


class ApiKey(Section):
    """Where an API key stands in a request, how Phase 1 stores it, and whose it is.

    ``sql`` gets the hashes as ``$1::text[]`` and returns rows ``hash, account_id``, both text; unknown keys have none.
    """

    header: Annotated[str, request_field()] = "Authorization"
    scheme: Annotated[str | None, optional(text("an authentication scheme such as Bearer", r"[A-Za-z0-9-]+"))] = (
        "Bearer"
    )
    # A header whose whole value is the key, for a second way that Phase 1 accepts.
    alternative_header: Annotated[str | None, optional(request_field())] = "X-API-Key"
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
