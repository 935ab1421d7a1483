"""What becomes of holds: given back, adjusted to what the call came to, or over, as the ledger has the call."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from gateway.ledger import UsageEvent, WindowUsage
from gateway.policy.free_tier import is_tier
from gateway.policy.verdicts import Hold

if TYPE_CHECKING:
    from gateway.admission_batch import Ask, Group
    from gateway.admission_ladder import Ladder
    from gateway.admission_lane import Lane
    from gateway.admission_orphans import Orphans
    from gateway.metrics import Metrics


class OpenHolds:
    """The holds that ``Admission`` took, after the call; its methods are also those of ``Admission``."""

    def __init__(
        self,
        holds: "dict[str, Ask]",
        *,
        worker_id: str,
        lanes: "Sequence[Lane]",
        lane_of: "Callable[[str], Lane]",
        ladder: "Ladder",
        orphans: "Orphans",
        metrics: "Metrics",
    ) -> None:
        """``holds`` are those that are not settled, by their ids: admission adds to them, and here they end."""
        self._open = holds
        self._worker_id = worker_id
        self._lanes = lanes
        self._lane_of = lane_of
        self._ladder = ladder
        self._orphans = orphans
        self._holds_open = metrics.gauge("castgate_holds_open")
        self._settled = {
            how: metrics.counter("castgate_holds_settled_total", how=how) for how in ("posted", "voided", "expired")
        }

    def void(self, hold: Hold) -> None:
        """The call is not charged: give back all that it holds. A hold that is settled already stays so."""
        ask = self._open.pop(hold.hold_id, None)
        if ask is not None:
            lane = ask.lane
            self._holds_open.set(len(self._open))
            self._settled["voided"].add()
            if ask.in_memory:
                self._ladder.ended(ask)
            if self._ladder.has_rows:
                self._ladder.released(hold.hold_id)
            self.give_back(ask)
            lane.settle_soon()

    def give_back(self, ask: "Ask") -> None:
        """To be told with the next script call: what this ask took, or may have taken, is free."""
        if ask.group is None:
            ask.lane.settled.remove(self._worker_id, (ask.hold_id,), posted=False)
        else:
            ask.lane.settled.remove_grouped(ask.group.name, ask.place, posted=False)

    def finished(self, hold: Hold, actual_microcents: int, units: int = 0) -> None:
        """The call has ended and will be charged ``actual_microcents``; its event is on its way to the ledger.

        Under a free tier that is its price, and ``units`` are what it counts there.
        """
        ask = self._open.get(hold.hold_id)
        if ask is None:
            return
        tier = ask.shape.tier
        if ask.is_repeat:
            actual_microcents = units = 0
        elif tier is not None:
            units = tier.held_units(units, actual_microcents)
        if actual_microcents != hold.amount_microcents or units != ask.units or ask.shape.has_slots:
            ask.hold_microcents = actual_microcents
            ask.units = units
            if ask.in_memory and not ask.has_ended:
                self._ladder.ended(ask)
            ask.has_ended = True
            ask.group = None  # it leaves its group with this
            ask.lane.settled.adjust(hold.hold_id, actual_microcents if tier is None else (actual_microcents, units))
            if actual_microcents > hold.amount_microcents:
                ask.lane.settle_at_once()  # its client may be calling again already, and another worker
            else:
                ask.lane.settle_soon()

    def posted(self, events: Sequence[UsageEvent], usages: Sequence[WindowUsage]) -> None:
        """The ledger has ``events``: their holds are over, and this is what their accounts have used since."""
        touched = set()
        now_ms = self._lanes[0].now_ms
        for account_id, kind, start_ms, end_ms, used_microcents in usages:
            lane = self._lane_of(account_id)
            if end_ms > now_ms or is_tier(kind):  # calls of a free tier's last window may yet be under way
                lane.settled.use(account_id, kind, start_ms, used_microcents)
                touched.add(lane)
        if self._ladder.has_rows:
            for event in events:
                self._ladder.posted(event.event_id)
        touched |= self._remove(events, posted=True)
        for lane in touched:
            lane.settle_soon()

    def dropped(self, events: Sequence[UsageEvent]) -> None:
        """The ledger has given ``events`` up: nothing will be charged for them."""
        if self._ladder.has_rows:
            for event in events:
                self._ladder.released(event.event_id)
        for lane in self._remove(events, posted=False):
            lane.settle_soon()

    def _remove(self, events: Sequence[UsageEvent], *, posted: bool) -> "set[Lane]":
        by_lane: dict[Lane, list[str]] = {lane: [] for lane in self._lanes}
        touched: set[Lane] = set()
        open_, expired, grouped = self._open, 0, 0
        group, places, lane = None, 0, self._lanes[0]  # of those that came last: they often end together
        for event in events:
            hold_id = event.event_id
            ask = open_.pop(hold_id, None)
            if ask is not None:
                if ask.group is None:
                    by_lane[ask.lane].append(hold_id)
                elif ask.group is group:
                    places |= ask.place
                else:
                    grouped += self._remove_grouped(lane, group, places, posted=posted)
                    group, places, lane = ask.group, ask.place, ask.lane
                    touched.add(lane)
            elif hold_id in self._orphans.pending_rows:
                self._orphans.pending_rows.discard(hold_id)
                expired += 1
            elif (worker_id := self._orphans.pending.pop(hold_id, None)) is not None:
                expired += 1
                lane_of_orphan = self._lane_of(event.account_id)
                touched.add(lane_of_orphan)
                lane_of_orphan.settled.remove(worker_id, (hold_id,), posted=posted)
        grouped += self._remove_grouped(lane, group, places, posted=posted)
        for lane, hold_ids in by_lane.items():
            if hold_ids:
                touched.add(lane)
                lane.settled.remove(self._worker_id, hold_ids, posted=posted)
        ended = grouped + sum(map(len, by_lane.values()))
        self._settled["posted" if posted else "voided"].add(ended)
        self._settled["expired"].add(expired)
        self._holds_open.set(len(self._open))
        return touched

    def _remove_grouped(self, lane: "Lane", group: "Group | None", places: int, *, posted: bool) -> int:
        if group is not None:
            lane.settled.remove_grouped(group.name, places, posted=posted)
        return places.bit_count()
