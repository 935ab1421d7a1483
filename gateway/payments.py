"""Stripe as the gateway uses it: the real library behind a few calls, each with a bound on its time, and two errors.

PaymentsUnavailableError: Stripe cannot answer now (unreachable, 429, 5xx, a proxy's HTML, no answer in time); the same
call may succeed later. PaymentsRefusedError: Stripe has answered no (4xx); the same call will be refused again.

The library's own time-out covers one attempt and not its retries, so each call is bounded from outside as well. Its
telemetry writes to the home folder and is off. What it returns is handed on as plain dicts, since its objects are none.
It is imported where billing is on, and only there: with what it imports itself it takes 10 MiB of each worker.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import structlog

from gateway.policy.stripe_events import ACCOUNT_KEY, PLAN_KEY

if TYPE_CHECKING:
    import stripe

    from gateway.config.settings_accounts import Billing

# The version whose shapes this was written for; what the account's own default is does not matter then.
STRIPE_VERSION = "2026-10-28.endive"
# For connections that break and answers of 409 and 5xx; the library waits half a second before it.
RETRIES_MAX = 1
# Calls under way in a worker: a Stripe that hangs must not fill the hosted endpoints' connections.
CALLS_MAX = 16
PAGE_SIZE = 100
_ERROR_LENGTH_MAX = 300

Json = dict[str, Any]
_log = structlog.get_logger()


class PaymentsUnavailableError(Exception):
    """Stripe cannot answer now. ``kept``: it answered 5xx itself, and will repeat that for the same idempotency key."""

    def __init__(self, reason: str, *, kept: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.kept = kept


class PaymentsRefusedError(Exception):
    """Stripe says no: what was asked, or the key it was asked with, is wrong. The text is Stripe's code, no secret."""

    def __init__(self, *, status: int, code: str, param: str | None = None, request_id: str | None = None) -> None:
        super().__init__(f"{status} {code}")
        self.status = status
        self.code = code
        self.param = param
        self.request_id = request_id

    @property
    def is_missing_customer(self) -> bool:
        """The customer was deleted, or belongs to another Stripe account or mode."""
        return self.code == "resource_missing" and self.param == "customer"

    @property
    def is_missing(self) -> bool:
        """What was asked for is not there, or no longer."""
        return self.status == 404 and self.code == "resource_missing"


