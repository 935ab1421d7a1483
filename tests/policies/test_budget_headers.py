"""What answers tell of a budget that is past a soft limit, where the policy says so."""

import http.client
from collections.abc import Iterator
from contextlib import closing
from urllib.parse import urlsplit

import pytest

from tests.policies.conftest import Desk
from tests.upstream_stub.running import Account

RULES = """\
policies:
  - name: {choice}-{mode}-budget
    match: {{path: /v1/cast}}
    mode: {mode}
    cost: {{fixed: {{cents: 1}}}}
    budget_headers: {choice}
plans: {{free: {{hard_limit_cents: {{monthly: 10}}}}}}
"""


def calls(desk: Desk, account: Account, count: int) -> Iterator[tuple[int, dict[str, str]]]:
    """Status and fields of calls on one connection, and so to one worker, each after the one before is settled."""
    headers = {"Authorization": f"Bearer {account.api_key}", "Content-Type": "application/json"}
    with closing(http.client.HTTPConnection(urlsplit(desk.gateway.base_url).netloc, timeout=20)) as connection:
        for number in range(1, count + 1):
            connection.request("POST", "/v1/cast", b"{}", headers)
            answer = connection.getresponse()
            answer.read()
            yield answer.status, {name: text for name, text in answer.getheaders() if name.startswith("X-Budget")}
            if answer.status == 200:
                desk.settled(account, number)


def test_calls_past_a_soft_limit_tell_how_far_the_budget_is_used(desk: Desk) -> None:
    desk.use(RULES.format(choice="x_budget", mode="enforce"))
    answers = list(calls(desk, desk.account(), 11))
    assert [status for status, _ in answers] == [200] * 10 + [402]
    assert [fields for _, fields in answers[:5]] == [{}] * 5
    expected = [("50", "50"), ("60", "50"), ("70", "50"), ("80", "80"), ("90", "80")]
    assert [fields for _, fields in answers[5:10]] == [
        {"X-Budget-Used-Percent": percent, "X-Budget-Threshold": threshold, "X-Budget-Period": "monthly"}
        for percent, threshold in expected
    ]
    assert answers[10][1] == {}


@pytest.mark.parametrize(("choice", "mode"), [("none", "enforce"), ("x_budget", "shadow")])
def test_nothing_is_told_unasked_or_in_shadow(desk: Desk, choice: str, mode: str) -> None:
    desk.use(RULES.format(choice=choice, mode=mode))
    assert [fields for _, fields in calls(desk, desk.account(), 7)] == [{}] * 7
