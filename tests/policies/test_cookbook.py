"""docs/policies.md: each example loads, and does what it says, in a running gateway."""

import re
from collections.abc import Mapping

import jsonschema
import pytest
import yaml

from gateway.config.schema import policies_schema
from tests.gateways import ROOT
from tests.policies.conftest import Desk

CENT = 1_000_000


def _examples() -> Mapping[int, str]:
    text = (ROOT / "docs" / "policies.md").read_text()
    found = re.findall(r"^## (\d)\. .*?^```yaml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return {int(number): example for number, example in found}


EXAMPLES = _examples()


def use(desk: Desk, number: int) -> None:
    """The example as it stands there, in policies whose names no other example has: limits' counts go by name."""
    desk.use(re.sub(r"- name: (\w+)$", rf"- name: example{number}-\1", EXAMPLES[number], flags=re.MULTILINE))


def test_there_are_eight_and_the_schema_takes_them() -> None:
    assert sorted(EXAMPLES) == [1, 2, 3, 4, 5, 6, 7, 8]
    for example in EXAMPLES.values():
        jsonschema.validate(yaml.safe_load(example), policies_schema())


def test_1_the_plain_cast(desk: Desk) -> None:
    use(desk, 1)
    account = desk.account()
    assert [desk.call(account).status for _ in range(61)] == [200] * 60 + [429]
    assert desk.call(account, "/elsewhere").status == 200
    assert desk.charged(account, 60) == [CENT] * 60


def test_2_tokens_of_a_language_model(desk: Desk) -> None:
    use(desk, 2)
    account = desk.account()
    events = [
        'data: {"delta": "lu", "usage": null}\n\n',
        'data: {"delta": "mos", "usage": null}\n\n',
        'data: {"usage": {"prompt_tokens": 1200, "completion_tokens": 345}}\n\n',
        "data: [DONE]\n\n",
    ]
    answer = desk.call(account, "/v1/chat", answer={"Content-Type": "text/event-stream"}, chunks=events)
    assert answer.body.decode() == "".join(events)
    small = ['data: {"usage": {"prompt_tokens": 1, "completion_tokens": 1}}\n\n']
    desk.call(account, "/v1/chat", answer={"Content-Type": "text/event-stream"}, chunks=small)
    assert desk.settled(account, 2) == [300_000 + 345_000, 10_000]
    [budget] = desk.admin("/explain", {"account": account.user_id, "path": "/v1/chat"})["budgets"]
    assert (budget["period"], budget["used_cents"]) == ("daily", 0.655)


def test_3_a_free_tier(desk: Desk) -> None:
    use(desk, 3)
    account, paying = desk.account(), desk.account(plan="paid")
    answers = [desk.call(account) for _ in range(6)]
    assert [answer.status for answer in answers] == [200] * 5 + [402]
    refused = answers[5].json
    assert (refused["period"], refused["limit_cents"], refused["used_cents"], refused["cost_cents"]) == (
        "daily",
        0,
        0,
        1,
    )
    assert [desk.call(paying).status for _ in range(8)] == [200] * 8
    assert desk.charged(account, 5) == [0] * 5
    assert sorted(desk.charged(paying, 8)) == [0] * 5 + [CENT] * 3


def test_4_addresses_of_anonymous_callers(desk: Desk) -> None:
    use(desk, 4)
    account = desk.account()
    assert [desk.call(status=401).status for _ in range(7)] == [401] * 5 + [429] * 2
    assert [desk.call(account).status for _ in range(8)] == [200] * 8


def test_5_budgets_in_a_time_zone(desk: Desk) -> None:
    use(desk, 5)
    account = desk.account()
    answers = [desk.call(account) for _ in range(4)]
    assert [answer.status for answer in answers] == [200] * 3 + [402]
    refused = answers[3].json
    # Midnight in Tokyo is 15:00 UTC of the day before: a week that begins on Sunday ends on Saturday at that hour.
    assert (refused["period"], refused["resets_at"][10:]) == ("weekly", "T15:00:00Z")
    [row] = desk.sql(
        "SELECT extract(isodow FROM $1::text::timestamptz AT TIME ZONE 'Asia/Tokyo')::int", refused["resets_at"]
    )
    assert row[0] == 7


def test_6_a_limit_tried_in_shadow(desk: Desk) -> None:
    use(desk, 6)
    account = desk.account()
    assert [desk.call(account).status for _ in range(7)] == [200] * 6 + [429]
    counted = desk.gateway.metric("castgate_would_block_total", policy="example6-cast", limit="per-minute")
    assert counted == 4
    assert any('"event": "would_block"' in line and account.user_id in line for line in desk.gateway.log)


def test_7_so_many_calls_at_once(desk: Desk) -> None:
    use(desk, 7)
    account = desk.account()
    with desk.calls_under_way(account, 2, path="/v1/render/scene"):
        refused = desk.call(account, "/v1/render/scene")
        assert (refused.status, refused.json["limit"], refused.json["window_seconds"]) == (429, 2, 0)
    desk.settled(account, 2)
    assert desk.call(account, "/v1/render/scene").status == 200
    assert all(0 < cost <= 6 * CENT for cost in desk.charged(account, 3))


@pytest.mark.parametrize(("plan", "pace"), [(None, 20), ("starter", 40), ("pro", 60)])
def test_8_a_ladder_of_plans(desk: Desk, plan: str | None, pace: int) -> None:
    use(desk, 8)
    account = desk.account(plan=plan)
    answers = [desk.call(account).status for _ in range(pace + 1)]
    assert answers == [200] * pace + [429]
    shown = desk.admin("/policies")["plans"]
    assert shown["enterprise"] == {
        "budgets": {},
        "rate_limits": {"per-account": 600, "at-once": 100},
        "stripe_price": "none",
        "soft_limit_percents": [50, 80, 100],
    }
    assert shown["starter"]["budgets"]["monthly"]["hard_limit_cents"] == 5000
