"""``/v1/billing/checkout`` and ``/v1/billing/portal``: pages of Stripe's, for the account that asks.

Price and customer come from what is stored and configured, never from the request. An account has one customer: the key
under which Stripe makes it is the same for everybody who tries, and the first id that is stored stays. It has one
subscription: while one is open, another checkout is refused and the portal is named, where plans are changed.
"""

import hashlib

import structlog
from aiohttp import web

from gateway.billing import Billing
from gateway.database import QUERIES
from gateway.hosted.answers import Problem, RefusedError, answer, unprocessable
from gateway.hosted.billing_body import (
    CheckoutBody,
    PortalBody,
    idempotency_key,
    paid_plans,
    read_body,
    return_address,
)
from gateway.hosted.caller import caller_of
from gateway.hosted.query import read_query
from gateway.hosted.services import SERVICES, Services
from gateway.payments import PaymentsRefusedError, PaymentsUnavailableError
from gateway.policy.subscriptions import status_of

# Until a page may be asked for again where Stripe is away: its outages last minutes, its hiccups a second.
RETRY_AFTER_S = 5

_log = structlog.get_logger()


async def start_checkout(request: web.Request) -> web.Response:
    """200 with the address of a page to pay on; 404 no such plan, 422 one without a price, 409 subscribed already."""
    services = request.app[SERVICES]
    billing = _billing_of(services)
    account = await caller_of(request)
    read_query(request, ())
    key = idempotency_key(request)
    body = await read_body(request, CheckoutBody)
    plan, price = _plan_of(services, body.plan)
    settings = services.settings()
    success_url = return_address(settings, "success_url", body.success_url, settings.billing.success_url)
    cancel_url = return_address(settings, "cancel_url", body.cancel_url, settings.billing.cancel_url)
    try:
        # Twice, because a customer that Stripe no longer has is made anew.
        for last in (False, True):
            customer_id = await _customer_of(billing, account.account_id)
            try:
                await _refuse_second(services, billing, customer_id)
                session_id, url = await billing.payments.create_checkout(
                    account_id=account.account_id,
                    customer_id=customer_id,
                    plan=plan,
                    price=price,
                    success_url=success_url,
                    cancel_url=cancel_url,
                    idempotency_key=_scoped(account.account_id, key),
                )
                return answer({"url": url, "session_id": session_id})
            except PaymentsRefusedError as error:
                if last or not error.is_missing_customer:
                    raise
                await _forget_customer(billing, account.account_id, customer_id)
    except PaymentsUnavailableError as error:
        raise _unavailable(error) from None
    except PaymentsRefusedError as error:
        raise _refused(error) from None
    raise AssertionError("the second try answers or raises")


async def open_portal(request: web.Request) -> web.Response:
    """200 with the address of a page on which the subscription is changed or ended; 404 where there never was one."""
    services = request.app[SERVICES]
    billing = _billing_of(services)
    account = await caller_of(request)
    read_query(request, ())
    body = await read_body(request, PortalBody)
    settings = services.settings()
    return_url = return_address(settings, "return_url", body.return_url, settings.billing.cancel_url)
    record = await billing.database.fetchrow(QUERIES["billing_customer"], account.account_id)
    customer_id = record["stripe_customer_id"] if record else None
    if customer_id is None:
        raise _no_customer()
    try:
        return answer({"url": await billing.payments.create_portal(customer_id, return_url)})
    except PaymentsUnavailableError as error:
        raise _unavailable(error) from None
    except PaymentsRefusedError as error:
        raise (_no_customer() if error.is_missing_customer else _refused(error)) from None


def _billing_of(services: Services) -> Billing:
    if services.billing is None:
        # Whoever asks: nobody can be charged here, so there is nobody to identify.
        raise RefusedError(503, "billing_disabled", "Billing is switched off on this gateway; nothing was charged.")
    return services.billing


