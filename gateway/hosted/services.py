"""What the hosted handlers need of the rest of the gateway, handed to them by the worker that composes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiohttp import web

if TYPE_CHECKING:
    from gateway.accounts import Accounts
    from gateway.admission import Admission
    from gateway.billing import Billing
    from gateway.config.settings import Settings
    from gateway.database import Database
    from gateway.hosted.webhooks import Webhooks
    from gateway.identify import Identify
    from gateway.metrics_scrape import Exposition
    from gateway.policy.rules import Rules


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """``rules`` and ``settings`` are asked anew for each request, because both reload while running."""

    identify: Identify
    accounts: Accounts
    admission: Admission
    database: Database
    rules: Callable[[], Rules]
    settings: Callable[[], Settings]
    render_metrics: Callable[[str], Exposition]  # of the scraper's Accept field
    now_ms: Callable[[], int]
    billing: Billing | None = None  # None: billing is off
    webhooks: Webhooks | None = None  # there where billing is


SERVICES = web.AppKey("services", Services)
