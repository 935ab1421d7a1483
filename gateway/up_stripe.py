"""Which Stripe ``./dev up`` uses: the stand-in that it starts, the one that the environment names, or none.

A variable that is set, even to nothing, stays as it is. So billing is off where one that it needs is blank, and there
is nothing to start. The demo's own key never meets the real Stripe: it is made up only together with an address.
"""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass

DEMO_KEY = "sk_test_castgate_demo"
DEMO_PRICE = "price_pro"
PRO_CENTS = 4900
# Billing is off where one of these is blank (gateway/config/environment.py says the same with a warning).
NEEDED = ("STRIPE_SECRET_KEY", "STRIPE_WEBHOOK_SECRET", "COST_PER_CAST_CENTS")


# Nobody listens on the discard port.
NO_STRIPE = "http://127.0.0.1:9"


@dataclass(frozen=True, slots=True, kw_only=True)
class StripeChoice:
    """``url``: where the chosen one is, as far as the environment says. ``detail``: for the line of progress."""

    starts_stub: bool = False
    can_pay: bool = True
    url: str | None = None
    detail: str
    defaults: Mapping[str, str]  # for variables that are not set


def choose_stripe(environment: Mapping[str, str], stub_url: str) -> StripeChoice:
    """``stub_url`` is where the stand-in would be."""
    given = {name: environment[name].strip() for name in (*NEEDED, "STRIPE_API_BASE") if name in environment}
    address = given.get("STRIPE_API_BASE") or None
    secret = {"STRIPE_WEBHOOK_SECRET": f"whsec_{secrets.token_hex(16)}"}
    demo = {"STRIPE_SECRET_KEY": DEMO_KEY, "STRIPE_PRICE_PRO": DEMO_PRICE, **secret}
    blank = [name for name in NEEDED if given.get(name) == ""]
    if blank:  # only what is blank is then warned of
        defaults = {**demo, "STRIPE_API_BASE": NO_STRIPE} if "STRIPE_API_BASE" not in given else secret
        return StripeChoice(can_pay=False, detail=f"none: {blank[0]} is blank", defaults=defaults)
    if "STRIPE_SECRET_KEY" in given:
        return StripeChoice(url=address, detail="the one of STRIPE_SECRET_KEY", defaults=secret)
    if address:
        return StripeChoice(url=address, detail="the one of STRIPE_API_BASE", defaults=demo)
    if "STRIPE_API_BASE" in given:
        return StripeChoice(can_pay=False, detail="none: STRIPE_API_BASE is blank", defaults=secret)
    demo["STRIPE_API_BASE"] = stub_url
    demo |= {"BILLING_SUCCESS_URL": f"{stub_url}/shop/paid", "BILLING_CANCEL_URL": f"{stub_url}/shop"}
    return StripeChoice(starts_stub=True, url=stub_url, detail=stub_url, defaults=demo)


def price_words(environment: Mapping[str, str]) -> list[str]:
    """The stand-in's price of the plan pro; none where ``STRIPE_PRICE_PRO`` is blank."""
    price = environment.get("STRIPE_PRICE_PRO", "").strip()
    return ["--price", f"{price}={PRO_CENTS}:Pro"] if price else []
