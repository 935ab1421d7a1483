"""Calls that weigh more than one: by the policy, or by a field of theirs."""

from tests.policies.conftest import Desk

RULES = """\
policies:
  - name: weighed-ALGORITHM
    match: {path: /v1/cast}
    rate_limit_headers: x_ratelimit
    rate_limits:
      - {name: units, limit: 10, window: 1h, algorithm: ALGORITHM, weight: WEIGHT}
plans: {free: {}, high: {rate_limits: {units: {limit: 100}}}}
"""


def rules(weight: str, algorithm: str = "fixed_window") -> str:
    return RULES.replace("WEIGHT", weight).replace("ALGORITHM", algorithm)


def test_a_call_takes_what_the_policy_says(desk: Desk) -> None:
    for algorithm in ("fixed_window", "sliding_window", "token_bucket"):
        desk.use(rules("4", algorithm))
        account = desk.account()
        answers = [desk.call(account) for _ in range(3)]
        assert [answer.status for answer in answers] == [200, 200, 429]
        assert [answer.headers["X-RateLimit-Remaining"] for answer in answers[:2]] == ["6", "2"]
        refused = answers[2].json
        assert (refused["weight"], refused["limit"]) == (4, 10)
        assert refused["message"] == (
            "The limit 'units' allows 10 units in 3600 seconds, and this call weighs 4. "
            f"Try again in {refused['retry_after']} seconds."
        )
        explained = desk.admin("/explain", {"account": account.user_id, "path": "/v1/cast"})
        assert (explained["rate_limits"][0]["weight"], explained["rate_limits"][0]["taken"]) == (4, 8)
        assert explained["why"].startswith("the limit units has no room for a call that weighs 4 for ")


def test_a_call_takes_what_a_field_of_it_says(desk: Desk) -> None:
    desk.use(rules("{header: X-Units, default: 2, max: 50}", "token_bucket"))
    account = desk.account(plan="high")
    left = [
        desk.call(account, headers=headers).headers["X-RateLimit-Remaining"]
        for headers in (
            {"X-Units": "30"},
            {},
            {"x-units": "1"},
            # What is no whole number of 1 to 50 weighs 50.
            {"X-Units": "half"},
        )
    ]
    assert left == ["70", "68", "67", "17"]
    assert desk.call(account, headers={"X-Units": "18"}).status == 429
    assert desk.call(account, headers={"X-Units": "17"}).status == 200


def test_a_call_above_the_limit_never_passes_and_is_told_so(desk: Desk) -> None:
    desk.use(rules("{header: X-Units, max: 50}"))
    account = desk.account()
    for _ in range(2):
        refused = desk.call(account, headers={"X-Units": "11"})
        assert refused.status == 429
        assert refused.json["message"] == (
            "The limit 'units' allows 10 units in 3600 seconds, and this call weighs 11. "
            "That is more than it ever lets pass."
        )
    question = {"account": account.user_id, "path": "/v1/cast"}
    answer = desk.admin("/explain", {**question, "headers": {"X-Units": "11"}})
    assert answer["why"] == "the limit units never lets more than 10 pass, and this call weighs 11"
    assert desk.admin("/explain", question)["verdict"] == "admitted"
    assert desk.call(account, headers={"X-Units": "10"}).status == 200


def test_check_and_the_admin_listener_show_weights(desk: Desk) -> None:
    desk.use(rules("{header: X-Units, max: 50}"))
    shown = desk.admin("/policies")["policies"]["weighed-fixed_window"]["rate_limits"]["units"]
    assert shown["weight"] == "header x-units, 1 without it, at most 50"