def _plan_of(services: Services, asked: str | None) -> tuple[str, str]:
    """Name and price of the plan that is asked for, or of the first that has a price."""
    rules = services.rules()
    paid = paid_plans(rules)
    expected = f"one of {', '.join(paid)}" if paid else "a plan with a stripe_price; none has one"
    name = asked if asked is not None else next(iter(paid), None)
    if name is None:
        raise unprocessable(Problem(field="plan", found="nothing", expected=expected))
    if name not in rules.plans:
        problem = Problem(field="plan", found=name, expected=expected)
        raise RefusedError(404, "not_found", "There is no such plan.", problems=(problem,))
    price = rules.plans[name].stripe_price
    if price is None:
        raise unprocessable(Problem(field="plan", found=f"{name}, which has no price", expected=expected))
    return name, price


async def _customer_of(billing: Billing, account_id: str) -> str:
    """The account's one customer, made where there is none yet."""
    record = await billing.database.fetchrow(QUERIES["billing_customer"], account_id)
    if record is not None and record["stripe_customer_id"] is not None:
        return str(record["stripe_customer_id"])
    attempt = record["customer_attempt"] if record else 0
    try:
        made = await billing.payments.create_customer(account_id, f"castgate-customer-{account_id}-{attempt}")
    except PaymentsUnavailableError as error:
        if error.kept:  # Stripe repeats this answer for a day to whoever comes with the same key
            await billing.database.execute(QUERIES["billing_customer_anew"], account_id, None, attempt)
        raise
    kept = await billing.database.fetchrow(QUERIES["billing_customer_keep"], account_id, made)
    assert kept is not None
    return str(kept["stripe_customer_id"])


async def _forget_customer(billing: Billing, account_id: str, customer_id: str) -> None:
    _log.warning("stripe_customer_missing", account=account_id, customer=customer_id)
    record = await billing.database.fetchrow(QUERIES["billing_customer"], account_id)
    if record is not None:
        attempt = record["customer_attempt"]
        await billing.database.execute(QUERIES["billing_customer_anew"], account_id, customer_id, attempt)


async def _refuse_second(services: Services, billing: Billing, customer_id: str) -> None:
    """409 where the customer has a subscription that may take money, by Stripe's word: webhooks may be on their way."""
    rows = await billing.payments.subscriptions_of(customer_id)
    status = next((str(row.get("status")) for row in rows if status_of(str(row.get("status"))).open), None)
    if status is None:
        return
    settings = services.settings()
    address = return_address(settings, "return_url", None, settings.billing.cancel_url)
    portal_url = await billing.payments.create_portal(customer_id, address)
    problem = Problem(field="plan", found=f"a subscription that is {status}", expected="no subscription yet")
    message = "The account has a subscription already; its plan is changed, and it is ended, in the portal."
    raise RefusedError(409, "conflict", message, problems=(problem,), extra={"portal_url": portal_url})


def _scoped(account_id: str, key: str | None) -> str | None:
    """The client's key as Stripe gets it: what one account uses is nobody else's."""
    if key is None:
        return None
    return "castgate-checkout-" + hashlib.sha256(f"{account_id}\0{key}".encode()).hexdigest()


def _no_customer() -> RefusedError:
    return RefusedError(404, "not_found", "The account has never subscribed; POST /v1/billing/checkout begins.")


def _unavailable(error: PaymentsUnavailableError) -> RefusedError:
    _log.warning("stripe_unavailable", reason=error.reason)
    return _away()


def _refused(error: PaymentsRefusedError) -> RefusedError:
    if error.code == "idempotency_error":
        problem = Problem(field="Idempotency-Key", found="one used before", expected="another key for another request")
        return unprocessable(problem)
    # A price that is not there, a key that was rolled: the operator's to mend, and none of the client's business.
    _log.error(
        "stripe_refused", status=error.status, code=error.code, param=error.param, stripe_request=error.request_id
    )
    return _away()


def _away() -> RefusedError:
    message = "Stripe cannot be reached just now; nothing was charged. Try again shortly."
    return RefusedError(503, "billing_unavailable", message, headers={"Retry-After": str(RETRY_AFTER_S)})
