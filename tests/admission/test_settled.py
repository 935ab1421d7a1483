"""What waits to be told to Redis: told in order, in bounded calls, and again where it may not have arrived."""

import json

import pytest

from gateway.admission_settle import ITEMS_PER_CALL_MAX, Seed, Settled


def all_of(settled: Settled) -> list[Settled]:
    taken = []
    while settled.count:
        taken.append(settled.take())
    return taken


def test_nothing_to_tell_is_blank() -> None:
    assert Settled().text() == ""


def test_usage_of_one_window_is_told_once_with_its_highest_sum_and_newest_start() -> None:
    settled = Settled()
    for start, used in ((1, 5), (1, 3), (2, 1), (1, 9)):
        settled.use("a", "daily/UTC/1", start, used)
    assert json.loads(settled.text())[1] == ["a", "daily/UTC/1", 2, 1]
    assert settled.count == 1


def test_a_call_is_bounded_and_the_rest_follows() -> None:
    settled = Settled()
    settled.remove("w", (str(number) for number in range(2500)), posted=True)
    for number in range(1200):
        settled.use(f"account-{number}", "total/UTC/1", 0, number)
        settled.adjust(f"hold-{number}", number)
    calls = all_of(settled)
    assert all(call.count <= ITEMS_PER_CALL_MAX for call in calls)
    assert sum(call.count for call in calls) == 2500 + 1200 + 1200
    assert sorted(hold_id for call in calls for hold_id in call.posted.get("w", [])) == sorted(map(str, range(2500)))


def test_no_removal_goes_before_usage_that_waits() -> None:
    settled = Settled()
    settled.remove("w", map(str, range(1500)), posted=True)
    for number in range(1500):
        settled.use(f"account-{number}", "total/UTC/1", 0, number)
    first_removal = next(place for place, call in enumerate(all_of(settled)) if call.posted)
    assert first_removal >= 1


def test_what_was_perhaps_not_told_is_told_again_but_never_over_what_is_newer() -> None:
    settled = Settled()
    settled.adjust("h", 5)
    settled.use("a", "total/UTC/1", 0, 5)
    settled.seed(Seed(account_id="b", version=1, usage={"total/UTC/1": (0, 7)}))
    settled.remove("w", ["x"], posted=False)
    settled.remove("w", ["y"], posted=True)
    taken = settled.take()
    settled.adjust("h", 3)
    settled.use("a", "total/UTC/1", 0, 6)
    settled.put_back(taken)
    assert settled.adjusts == {"h": 3}
    assert settled.usages == {"a": {"total/UTC/1": (0, 6)}, "b": {"total/UTC/1": (0, 7)}}
    assert (settled.voided, settled.posted) == ({"w": ["x"]}, {"w": ["y"]})


def test_it_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.admission_settle.ITEMS_MAX", 10)
    settled = Settled()
    settled.remove("w", map(str, range(20)), posted=True)
    settled.adjust("h", 1)
    settled.use("a", "total/UTC/1", 0, 1)
    assert (settled.count, len(settled.posted["w"])) == (10, 10)
    assert settled.dropped >= 3


def test_what_is_put_in_place_anew_need_not_be_told() -> None:
    settled = Settled()
    settled.remove("mine", ["1", "2"], posted=True)
    settled.remove("mine", ["3"], posted=False)
    settled.remove("other", ["4"], posted=True)
    settled.adjust("5", 7)
    settled.use("a", "total/UTC/1", 0, 5)
    settled.forget_holds("mine")
    assert (settled.posted, settled.voided, settled.adjusts, settled.count) == ({"other": ["4"]}, {}, {}, 2)
