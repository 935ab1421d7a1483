"""How far an account's budgets are used: the window each is in, what was used in it, and what is held.

Admission's store knows used and held at one instant, so it is asked first. A window that it has not seen since its
last change is summed up from the ledger, a moment later: a call settled in between counts in both for that moment,
which errs on the side of less remaining.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from gateway.accounts import Account
from gateway.database import QUERIES
from gateway.hosted.services import Services
from gateway.policy.budgets import BudgetLimit
from gateway.policy.periods import Window, window_at

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Per kind of window, its span and what was used in it; ``held_microcents`` counts against every window."""

    windows: Mapping[str, Window]
    used_microcents: Mapping[str, int]
    held_microcents: int

    def remaining_microcents(self, limits: Iterable[BudgetLimit]) -> int:
        """What may still be spent under all of ``limits``; never less than 0."""
        left = min(limit.hard_limit_microcents - self.used_microcents[limit.kind] for limit in limits)
        return max(0, left - self.held_microcents)


def instant(at_ms: int) -> datetime:
    """Unix milliseconds as Postgres' timestamptz; exact, which a division by 1000 is not."""
    return _EPOCH + timedelta(milliseconds=at_ms)


async def standing_of(services: Services, account: Account, limits: Sequence[BudgetLimit]) -> Standing:
    """Where the account stands in the windows of ``limits``. Raises StoreError."""
    state = await services.admission.budget_state(account)
    now_ms = services.now_ms()
    windows = {limit.kind: window_at(limit.period, limit.time_zone, limit.week_start, now_ms) for limit in limits}
    used = {kind: state.used_microcents[kind] for kind in windows if kind in state.used_microcents}
    unseen = [limit for limit in limits if limit.kind not in used]
    if unseen:
        records = await services.database.fetch(
            QUERIES["used_in_windows"],
            account.account_id,
            [limit.period for limit in unseen],
            [limit.time_zone for limit in unseen],
            [limit.week_start for limit in unseen],
            [instant(windows[limit.kind].start_ms) for limit in unseen],
            [instant(windows[limit.kind].end_ms) for limit in unseen],
        )
        used |= {limit.kind: record["used_microcents"] for limit, record in zip(unseen, records, strict=True)}
    return Standing(windows=windows, used_microcents=used, held_microcents=state.held_microcents)
