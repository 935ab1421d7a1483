"""``castgate explain`` and ``POST /explain``: the same verdict as the call would have, and nothing taken."""

import json
import os
import socket
import subprocess
import sys
from typing import Any

import pytest
import redis

from tests.gateways import ROOT
from tests.policies.conftest import Desk

RULES = """\
policies:
  - name: explained
    match: {methods: [POST], path: /v1/cast}
    cost: {fixed: {cents: 2}}
    rate_limits:
      - {name: per-account, limit: 3, window: 1h, algorithm: ALGORITHM}
  - {name: trial, match: {path: /v1/trial}, cost: {fixed: {cents: 1}}, mode: shadow,
     rate_limits: [{name: once, limit: 1, window: 1h}]}
plans:
  free: {hard_limit_cents: {monthly: 100}}
  high: {rate_limits: {per-account: {limit: 5}}}
  poor: {hard_limit_cents: {daily: 3, total: 1000}, time_zone: Asia/Tokyo}
"""


def state(desk: Desk) -> dict[bytes, bytes | None]:
    """All of what Redis knows of accounts and rate limits."""
    with redis.Redis.from_url(desk.redis_url) as client:
        keys = [key for kind in ("a", "r") for key in client.scan_iter(f"cg:*:{kind}:*")]
        return {key: client.dump(key) for key in sorted(keys)}


def explained(desk: Desk, **question: Any) -> dict[str, Any]:
    answer: dict[str, Any] = desk.admin("/explain", {"path": "/v1/cast", **question})
    return answer


@pytest.mark.parametrize("algorithm", ["sliding_window", "fixed_window", "token_bucket"])
def test_the_verdict_is_the_call_s_and_asking_takes_nothing(desk: Desk, algorithm: str) -> None:
    desk.use(RULES.replace("ALGORITHM", algorithm).replace("explained", f"explained-{algorithm}"))
    account = desk.account()
    assert desk.call(account).status == 200
    for taken in (1, 2):
        desk.settled(account, taken)
        before = state(desk)
        for _ in range(3):
            answer = explained(desk, key=account.api_key)
            assert (answer["verdict"], answer["status"]) == ("admitted", None)
            assert answer["account"] == {"id": account.user_id, "plan": "free", "identified_by": "API key"}
            [limit] = answer["rate_limits"]
            assert (limit["taken"], limit["limit"], limit["blocks"]) == (taken, 3, False)
        assert state(desk) == before
        assert desk.call(account).status == 200
    answer = explained(desk, account=account.user_id)
    assert (answer["verdict"], answer["status"]) == ("refused", 429)
    assert answer["rate_limits"][0]["taken"] == 3
    assert desk.call(account).status == 429


def test_budgets_with_what_is_used_held_and_when_they_reset(desk: Desk) -> None:
    desk.use(RULES.replace("ALGORITHM", "sliding_window"))
    account = desk.account(plan="poor")
    [total, daily] = explained(desk, account=account.user_id)["budgets"]  # before any call: from the ledger
    assert (total["period"], total["limit_cents"], total["used_cents"], total["resets_at"]) == ("total", 1000, 0, None)
    assert (daily["time_zone"], daily["remaining_cents"], daily["blocks"]) == ("Asia/Tokyo", 3, False)
    assert daily["resets_at"].endswith("T15:00:00Z")
    assert desk.call(account).status == 200
    desk.settled(account, 1)
    answer = explained(desk, account=account.user_id)
    refused = desk.call(account)
    assert (answer["status"], refused.status) == (402, 402)
    assert answer["why"] == "the daily budget of 3 cents has 2 used or held, and this call needs 2"
    assert answer["budgets"][1]["blocks"] is True
    assert answer["budgets"][1]["resets_at"] == refused.json["resets_at"]


def test_what_is_held_by_calls_under_way_is_shown(desk: Desk) -> None:
    desk.use(RULES.replace("ALGORITHM", "sliding_window"))
    account = desk.account()
    with desk.calls_under_way(account, 2):
        [budget] = explained(desk, account=account.user_id)["budgets"]
        assert (budget["used_cents"], budget["held_cents"], budget["remaining_cents"]) == (0, 4, 96)


