"""Calls with an idempotency key, from client to ledger."""

import http.client
from contextlib import closing
from urllib.parse import urlsplit

from tests.policies.conftest import Desk
from tests.upstream_stub.running import Account

CENT = 1_000_000
RULES = """
policies:
  - name: {name}
    match: {{methods: [POST], path: /v1/cast}}
    cost: {{fixed: {{cents: 1}}}}
    idempotency: {{life: 1h}}
plans:
  free: {{hard_limit_cents: {{monthly: 2}}}}
"""


def key(value: str) -> dict[str, str]:
    return {"Idempotency-Key": value}


def call_with(desk: Desk, account: Account, *fields: tuple[str, str]) -> tuple[int, bytes]:
    """Status and body of a cast with exactly these fields."""
    connection = http.client.HTTPConnection(urlsplit(desk.gateway.base_url).netloc, timeout=20)
    connection.putrequest("POST", "/v1/cast")
    for name, value in (("Authorization", f"Bearer {account.api_key}"), *fields, ("Content-Length", "0")):
        connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, body


def test_a_key_is_billed_once_also_when_the_budget_is_spent(desk: Desk) -> None:
    desk.use(RULES.format(name="keyed"))
    account, other = desk.account(), desk.account()
    assert desk.call(account, headers=key("one")).status == 200
    assert desk.call(account, headers=key("one"), status=503).status == 503  # forwarded, and not charged
    assert desk.settled(account, 1) == [CENT]
    assert [desk.call(account, headers=key("one")).status for _ in range(3)] == [200] * 3
    assert sorted(desk.settled(account, 4)) == [0, 0, 0, CENT]
    assert desk.call(account, headers=key("two")).status == 200
    assert sorted(desk.settled(account, 5)) == [0, 0, 0, CENT, CENT]
    # The budget is spent.
    assert [desk.call(account, headers=key(name)).status for name in ("one", "two", "three")] == [200, 200, 402]
    assert desk.call(account).status == 402
    assert sum(desk.settled(account, 7)) == 2 * CENT
    assert desk.call(other, headers=key("one")).status == 200
    assert desk.settled(other, 1) == [CENT]


def test_a_repeat_that_was_let_past_a_spent_budget_stays_one_when_its_key_runs_out_under_way(desk: Desk) -> None:
    desk.use(RULES.format(name="running-out"))
    account = desk.account()
    assert [desk.call(account, headers=key(name)).status for name in ("one", "two", "three")] == [200, 200, 402]
    desk.settled(account, 2)
    with desk.calls_under_way(account, 1, headers=key("one")):
        desk.sql("UPDATE billed_keys SET expires_at = clock_timestamp() WHERE account_id = $1", account.user_id)
    assert desk.settled(account, 3) == [CENT, CENT, 0]


def test_a_call_that_was_not_charged_does_not_use_its_key_up(desk: Desk) -> None:
    desk.use(RULES.format(name="unused"))
    account = desk.account()
    assert desk.call(account, headers=key("k"), status=500).status == 500
    assert [desk.call(account, headers=key("k")).status for _ in range(2)] == [200, 200]
    assert sorted(desk.settled(account, 2)) == [0, CENT]


def test_keys_that_cannot_be_told_apart_are_refused(desk: Desk) -> None:
    desk.use(RULES.format(name="refused"))
    account = desk.account()
    for value, found in (("", "none"), ("a b", "others"), ("x" * 256, "256 characters"), ("\xfc", "others")):
        answer = desk.call(account, headers=key(value))
        assert (answer.status, answer.json["error"]) == (400, "invalid_request")
        assert answer.json["details"] == f"idempotency-key: expected 1 to 255 visible ASCII characters, found {found}"
    for second in ("Idempotency-Key", "IDEMPOTENCY_KEY"):  # to some servers the same field
        status, body = call_with(desk, account, ("Idempotency-Key", "a"), (second, "b"))
        assert status == 400
        assert b"expected one key, found 2" in body
    assert desk.call(account, headers=key("x" * 255)).status == 200
    assert desk.charged(account, 1) == [CENT]


def test_a_key_that_the_service_does_not_get_is_none(desk: Desk) -> None:
    desk.use(RULES.format(name="unseen"))
    account = desk.account()
    with closing(http.client.HTTPConnection(urlsplit(desk.gateway.base_url).netloc, timeout=20)) as connection:
        taken_out = {**key("same"), "Connection": "Idempotency-Key", "Authorization": f"Bearer {account.api_key}"}
        for _ in range(2):  # each call is work of its own
            connection.request("POST", "/v1/cast", b"{}", taken_out)
            answered = connection.getresponse()
            answered.read()
            assert answered.status == 200
    assert desk.charged(account, 2) == [CENT] * 2
    answer = desk.call(account, headers={**key("same"), "Idempotency_Key": "another"})
    assert (answer.status, answer.json["details"]) == (
        400,
        "idempotency-key: expected one key, found 2",
    )


def test_a_key_that_the_service_behind_does_not_get_is_none(desk: Desk) -> None:
    desk.use(RULES.format(name="hidden"))
    account = desk.account()
    assert desk.call(account, headers=key("k")).status == 200
    hidden = ("Idempotency-Key", "k"), ("Connection", "close, Idempotency-Key")  # for this hop alone
    assert call_with(desk, account, *hidden)[0] == 200
    assert desk.settled(account, 2) == [CENT, CENT]
    assert call_with(desk, account, *hidden)[0] == 402
    assert call_with(desk, account, ("Idempotency_Key", "k"))[0] == 402
    assert desk.call(account, headers=key("k")).status == 200
