"""Which Stripe ``./dev up`` uses, by what the environment says."""

import itertools

import pytest

from gateway.up_stripe import choose_stripe, price_words

STUB = "http://127.0.0.1:12111"
REAL_KEY = {"STRIPE_SECRET_KEY": "sk_live_somebody"}


def test_with_nothing_said_it_starts_the_stand_in_and_fills_in_all_variables() -> None:
    choice = choose_stripe({}, STUB)
    assert (choice.starts_stub, choice.url) == (True, STUB)
    assert sorted(choice.defaults) == [
        *("BILLING_CANCEL_URL", "BILLING_SUCCESS_URL"),
        *("STRIPE_API_BASE", "STRIPE_PRICE_PRO", "STRIPE_SECRET_KEY", "STRIPE_WEBHOOK_SECRET"),
    ]
    assert choice.defaults["STRIPE_API_BASE"] == STUB


def test_webhook_secrets_are_made_anew() -> None:
    secrets = {choose_stripe({}, STUB).defaults["STRIPE_WEBHOOK_SECRET"] for _ in range(2)}
    assert len(secrets) == 2


def test_a_given_webhook_secret_or_price_still_means_the_stand_in() -> None:
    assert choose_stripe({"STRIPE_WEBHOOK_SECRET": "whsec_1", "STRIPE_PRICE_PRO": "price_1"}, STUB).starts_stub


@pytest.mark.parametrize("more", [{}, {"STRIPE_API_BASE": ""}])
def test_a_key_of_one_s_own_means_the_real_stripe_with_no_price_made_up(more: dict[str, str]) -> None:
    choice = choose_stripe({**REAL_KEY, **more}, STUB)
    assert (choice.starts_stub, choice.url) == (False, None)
    assert list(choice.defaults) == ["STRIPE_WEBHOOK_SECRET"]


def test_an_address_of_one_s_own_is_used() -> None:
    choice = choose_stripe({"STRIPE_API_BASE": "http://127.0.0.1:1"}, STUB)
    assert (choice.starts_stub, choice.url) == (False, "http://127.0.0.1:1")
    assert "STRIPE_API_BASE" not in choice.defaults


@pytest.mark.parametrize(
    "name", ["STRIPE_SECRET_KEY", "STRIPE_WEBHOOK_SECRET", "COST_PER_CAST_CENTS", "STRIPE_API_BASE"]
)
def test_a_blank_variable_means_none(name: str) -> None:
    choice = choose_stripe({name: " "}, STUB)
    assert (choice.starts_stub, choice.can_pay, choice.url) == (False, False, None)
    assert choice.detail == f"none: {name} is blank"


def test_the_demo_key_never_meets_the_real_stripe() -> None:
    names = ("STRIPE_SECRET_KEY", "STRIPE_WEBHOOK_SECRET", "STRIPE_API_BASE")
    for values in itertools.product((None, "", "given"), repeat=3):
        environment = {name: value for name, value in zip(names, values, strict=True) if value is not None}
        known = {**choose_stripe(environment, STUB).defaults, **environment}
        assert "demo" not in known.get("STRIPE_SECRET_KEY", "") or known["STRIPE_API_BASE"]


def test_the_stand_in_has_the_price_that_the_plan_names() -> None:
    assert price_words({"STRIPE_PRICE_PRO": "price_of_mine"}) == ["--price", "price_of_mine=4900:Pro"]
    assert price_words({"STRIPE_PRICE_PRO": " "}) == []