def test_a_plan_s_limit_a_shadow_policy_and_what_is_under_no_policy(desk: Desk) -> None:
    desk.use(RULES.replace("ALGORITHM", "sliding_window"))
    account = desk.account(plan="high")
    [limit] = explained(desk, account=account.user_id)["rate_limits"]
    assert (limit["limit"], limit["limit_from"]) == (5, "plan high")
    desk.call(account, "/v1/trial")
    answer = explained(desk, account=account.user_id, path="/v1/trial")
    assert answer["verdict"] == "admitted"
    assert answer["why"].startswith("only because the policy is in shadow mode: the limit once has no room for ")
    assert explained(desk, path="/elsewhere")["verdict"] == "relayed"
    assert explained(desk, method="GET")["verdict"] == "relayed"
    assert explained(desk, path="/v1/budgets")["verdict"] == "hosted"
    assert explained(desk, path="/v1//cast")["status"] == 400
    unknown = explained(desk, key="ck_live_nobody")
    assert (unknown["verdict"], unknown["account"]) == ("relayed", None)
    assert explained(desk, headers={"Authorization": "Bearer a", "authorization": "Bearer b"})["status"] == 400


@pytest.mark.parametrize(
    ("method", "path", "headers", "why"),
    [
        (
            "POST",
            "/v1//cast",
            {},
            "some servers read this path as /v1/cast, which policy explained is for",
        ),
        (
            "GET",
            "/v1/cast",
            {"X-HTTP-Method-Override": "post"},
            "a field that some servers take for method or path leads to policy explained",
        ),
        (
            "GET",
            "/elsewhere",
            {"X-Original-URL": "/v1/trial"},
            "a field that some servers take for method or path leads to policy trial",
        ),
        ("POST", "/v1/cast", {"Content_Length": "3"}, "Some servers would read this field's name as another's. "),
    ],
)
def test_what_is_refused_for_its_head_is_explained_as_the_call_is_answered(
    desk: Desk, method: str, path: str, headers: dict[str, str], why: str
) -> None:
    desk.use(RULES.replace("ALGORITHM", "sliding_window"))
    account = desk.account()
    answer = explained(desk, method=method, path=path, headers=headers, key=account.api_key)
    assert (answer["verdict"], answer["status"]) == ("refused", 400)
    assert answer["why"].startswith(why)
    assert desk.call(account, path, method=method, headers=headers).status == 400


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ([], "expected a JSON object"),
        ({}, "path: expected the target of a call, such as /v1/cast"),
        ({"path": 1}, "path: expected a text"),
        ({"path": "/", "headers": {"a": 1}}, "headers: expected an object of at most 128 names and texts"),
        ({"paht": "/"}, 'unknown key "paht", expected account, address, key, method, path, session and headers'),
    ],
)
def test_a_question_that_is_none_is_told_so(desk: Desk, question: object, message: str) -> None:
    assert desk.admin("/explain", question) == {"error": "invalid_request", "message": message}


