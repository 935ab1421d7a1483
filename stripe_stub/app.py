"""The application: what answers where, and what it stands on."""

import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web
from aiohttp.typedefs import Handler

from stripe_stub import checkout, customers, events, meters, payments, portal, prices, shop_page, subscriptions
from stripe_stub.api import Api
from stripe_stub.checkout_page import CheckoutPage
from stripe_stub.completion import Completion
from stripe_stub.control import Control
from stripe_stub.delivery import Deliveries
from stripe_stub.errors import ApiError, refused_over_http
from stripe_stub.faults import Faults
from stripe_stub.happenings import Happenings
from stripe_stub.idempotency import IdempotencyKeys
from stripe_stub.invoicing import Invoicing
from stripe_stub.journal import Journal
from stripe_stub.keeping import Keeping
from stripe_stub.lifecycle import Lifecycle
from stripe_stub.listing import PAGING
from stripe_stub.portal_page import PortalPage
from stripe_stub.prices import SeededPrice
from stripe_stub.state import State
from stripe_stub.switches import Endpoint, Switches
from stripe_stub.versions import NEWEST

BODY_BYTES_MAX = 256 * 1024

log = logging.getLogger("stripe_stub")


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    endpoints: tuple[Endpoint, ...] = ()
    prices: tuple[SeededPrice, ...] = ()
    switches: Switches = field(default_factory=Switches)
    api_version: str = NEWEST  # of the account: how events are shown when read through the API
    secret_key: str | None = None  # None: any sk_… will do
    public_url: str | None = None  # of the hosted pages; None: where the API was called
    data: Path | None = None  # None: nothing is kept


def build_app(settings: Settings) -> web.Application:
    """Raises ValueError or OSError where the file of kept data cannot be read."""
    state = State()
    journal = Journal(state, settings.api_version)
    deliveries = Deliveries(state, settings.endpoints, settings.switches)
    journal.tell = deliveries.tell
    keys = IdempotencyKeys()
    faults = Faults()
    api = Api(state, journal, faults, keys, settings.secret_key)

    invoicing = Invoicing(state, journal)
    lifecycle = Lifecycle(state, journal, invoicing)
    all_customers = customers.Customers(state, journal)
    all_prices = prices.Prices(state, journal)
    sessions = checkout.Checkout(state, journal, settings.public_url)
    completion = Completion(state, journal, all_customers, invoicing, lifecycle)
    portal_sessions = portal.Portal(state, settings.public_url)

    def seed() -> None:
        for price in settings.prices:
            all_prices.seed(price)

    def start_over() -> None:
        state.clear()
        keys.clear()
        journal.api_version = settings.api_version
        deliveries.endpoints = settings.endpoints
        seed()

    keeping = Keeping(settings.data, state, keys, deliveries) if settings.data is not None else None
    if keeping is not None:
        keeping.load()
    seed()

    async def work(_: web.Application) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            if keeping is not None:
                await stack.enter_async_context(keeping.working())
            await stack.enter_async_context(deliveries.working())
            yield

    async def let_go(_: web.Application) -> None:
        faults.replace([])  # those that hang

    app = web.Application(middlewares=[_refuse], client_max_size=BODY_BYTES_MAX)
    app.cleanup_ctx.append(work)
    app.on_shutdown.append(let_go)
    app.add_routes(_customer_routes(api, all_customers))
    app.add_routes(_price_routes(api, all_prices))
    app.add_routes(_checkout_routes(api, sessions, portal_sessions))
    app.add_routes(_subscription_routes(api, subscriptions.Subscriptions(state, journal, lifecycle)))
    app.add_routes(_payment_routes(api, payments.Payments(state, invoicing)))
    app.add_routes(_event_routes(api, events.Events(state, deliveries), meters.Meters(state)))
    app.router.add_route("*", "/v1/{rest:.*}", api.unknown)

    checkout_page = CheckoutPage(state, sessions, completion, deliveries)
    portal_page = PortalPage(state, journal, portal_sessions, lifecycle)
    app.add_routes(
        [
            web.get("/c/pay/{id}", checkout_page.show),
            web.post("/c/pay/{id}", checkout_page.submit),
            web.get("/p/session/{token}", portal_page.show),
            web.post("/p/session/{token}", portal_page.submit),
            web.get("/shop", shop_page.show),
            web.get("/shop/paid", shop_page.show_paid),
        ]
    )
    app.add_routes(Control(state, journal, deliveries, faults, api, start_over).routes())
    app.add_routes(Happenings(state, journal, sessions, completion, lifecycle, invoicing).routes())
    return app


