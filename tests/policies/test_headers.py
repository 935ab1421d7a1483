"""What answers tell of rate limits in their heads, as the policy chooses."""

from collections.abc import Mapping

import pytest

from tests.policies.conftest import Answer, Desk

RULES = """\
policies:
  - name: told-{choice}
    match: {{path: /v1/cast}}
    mode: {mode}
    rate_limit_headers: {choice}
    rate_limits: [{{name: per-account, limit: 3, window: 1h, algorithm: fixed_window}}]
  - name: at-once-{choice}
    match: {{path: /v1/render}}
    rate_limit_headers: {choice}
    rate_limits: [{{name: cap, limit: 2, algorithm: concurrency}}]
plans: {{free: {{}}, more: {{rate_limits: {{per-account: {{limit: 5}}}}}}}}
"""


def told(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if "ratelimit" in name.lower()}


def remaining(answers: list[Answer]) -> list[str]:
    return [answer.headers["X-RateLimit-Remaining"] for answer in answers]


@pytest.mark.parametrize("choice", ["none", "ietf", "x_ratelimit"])
def test_each_answer_tells_its_limit_as_the_policy_chooses(desk: Desk, choice: str) -> None:
    desk.use(RULES.format(choice=choice, mode="enforce"))
    account = desk.account()
    answers = [desk.call(account) for _ in range(4)]
    assert [answer.status for answer in answers] == [200, 200, 200, 429]
    for answer, left in zip(answers, (2, 1, 0, 0), strict=True):
        found = told(answer.headers)
        if choice == "none":
            assert found == {}
        elif choice == "ietf":
            reset = found["RateLimit"].rpartition("=")[2]
            assert found == {
                "RateLimit-Policy": '"per-account";q=3;w=3600',
                "RateLimit": f'"per-account";r={left};t={reset}',
            }
        else:
            reset = found["X-RateLimit-Reset"]
            assert found == {
                "X-RateLimit-Limit": "3",
                "X-RateLimit-Remaining": str(left),
                "X-RateLimit-Reset": reset,
            }
        if choice != "none":
            assert 0 < int(reset) <= 3600
    if choice != "none":
        assert answers[3].headers["Retry-After"] == reset
    # Of another policy, whose choice is another.
    assert told(desk.call(account, "/elsewhere").headers) == {}


def test_a_plan_s_limit_is_what_is_told(desk: Desk) -> None:
    desk.use(RULES.format(choice="x_ratelimit", mode="enforce"))
    account = desk.account(plan="more")
    answers = [desk.call(account) for _ in range(2)]
    assert [answer.headers["X-RateLimit-Limit"] for answer in answers] == ["5", "5"]
    assert remaining(answers) == ["4", "3"]


def test_what_is_in_shadow_is_not_told(desk: Desk) -> None:
    desk.use(RULES.format(choice="ietf", mode="shadow"))
    account = desk.account()
    assert [told(desk.call(account).headers) for _ in range(4)] == [{}] * 4
    desk.use("""\
policies:
  - name: half-told
    match: {path: /v1/cast}
    rate_limit_headers: ietf
    rate_limits:
      - {name: tried, limit: 1, window: 1h, mode: shadow}
      - {name: kept, limit: 9, window: 1h, algorithm: fixed_window}
plans: {free: {}}
""")
    policies = [desk.call(account).headers["RateLimit-Policy"] for _ in range(3)]
    assert policies == ['"kept";q=9;w=3600'] * 3  # the second and third are decided without the limit in shadow


def test_whom_nobody_knows_is_told_the_limit_of_the_address(desk: Desk) -> None:
    desk.use("""\
policies:
  - name: told-strangers
    match: {path: /v1/cast}
    rate_limit_headers: x_ratelimit
    rate_limits: [{name: per-address, key: ip, limit: 3, window: 1h, callers: unidentified}]
plans: {free: {}}
""")
    answers = [desk.call(status=401) for _ in range(4)]
    assert [answer.status for answer in answers] == [401, 401, 401, 429]
    assert remaining(answers) == ["2", "1", "0", "0"]


def test_answers_of_the_service_keep_what_it_says_itself(desk: Desk) -> None:
    desk.use(RULES.format(choice="x_ratelimit", mode="enforce"))
    account = desk.account()
    theirs = {"X-RateLimit-Limit": "60", "X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "1795348800"}
    answer = desk.call(account, status=429, answer=theirs)
    assert told(answer.headers) == theirs
    assert remaining([desk.call(account, answer={"RateLimit": '"a";r=1'})]) == ["1"]


def test_a_cap_on_calls_at_once_has_no_window(desk: Desk) -> None:
    desk.use(RULES.format(choice="ietf", mode="enforce"))
    account = desk.account()
    with desk.calls_under_way(account, 1, path="/v1/render"):
        assert told(desk.call(account, "/v1/render").headers) == {
            "RateLimit-Policy": '"cap";q=2;qu="concurrent-requests"',
            "RateLimit": '"cap";r=0',
        }
    desk.use(RULES.format(choice="x_ratelimit", mode="enforce"))
    assert told(desk.call(account, "/v1/render").headers) == {}