def castgate(desk: Desk, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gateway", *arguments, "--config", str(desk.config)],
        cwd=ROOT,
        env={**os.environ, **desk.environ},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_the_command_shows_it_to_people(desk: Desk) -> None:
    version = desk.use(RULES.replace("ALGORITHM", "sliding_window").replace("explained", "shown"))
    account = desk.account()
    desk.call(account)
    desk.settled(account, 1)
    shown = castgate(desk, "explain", "--key", account.api_key, "--method", "POST", "--path", "/v1/cast")
    assert (shown.returncode, shown.stderr) == (0, "")
    lines = shown.stdout.splitlines()
    assert lines[0] == f"request   POST /v1/cast, rules {version}"
    assert lines[1] == "policy    shown: POST /v1/cast, enforce, 2 cents"
    assert lines[2] == f"account   {account.user_id} by API key, plan free"
    assert lines[3].startswith("budgets   monthly: 2 used + 0 held of 100 cents, resets ")
    assert lines[3].endswith("; passes")
    assert lines[4] == "limits    per-account: 1 of 3 in 3600s per account; passes"
    assert lines[5] == "verdict   admitted: every budget and limit passes"


def test_the_command_without_redis_says_what_the_policy_says_then(desk: Desk) -> None:
    desk.use(
        RULES.replace("ALGORITHM", "sliding_window").replace(
            "name: explained", "name: blind\n    on_store_failure: deny"
        )
    )
    account = desk.account()
    blind = {**desk.environ, "REDIS_URL": "redis://127.0.0.1:1/0"}
    shown = subprocess.run(
        [sys.executable, "-m", "gateway", "explain", "--account", account.user_id, "--path", "/v1/cast", "--json",
         "--config", str(desk.config)],
        cwd=ROOT, env={**os.environ, **blind}, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    answer = json.loads(shown.stdout)
    assert (answer["verdict"], answer["status"]) == ("refused", 503)
    assert answer["why"] == "no store can decide now, and the policy says on_store_failure: deny"
    assert "Redis is away" in answer["notes"][0]


def test_the_command_does_not_wait_for_a_redis_that_hangs(desk: Desk) -> None:
    desk.use(RULES.replace("ALGORITHM", "sliding_window"))
    account = desk.account()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"redis://127.0.0.1:{silent.getsockname()[1]}"
        hanging = {**desk.environ, "REDIS_URL": address, "TEST_CONNECT_TIMEOUT": "100ms"}
        shown = subprocess.run(
            [sys.executable, "-m", "gateway", "explain", "--account", account.user_id, "--path", "/v1/cast",
             "--config", str(desk.config)],
            cwd=ROOT, env={**os.environ, **hanging}, capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip
    assert "note      Redis is away (no answer within 0.1 s)" in shown.stdout
    assert shown.stdout.endswith("verdict   admitted: the policy says on_store_failure: allow\n")


def test_check_against_a_running_gateway_shows_the_differences(desk: Desk) -> None:
    text = RULES.replace("ALGORITHM", "sliding_window")
    version = desk.use(text)
    same = castgate(desk, "check", "--against", desk.gateway.admin_url)
    assert same.stdout.splitlines() == [
        f"{desk.gateway.admin_url} runs {version}, loaded {desk.admin('/policies')['loaded_at']} by SIGHUP: "
        "the same as the files"
    ]
    draft = desk.folder / "draft"
    (draft / "policies").mkdir(parents=True, exist_ok=True)
    (draft / "config.yaml").write_text(desk.config.read_text())
    (draft / "policies" / "rules.yaml").write_text(
        text.replace("cents: 2", "cents: 2.5").replace("monthly: 100", "monthly: 90").replace("  high:", "  higher:")
    )
    shown = subprocess.run(
        [sys.executable, "-m", "gateway", "check", "--against", desk.gateway.admin_url, "--config",
         str(draft / "config.yaml")],
        cwd=ROOT, env={**os.environ, **desk.environ}, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert shown.returncode == 0
    head, *lines = shown.stdout.splitlines()
    assert head.startswith(f"{desk.gateway.admin_url} runs {version}, loaded ")
    assert head.endswith(": 4 differences")
    plan = "{budgets: {}, rate_limits: {per-account: 5}, stripe_price: none, soft_limit_percents: [50, 80, 100]}"
    assert lines == [
        "policies.explained.cost.fixed_cents: 2 -> 2.5",
        "plans.free.budgets.monthly.hard_limit_cents: 100 -> 90",
        f"plans.high: removed, was {plan}",
        f"plans.higher: added {plan}",
    ]


def test_check_against_nothing_fails_in_one_line(desk: Desk) -> None:
    shown = castgate(desk, "check", "--against", "http://127.0.0.1:1")
    assert (shown.returncode, shown.stdout) == (1, "")
    assert shown.stderr == "castgate: http://127.0.0.1:1/policies cannot be read: [Errno 111] Connection refused\n"


def test_a_free_tier_is_told_and_the_call_needs_no_budget_while_units_are_left(desk: Desk) -> None:
    desk.use(
        "policies:\n"
        "  - name: explained-free\n"
        "    match: {methods: [POST], path: /v1/cast}\n"
        "    cost: {json: {pointer: /n, cents_per_unit: 1}, hold_cents: 2, free: {units: 3, per: daily}}\n"
        "plans: {free: {hard_limit_cents: {daily: 0}}}\n"
    )
    account = desk.account()
    fresh = explained(desk, account=account.user_id)
    assert (fresh["verdict"], fresh["policy"]["hold_cents"], fresh["free_tier"]["left_units"]) == ("admitted", 0, "3")
    assert desk.call(account, answer={"Content-Type": "application/json"}, chunks=['{"n": 1.5}']).status == 200
    desk.settled(account, 1)
    before = state(desk)
    answer = explained(desk, account=account.user_id)
    tier = answer["free_tier"]
    assert (tier["unit"], tier["used_units"], tier["held_units"], tier["left_units"]) == ("unit", "1.5", "0", "1.5")
    assert (answer["verdict"], answer["policy"]["hold_cents"]) == ("refused", 0.5)
    assert state(desk) == before
    refused = desk.call(account)
    assert (refused.status, refused.json["cost_cents"]) == (402, 0.5)