class Payments:
    """One worker's way to Stripe. Make it on the event loop that uses it, and close it."""

    def __init__(self, settings: Billing) -> None:
        import httpx  # noqa: PLC0415  as told above
        import stripe  # noqa: PLC0415

        assert settings.stripe_secret_key is not None, "billing is off without a key"
        self._stripe_error = stripe.StripeError
        stripe.enable_telemetry = False
        self._timeout_s = settings.timeout_s
        self._http = stripe.HTTPXClient(timeout=httpx.Timeout(settings.timeout_s, connect=settings.connect_timeout_s))
        client = stripe.StripeClient(
            settings.stripe_secret_key.get_secret_value(),
            base_addresses={"api": settings.stripe_api_base.rstrip("/")},
            http_client=self._http,
            max_network_retries=RETRIES_MAX,
            stripe_version=STRIPE_VERSION,
        )
        self._v1 = client.v1
        self._under_way = 0

    async def close(self) -> None:
        """Closes the connections that are kept open."""
        await self._http.close_async()  # type: ignore[no-untyped-call]  # stripe 16.1

    async def create_customer(self, account_id: str, idempotency_key: str) -> str:
        """The id of a new customer; the same one for the same key."""
        made = await self._call(
            lambda: self._v1.customers.create_async(
                {"metadata": {ACCOUNT_KEY: account_id}}, {"idempotency_key": idempotency_key}
            )
        )
        return _text(made, "id")

    async def create_checkout(
        self,
        *,
        account_id: str,
        customer_id: str,
        plan: str,
        price: str,
        success_url: str,
        cancel_url: str,
        idempotency_key: str | None,
    ) -> tuple[str, str]:
        """Id and address of a page on which the customer subscribes to ``price``."""
        metadata = {ACCOUNT_KEY: account_id, PLAN_KEY: plan}
        made = await self._call(
            lambda: self._v1.checkout.sessions.create_async(
                {
                    "mode": "subscription",
                    "customer": customer_id,
                    "client_reference_id": account_id,
                    "line_items": [{"price": price, "quantity": 1}],
                    # Stripe copies neither into the other: the session's events carry the first, later ones the second.
                    "metadata": metadata,
                    "subscription_data": {"metadata": metadata},
                    "success_url": success_url,
                    "cancel_url": cancel_url,
                },
                {"idempotency_key": idempotency_key} if idempotency_key else {},
            )
        )
        return _text(made, "id"), _text(made, "url")

    async def create_portal(self, customer_id: str, return_url: str) -> str:
        """The address of a page on which the customer changes or ends the subscription."""
        made = await self._call(
            lambda: self._v1.billing_portal.sessions.create_async({"customer": customer_id, "return_url": return_url})
        )
        return _text(made, "url")

    async def subscription(self, subscription_id: str) -> Json:
        """The subscription as it is now."""
        return await self._call(lambda: self._v1.subscriptions.retrieve_async(subscription_id))

    async def subscriptions_of(self, customer_id: str) -> Sequence[Json]:
        """The customer's newest subscriptions that have not ended; more than a page of them nobody has."""
        page = await self._call(
            lambda: self._v1.subscriptions.list_async({"customer": customer_id, "limit": PAGE_SIZE})
        )
        return _rows(page)

    async def all_subscriptions(self, pages_max: int) -> AsyncIterator[Json]:
        """Every subscription, ended ones too, newest first; at most ``pages_max`` pages."""
        async for row in self._pages(
            lambda more: self._v1.subscriptions.list_async(cast("Any", {"status": "all", "limit": PAGE_SIZE, **more})),
            pages_max,
        ):
            yield row

    async def events_since(self, since_s: int, types: Sequence[str], pages_max: int) -> AsyncIterator[Json]:
        """Events of ``types`` (at most 20) from ``since_s`` on, newest first. Stripe keeps them for 30 days."""
        async for row in self._pages(
            lambda more: self._v1.events.list_async(
                cast("Any", {"created": {"gte": since_s}, "types": list(types), "limit": PAGE_SIZE, **more})
            ),
            pages_max,
        ):
            yield row

    async def event(self, event_id: str) -> Json:
        """The event with this id. Stripe keeps them for 30 days."""
        return await self._call(lambda: self._v1.events.retrieve_async(event_id))

    async def _pages(
        self, ask: Callable[[Mapping[str, str]], Coroutine[Any, Any, Any]], pages_max: int
    ) -> AsyncIterator[Json]:
        more: Mapping[str, str] = {}
        for _ in range(pages_max):
            cursor = more
            page = await self._call(lambda: ask(cursor))  # noqa: B023  called before the loop goes on
            rows = _rows(page)
            for row in rows:
                yield row
            if page.get("has_more") is not True or not rows:
                return
            more = {"starting_after": _text(rows[-1], "id")}
        _log.warning("stripe_list_cut", pages_max=pages_max)

    async def _call(self, ask: Callable[[], Coroutine[Any, Any, Any]]) -> Json:
        """What Stripe answers. Raises PaymentsUnavailableError, PaymentsRefusedError."""
        if self._under_way >= CALLS_MAX:
            raise PaymentsUnavailableError(f"{CALLS_MAX} calls are under way already")
        self._under_way += 1
        try:
            async with asyncio.timeout(self._timeout_s):
                answer = (await ask()).to_dict()
        except TimeoutError:
            raise PaymentsUnavailableError(f"no answer within {self._timeout_s:g} s") from None
        except self._stripe_error as error:
            raise _translated(error) from None
        except Exception as error:  # noqa: BLE001  an answer that no Stripe gives breaks the library in many ways
            # Its text may quote the answer.
            raise PaymentsUnavailableError(f"an answer that is not Stripe's ({type(error).__name__})") from None
        finally:
            self._under_way -= 1
        if not isinstance(answer, dict):
            raise PaymentsUnavailableError("an answer that is not Stripe's")
        return answer


def _translated(error: stripe.StripeError) -> PaymentsUnavailableError | PaymentsRefusedError:
    status = error.http_status
    details = error.json_body.get("error") if isinstance(error.json_body, dict) else None
    from_stripe = isinstance(details, dict)
    if status is None:  # every error of a connection is without one
        cause = error.__cause__
        return PaymentsUnavailableError(f"no connection ({type(cause or error).__name__})")
    if status in (409, 429) or status >= 500 or status < 400 or not from_stripe:
        return PaymentsUnavailableError(f"HTTP {status}", kept=status >= 500 and from_stripe)
    code = error.code or (details or {}).get("type") or type(error).__name__
    param = getattr(error, "param", None) or (details or {}).get("param")
    return PaymentsRefusedError(
        status=status,
        code=str(code)[:_ERROR_LENGTH_MAX],
        param=str(param)[:_ERROR_LENGTH_MAX] if param else None,
        request_id=error.request_id,
    )


def _text(answer: Mapping[str, Any], key: str) -> str:
    found = answer.get(key)
    if not isinstance(found, str) or not found:
        raise PaymentsUnavailableError(f"an answer without {key}")
    return found


def _rows(page: Mapping[str, Any]) -> list[Json]:
    rows = page.get("data")
    if not isinstance(rows, list):
        raise PaymentsUnavailableError("an answer without data")
    return [row for row in rows if isinstance(row, dict)]