def _customer_routes(api: Api, all_customers: customers.Customers) -> list[web.RouteDef]:
    return [
        web.post("/v1/customers", api.handler(all_customers.create, customers.FIELDS)),
        web.get("/v1/customers", api.handler(all_customers.list, customers.LIST_FIELDS)),
        web.get("/v1/customers/search", api.handler(all_customers.search, customers.SEARCH_FIELDS)),
        web.get("/v1/customers/{id}", api.handler(all_customers.retrieve)),
        web.post("/v1/customers/{id}", api.handler(all_customers.update, customers.FIELDS)),
        web.delete("/v1/customers/{id}", api.handler(all_customers.delete)),
    ]


def _price_routes(api: Api, all_prices: prices.Prices) -> list[web.RouteDef]:
    return [
        web.post("/v1/products", api.handler(all_prices.create_product, prices.PRODUCT_FIELDS)),
        web.get("/v1/products", api.handler(all_prices.list_products, prices.PRODUCT_LIST_FIELDS)),
        web.get("/v1/products/{id}", api.handler(all_prices.retrieve_product)),
        web.post("/v1/prices", api.handler(all_prices.create, prices.PRICE_FIELDS)),
        web.get("/v1/prices", api.handler(all_prices.list, prices.PRICE_LIST_FIELDS)),
        web.get("/v1/prices/{id}", api.handler(all_prices.retrieve)),
    ]


def _checkout_routes(api: Api, sessions: checkout.Checkout, portal_sessions: portal.Portal) -> list[web.RouteDef]:
    return [
        web.post("/v1/checkout/sessions", api.handler(sessions.create, checkout.CREATE_FIELDS)),
        web.get("/v1/checkout/sessions", api.handler(sessions.list, checkout.LIST_FIELDS)),
        web.get("/v1/checkout/sessions/{id}", api.handler(sessions.retrieve)),
        web.get("/v1/checkout/sessions/{id}/line_items", api.handler(sessions.line_items, PAGING)),
        web.post("/v1/checkout/sessions/{id}/expire", api.handler(sessions.expire)),
        web.post("/v1/billing_portal/sessions", api.handler(portal_sessions.create, portal.CREATE_FIELDS)),
    ]


def _subscription_routes(api: Api, them: subscriptions.Subscriptions) -> list[web.RouteDef]:
    return [
        web.post("/v1/subscriptions", api.handler(them.create, subscriptions.CREATE_FIELDS)),
        web.get("/v1/subscriptions", api.handler(them.list, subscriptions.LIST_FIELDS)),
        web.get("/v1/subscriptions/search", api.handler(them.search, customers.SEARCH_FIELDS)),
        web.get("/v1/subscriptions/{id}", api.handler(them.retrieve)),
        web.post("/v1/subscriptions/{id}", api.handler(them.update, subscriptions.UPDATE_FIELDS)),
        web.delete("/v1/subscriptions/{id}", api.handler(them.cancel, subscriptions.CANCEL_FIELDS)),
        web.post("/v1/subscriptions/{id}/pause", api.handler(them.pause, subscriptions.PAUSE_FIELDS)),
        web.post("/v1/subscriptions/{id}/resume", api.handler(them.resume, subscriptions.RESUME_FIELDS)),
    ]


def _payment_routes(api: Api, them: payments.Payments) -> list[web.RouteDef]:
    return [
        web.get("/v1/invoices", api.handler(them.list_invoices, payments.INVOICE_LIST_FIELDS)),
        web.get("/v1/invoices/{id}", api.handler(them.retrieve_invoice)),
        web.get("/v1/charges", api.handler(them.list_charges, payments.CHARGE_LIST_FIELDS)),
        web.get("/v1/charges/{id}", api.handler(them.retrieve_charge)),
        web.get("/v1/invoice_payments", api.handler(them.list_invoice_payments, payments.PAYMENT_LIST_FIELDS)),
        web.post("/v1/refunds", api.handler(them.refund, payments.REFUND_FIELDS)),
    ]


def _event_routes(api: Api, all_events: events.Events, all_meters: meters.Meters) -> list[web.RouteDef]:
    return [
        web.get("/v1/events", api.handler(all_events.list, events.LIST_FIELDS)),
        web.get("/v1/events/{id}", api.handler(all_events.retrieve)),
        web.post("/v1/billing/meter_events", api.handler(all_meters.create, meters.FIELDS)),
    ]


@web.middleware
async def _refuse(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refusals outside the API's own handling, and aiohttp's, in Stripe's shape."""
    try:
        return await handler(request)
    except ApiError as error:
        return web.json_response(error.body(), status=error.status)
    except web.HTTPRedirection:
        raise
    except web.HTTPException as error:
        refusal = refused_over_http(error, request.method, request.path)
        return web.json_response(refusal.body(), status=refusal.status)
    except ConnectionError:
        raise  # the client has gone; there is nobody to answer
    except Exception:
        log.exception("%s %s failed", request.method, request.path)
        mistake = ApiError(500, "api_error", "The stand-in made a mistake; see its log.")
        return web.json_response(mistake.body(), status=500)
