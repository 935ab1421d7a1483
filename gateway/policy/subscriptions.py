"""What a subscription's status means for its account, and which news of a subscription counts.

Stripe tells of every change at least once, in any order, with times in whole seconds. So a subscription's row keeps the
time of the newest event in it, and news is placed against that:

    news of                         is
    an ended subscription           FINAL     nothing comes after; whatever else is said was said before
    the end of the subscription     NEWER     whatever its time
    a later time                    NEWER
    the same second                 TIE       Stripe is asked how the subscription is now
    an earlier time                 OLDER     recorded, and has no effect

An account's plan follows from all its subscriptions together: the best of them counts (``standing_of``).
https://docs.stripe.com/billing/subscriptions/overview#subscription-statuses
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

KEPT = "kept"  # the account has the plan
GRACE = "grace"  # it has it for some days more
DEFAULT = "default"  # it has the default plan

FINAL = "final"
NEWER = "newer"
TIE = "tie"
OLDER = "older"

NONE = "none"  # the status of an account that never subscribed
PAST_DUE = "past_due"


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """What one of Stripe's statuses means."""

    plan: str  # KEPT | GRACE | DEFAULT
    open: bool  # it may yet take money: a second subscription beside it would bill twice
    ended: bool  # for good


# In order of precedence: of several subscriptions the first status counts.
STATUSES: Mapping[str, Status] = {
    "active": Status(plan=KEPT, open=True, ended=False),
    "trialing": Status(plan=KEPT, open=True, ended=False),
    "past_due": Status(plan=GRACE, open=True, ended=False),
    "unpaid": Status(plan=DEFAULT, open=True, ended=False),
    "paused": Status(plan=DEFAULT, open=True, ended=False),
    "incomplete": Status(plan=DEFAULT, open=True, ended=False),
    "canceled": Status(plan=DEFAULT, open=False, ended=True),
    "incomplete_expired": Status(plan=DEFAULT, open=False, ended=True),
}
# One that Stripe invents after this was written: it gives nothing, and is looked at by a person.
UNKNOWN = Status(plan=DEFAULT, open=True, ended=False)
_PRECEDENCE = {name: place for place, name in enumerate(STATUSES)}


def status_of(name: str) -> Status:
    """What the status called ``name`` means."""
    return STATUSES.get(name, UNKNOWN)


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscription:
    """A subscription at one moment. Times are Stripe's, in seconds since 1970; 0 where it does not say."""

    id: str
    customer_id: str | None
    status: str
    prices: tuple[str, ...]  # of its items, in order
    started_s: int
    period_start_s: int
    period_end_s: int
    cancels: bool  # at the end of the period


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """A subscription as it is stored."""

    subscription: Subscription
    event_created_s: int  # of the newest event in it; 0: it comes from no event
    revision: int
    past_due_s: int  # since when a payment is due, where one is


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What an account's subscriptions come to."""

    status: str
    plan: str | None  # None: the default plan
    subscription_id: str | None
    plan_until_s: int | None  # None: no end is in sight


def place(status: str, created_s: int, known: Known | None) -> str:
    """Where the news that a subscription had ``status`` at ``created_s`` stands: FINAL, NEWER, TIE or OLDER."""
    if known is None:
        return NEWER
    if status_of(known.subscription.status).ended:
        return FINAL
    if status_of(status).ended or created_s > known.event_created_s:
        return NEWER
    return TIE if created_s == known.event_created_s else OLDER


def standing_of(known: Sequence[Known], plans: Mapping[str, str], grace_s: int) -> Standing:
    """The standing of an account with these subscriptions; ``plans`` are the names of plans by their Stripe price."""
    if not known:
        return Standing(status=NONE, plan=None, subscription_id=None, plan_until_s=None)
    best = min(known, key=_order)
    subscription = best.subscription
    means = status_of(subscription.status).plan
    plan = None if means == DEFAULT else plan_of(subscription, plans)
    return Standing(
        status=subscription.status,
        plan=plan,
        subscription_id=subscription.id,
        plan_until_s=best.past_due_s + grace_s if means == GRACE and plan is not None else None,
    )


def plan_of(subscription: Subscription, plans: Mapping[str, str]) -> str | None:
    """The plan that the subscription's price stands for; None where no plan has any of its prices."""
    return next((plans[price] for price in subscription.prices if price in plans), None)


def _order(known: Known) -> tuple[int, int, str]:
    subscription = known.subscription
    return (_PRECEDENCE.get(subscription.status, len(_PRECEDENCE)), -subscription.started_s, subscription.id)
