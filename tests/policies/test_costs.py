"""Costs that an answer tells, through a whole gateway: what is charged, held, counted, and blocked afterwards."""

import gzip

import pytest

from tests.policies.conftest import Desk

CENT = 1_000_000


def rules(cost: str, *, limit_cents: int = 1000, policy: str = "") -> str:
    return f"""\
policies:
  - name: cast
    match: {{path: /v1/cast}}
    cost: {cost}
{policy}
plans:
  free: {{hard_limit_cents: {{monthly: {limit_cents}}}}}
"""


def test_units_of_a_header_and_a_fixed_share(desk: Desk) -> None:
    desk.use(
        rules('{sum: [{fixed: {cents: 0.1}}, {header: {name: X-Tokens, cents_per_unit: "0.0003"}}], hold_cents: 5}')
    )
    account = desk.account()
    for tokens in ("1000", "7", "0.0001"):
        assert desk.call(account, answer={"X-Tokens": tokens}).status == 200
    assert desk.charged(account, 3) == [400_000, 102_100, 100_001]


def test_units_of_a_json_answer_within_minimum_and_maximum(desk: Desk) -> None:
    cost = '{json: {pointer: /usage/tokens, cents_per_unit: "0.01"}, minimum_cents: 1, maximum_cents: 3}'
    desk.use(rules(cost))
    account = desk.account()
    for tokens in (5, 250, 9000):
        desk.call(account, chunks=['{"usage": {"tok', f'ens": {tokens}}}}}'])
    assert desk.charged(account, 3) == [CENT, 250 * CENT // 100, 3 * CENT]


@pytest.mark.parametrize(("events", "tokens"), [("last", 30), ("sum", 60)])
def test_units_of_server_sent_events(desk: Desk, events: str, tokens: int) -> None:
    desk.use(rules(f"{{json: {{pointer: /usage/tokens, cents_per_unit: 0.1, events: {events}}}, hold_cents: 10}}"))
    account = desk.account()
    stream = [f'data: {{"usage": {{"tokens": {count}}}}}\n\n' for count in (10, 20, 30)] + ["data: [DONE]\n\n"]
    answer = desk.call(account, answer={"Content-Type": "text/event-stream"}, chunks=stream)
    assert answer.body.decode() == "".join(stream)
    assert desk.charged(account, 1) == [tokens * CENT // 10]


def test_a_compressed_answer_passes_as_it_is_and_is_read(desk: Desk) -> None:
    desk.use(rules("{json: {pointer: /usage/tokens, cents_per_unit: 1}, hold_cents: 10}"))
    account = desk.account()
    packed = gzip.compress(b'{"usage": {"tokens": 4}}')
    answer = desk.call(account, answer={"Content-Encoding": "gzip"}, packed=packed.hex())
    assert answer.body == packed
    assert desk.charged(account, 1) == [4 * CENT]


def test_bytes_and_time(desk: Desk) -> None:
    desk.use(rules("{bytes: {cents_per_byte: 0.01, of: both}, hold_cents: 10}"))
    account = desk.account()
    desk.call(account, body=b"x" * 100, chunks=["y" * 50])
    assert desk.charged(account, 1) == [150 * CENT // 100]
    desk.use(rules("{duration: {cents_per_ms: 0.001}, hold_cents: 10}"))
    account = desk.account()
    desk.call(account, sleep_ms=50)
    (charge,) = desk.charged(account, 1)
    assert 50_000 <= charge < 60 * CENT


def test_a_dearer_call_than_was_held_for_is_charged_in_full_counted_and_blocks_from_then_on(desk: Desk) -> None:
    desk.use(rules("{header: {name: X-Cents, cents_per_unit: 1}, hold_cents: 2}", limit_cents=10))
    account = desk.account()
    before = desk.gateway.metric("castgate_cost_over_hold_total", policy="cast")
    assert desk.call(account, answer={"X-Cents": "1"}).status == 200
    assert desk.call(account, answer={"X-Cents": "8.5"}).status == 200
    assert desk.settled(account, 2) == [CENT, 8_500_000]
    refused = desk.call(account, answer={"X-Cents": "1"})
    assert (refused.status, refused.json["cost_cents"]) == (402, 2)
    assert refused.json["used_cents"] == 9.5
    assert desk.gateway.metric("castgate_cost_over_hold_total", policy="cast") == before + 1


def test_what_is_held_bounds_how_far_calls_at_once_can_go(desk: Desk) -> None:
    desk.use(rules("{header: {name: X-Cents, cents_per_unit: 1}, maximum_cents: 4}", limit_cents=10))
    account = desk.account()
    with desk.calls_under_way(account, 2, answer={"X-Cents": "1"}):
        assert desk.call(account).status == 402  # 4 + 4 held, and 4 more are too much
    assert desk.settled(account, 2) == [CENT] * 2
    assert desk.call(account, answer={"X-Cents": "4"}).status == 200
    assert desk.settled(account, 3) == [CENT, CENT, 4 * CENT]
    assert desk.call(account, answer={"X-Cents": "4"}).status == 200
    assert desk.settled(account, 4)[3] == 4 * CENT
    assert desk.call(account, answer={"X-Cents": "1"}).status == 402


def test_an_answer_that_does_not_tell_costs_what_was_held_or_nothing_as_the_policy_says(desk: Desk) -> None:
    before = desk.gateway.metric("castgate_cost_missing_total", policy="cast")
    for if_missing, cost in (("hold", 2 * CENT), ("free", 0)):
        desk.use(rules(f"{{json: {{pointer: /n, cents_per_unit: 1}}, hold_cents: 2, if_missing: {if_missing}}}"))
        account = desk.account()
        assert desk.call(account, chunks=["no JSON"]).status == 200
        assert desk.charged(account, 1) == [cost]
    assert desk.gateway.metric("castgate_cost_missing_total", policy="cast") == before + 2


def test_a_list_of_statuses_says_what_is_charged(desk: Desk) -> None:
    desk.use(rules("{fixed: {cents: 1}, charge_when: [200, 404]}"))
    account = desk.account()
    for status in (404, 500, 201, 200):
        assert desk.call(account, status=status).status == status
    assert desk.charged(account, 2) == [CENT, CENT]
    statuses = desk.sql("SELECT upstream_status FROM usage_events WHERE account_id = $1", account.user_id)
    assert sorted(row[0] for row in statuses) == [200, 404]
