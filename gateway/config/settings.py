"""``config.yaml``: everything about the gateway but its policies and plans.

Every limit has a default here and its reason beside it. In YAML a key has no unit in its name and its value has one
(``connect_timeout: 2s``); in Python it is the other way round (``connect_timeout_s: float``).
"""

import os
from typing import Annotated, Literal, get_args
from urllib.parse import unquote

from pydantic import BeforeValidator, Field, SecretStr, model_validator

from gateway.config.addresses import UNIX
from gateway.config.models import Section, contradiction
from gateway.config.scalars import (
    choice,
    duration_s,
    expected,
    flag,
    optional,
    reader_of,
    secret,
    share,
    text,
    url,
    whole,
)
from gateway.config.settings_accounts import Accounts, Billing, Identity, SoftLimits
from gateway.config.settings_connections import Admin, Forwarding, Limits, Listen, Upstream, is_loopback
from gateway.config.settings_stores import Database, Ledger, Redis

# Each holds its own pools of connections to Postgres and Redis.
WORKERS_MAX = 64
_EVERYWHERE = {"0.0.0.0", "::"}  # noqa: S104 - to compare with, not to bind

LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["json", "console"]
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


class Metrics(Section):
    """Who may read ``/metrics``; the admin listener always serves it."""

    public: Annotated[bool, flag()] = False  # whether the public listener serves it too
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
