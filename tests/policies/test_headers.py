"""What a 429 tells in its head, as the policy chooses."""

from collections.abc import Mapping

import pytest

from tests.policies.conftest import Desk

RULES = """\
policies:
  - name: told-{choice}
    match: {{path: /v1/cast}}
    rate_limit_headers: {choice}
    rate_limits: [{{name: per-account, limit: 2, window: 1h, algorithm: fixed_window}}]
  - name: at-once-{choice}
    match: {{path: /v1/render}}
    rate_limit_headers: {choice}
    rate_limits: [{{name: cap, limit: 1, algorithm: concurrency}}]
plans: {{free: {{}}}}
"""


def told(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if "ratelimit" in name.lower()}


@pytest.mark.parametrize("choice", ["none", "ietf", "x_ratelimit"])
def test_a_refusal_tells_its_limit_as_the_policy_chooses(desk: Desk, choice: str) -> None:
    desk.use(RULES.format(choice=choice))
    account = desk.account()
    answers = [desk.call(account) for _ in range(3)]
    assert [answer.status for answer in answers] == [200, 200, 429]
    reset = answers[2].headers["Retry-After"]
    assert (
        told(answers[2].headers)
        == {
            "none": {},
            "ietf": {"RateLimit-Policy": '"per-account";q=2;w=3600', "RateLimit": f'"per-account";r=0;t={reset}'},
            "x_ratelimit": {"X-RateLimit-Limit": "2", "X-RateLimit-Remaining": "0", "X-RateLimit-Reset": reset},
        }[choice]
    )
    # What the service answers passes as it is.
    assert told(answers[1].headers) == {}


def test_a_cap_on_calls_at_once_has_no_window(desk: Desk) -> None:
    desk.use(RULES.format(choice="ietf"))
    account = desk.account()
    with desk.calls_under_way(account, 1, path="/v1/render"):
        refused = desk.call(account, "/v1/render")
    assert told(refused.headers) == {
        "RateLimit-Policy": '"cap";q=1;qu="concurrent-requests"',
        "RateLimit": '"cap";r=0',
    }
