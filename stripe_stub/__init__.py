"""A stand-in for Stripe, to try Castgate out and to test it: the API, the hosted pages, and signed webhooks.

Start it with ``python -m stripe_stub --port 12111 --webhook-url http://… --webhook-secret whsec_… --price
price_pro=4900`` and give its address to a client as the API's: ``StripeClient(key, base_addresses={"api": …})``. Any
key ``sk_…`` will do. It shares no code with `gateway/`, which never imports it, and none with the `stripe` library.

API (form-encoded requests, JSON answers and errors as Stripe's; idempotency keys; ``expand[]``; pages by cursor)
    /v1/customers                create, retrieve, update, delete, list, search (metadata, e-mail)
    /v1/products, /v1/prices     create, retrieve, list
    /v1/checkout/sessions        create (mode subscription), retrieve, list, line_items, expire
    /v1/subscriptions            create, retrieve, list, search, update, cancel (DELETE), pause, resume
    /v1/billing_portal/sessions  create
    /v1/invoices, /v1/charges, /v1/invoice_payments   retrieve, list
    /v1/refunds                  create
    /v1/events                   retrieve, list (type, types, created, delivery_success)
    /v1/billing/meter_events     create
A parameter that an endpoint does not know is a 400, as at Stripe. ``Stripe-Version`` before 2025-03-31 gives the older
form of subscriptions, invoices and charges (`versions.py`).

Pages
    /c/pay/{id}         checkout: Pay, pay with a card that is declined, pay by bank (confirmed later), cancel
    /p/session/{token}  portal: change the plan, cancel now or later, make the next payment fail or succeed, bill it
    /shop, /shop/paid   where to lead back to, for a shop that has no page of its own

Events go to every endpoint, signed as Stripe signs, until each has answered 2xx (`delivery.py`). Types:
    checkout.session.completed, .async_payment_succeeded, .async_payment_failed, .expired
    customer.created, .updated, .deleted
    customer.subscription.created, .updated, .deleted, .paused, .resumed, .trial_will_end
    invoice.created, .finalized, .paid, .payment_succeeded, .payment_failed, .voided
    charge.succeeded, charge.refunded, charge.dispute.created, refund.created
    payment_intent.succeeded, .payment_failed; product.created, price.created
and whatever ``POST /_stub/events`` is given.

Control, for tests (JSON; see `control.py` and `happenings.py`)
    PUT  /_stub/delivery      switches (`switches.py`): running, order, duplicates, concurrency, delay_s, jitter_s,
                              lose, retry_first_s, retry_factor, retry_max_s, attempts_max, timeout_s,
                              clock_offset_s, seed; {"defaults": true} turns all others back
    POST /_stub/delivery/wait         → {"idle": true} once all is delivered or given up
    GET  /_stub/deliveries[?event=…&type=…]   every delivery with its attempts
    POST /_stub/events/{id}/deliver   {"times"?} send again, now and in parallel; answers after the attempts
    POST /_stub/events                {"type", "object", "id"?, "created"?, …} any event at all
    PUT  /_stub/endpoints             [{"url", "secrets": […], "api_version"?, "enabled_events"?}]
    PUT  /_stub/account               {"api_version"}
    PUT  /_stub/faults                [{"mode", "times"?, "path"?, "method"?, "delay_s"?}] (`faults.py`)
    GET  /_stub/requests, /_stub/objects/{kind}
    POST /_stub/checkout/{id}/…       pay, pay_later, settle_paid, settle_failed
    POST /_stub/subscriptions/{id}/…  advance, fail_payment, pay, give_up, trial_will_end, pause, resume, cancel,
                                      change_price, refund, dispute
    PUT  /_stub/customers/{id}/card   {"card": "good" | "declined" | "fails_later"}
    POST /_stub/reset

Left out: prorations, taxes, coupons, one-time payments, several items changed at once, payment methods as objects,
webhook endpoints through the API, test clocks (things happen when they are told to), Connect.
"""
