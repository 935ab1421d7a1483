"""Shadow mode, per policy and per limit: what would be refused is counted and logged, and passes."""

import json
from typing import Any

from tests.policies.conftest import Desk

CENT = 1_000_000


def would_block(desk: Desk, **labels: str) -> float:
    return desk.gateway.metric("castgate_would_block_total", **labels)


def lines(desk: Desk) -> list[dict[str, Any]]:
    return [json.loads(line) for line in desk.gateway.log if '"event": "would_block"' in line]


def test_a_policy_in_shadow_decides_counts_and_logs_but_lets_every_call_pass(desk: Desk) -> None:
    desk.use("""\
policies:
  - name: shadowed
    match: {path: /v1/cast}
    mode: shadow
    cost: {fixed: {cents: 1}}
    idempotency: {}
    rate_limits: [{name: few, limit: 2, window: 1h}]
plans:
  free: {}
  poor: {hard_limit_cents: {monthly: 1}}
""")
    account = desk.account()
    assert [desk.call(account).status for _ in range(4)] == [200] * 4
    assert desk.call(account, headers={"Idempotency-Key": "no key"}).status == 200  # a 400 elsewhere
    assert would_block(desk, policy="shadowed", reason="rate_limited", limit="few") == 3
    poor = desk.account(plan="poor")
    assert [desk.call(poor).status for _ in range(2)] == [200] * 2
    assert would_block(desk, policy="shadowed", reason="budget_block", limit="monthly") == 1
    # What passes is metered as it would be without the policy's verdicts.
    assert desk.charged(account, 5) == [CENT] * 5
    assert desk.gateway.metric("rate_limited_total", policy="shadowed") == 0
    assert any(line["policy"] == "shadowed" and line["account_id"] == account.user_id for line in lines(desk))


def test_a_limit_in_shadow_lets_pass_what_it_alone_would_refuse(desk: Desk) -> None:
    desk.use("""\
policies:
  - name: trial
    match: {path: /v1/cast}
    cost: {fixed: {cents: 1}}
    rate_limits:
      - {name: new, limit: 2, window: 1h, mode: shadow}
      - {name: newer, limit: 3, window: 1h, mode: shadow, algorithm: token_bucket}
      - {name: old, limit: 5, window: 1h}
plans:
  free: {}
  poor: {hard_limit_cents: {monthly: 4}}
""")
    account = desk.account()
    answers = [desk.call(account) for _ in range(7)]
    assert [answer.status for answer in answers] == [200] * 5 + [429] * 2
    assert [answer.json["limit"] for answer in answers[5:]] == [5, 5]
    # As once it is enforced, refused calls take nothing: of the five that pass the first two are its own.
    assert would_block(desk, policy="trial", limit="new") == 5
    assert would_block(desk, policy="trial", limit="newer") == 4
    assert desk.gateway.metric("rate_limited_total", policy="trial", limit="old") == 2
    assert desk.charged(account, 5) == [CENT] * 5
    # Budgets hold in any case.
    poor = desk.account(plan="poor")
    assert [desk.call(poor).status for _ in range(6)] == [200] * 4 + [402] * 2


def test_plans_change_a_limit_in_shadow_too(desk: Desk) -> None:
    desk.use("""\
policies:
  - name: ladder
    match: {path: /v1/cast}
    rate_limits: [{name: climb, limit: 1, window: 1h, mode: shadow}]
plans:
  free: {}
  high: {rate_limits: {climb: {limit: 3}}}
""")
    account = desk.account(plan="high")
    assert [desk.call(account).status for _ in range(5)] == [200] * 5
    assert would_block(desk, policy="ladder", limit="climb") == 2


def test_calls_at_once_beyond_a_shadowed_cap_pass_and_free_no_slot_of_others(desk: Desk) -> None:
    desk.use("""\
policies:
  - name: capped
    match: {path: /v1/cast}
    rate_limits: [{name: cap, limit: 1, algorithm: concurrency, mode: shadow}]
plans: {free: {}}
""")
    account = desk.account()
    with desk.calls_under_way(account, 3):
        assert desk.call(account).status == 200
    assert would_block(desk, policy="capped", limit="cap") == 3
