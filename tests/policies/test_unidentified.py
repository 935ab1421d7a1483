"""Limits on callers whom nobody knows, by address or header; the service behind still judges their credentials."""

from tests.policies.conftest import Desk

RULES = """\
policies:
  - name: anonymous
    match: {path: /v1/cast}
    cost: {fixed: {cents: 1}}
    rate_limits:
      - {name: per-address, key: ip, limit: 3, window: 1h, callers: unidentified}
      - {name: per-account, limit: 2, window: 1h}
      - {name: per-tenant, key: [route, "header:X-Tenant"], limit: 4, window: 1h, callers: all}
plans: {free: {}}
"""


def test_unknown_callers_have_limits_of_their_own_and_are_charged_nothing(desk: Desk) -> None:
    desk.use(RULES)
    account = desk.account()
    unknown = {"Authorization": "Bearer nobody"}
    answers = [desk.call(headers={**unknown, "X-Tenant": str(n)}, status=401) for n in range(4)]
    assert [answer.status for answer in answers] == [401, 401, 401, 429]
    assert (answers[3].json["policy"], answers[3].json["limit"]) == ("anonymous", 3)
    # Known callers from the same address are not under that limit, but under their own.
    assert [desk.call(account, headers={"X-Tenant": "known"}).status for _ in range(3)] == [200, 200, 429]
    assert len(desk.charged(account, 2)) == 2


def test_a_limit_of_all_callers_counts_them_together(desk: Desk) -> None:
    desk.use(RULES.replace("limit: 3", "limit: 100").replace("limit: 2", "limit: 100").replace("anonymous", "together"))
    account = desk.account()
    shared = {"X-Tenant": "7"}
    assert [desk.call(headers=shared).status for _ in range(2)] == [200, 200]
    assert [desk.call(account, headers=shared).status for _ in range(3)] == [200, 200, 429]
    assert desk.call(headers=shared).status == 429
    assert desk.call(account, headers={"X-Tenant": "8"}).status == 200
