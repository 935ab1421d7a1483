"""Every wrong shape of a budget, and what is said about it."""

import json

import pytest

from gateway.hosted.answers import RefusedError
from gateway.hosted.body import parse_json_object
from gateway.hosted.budget_body import read_budget
from tests.hosted.world import CENT, Call, World

PERIODS = "one of daily, weekly, monthly, total"
KEYS = "no key but period, hard_limit_cents, soft_limit_cents, timezone, week_start"
ZONE = "an IANA time zone name such as Asia/Tokyo"
WEEKDAYS = "one of monday, tuesday, wednesday, thursday, friday, saturday, sunday"
MOST = "at most 9007199254.740991 cents (2^53 microcents)"


def budget(**changes: str) -> bytes:
    """A good body's JSON, with members replaced by JSON texts; an empty text leaves the member out."""
    members = {"period": '"monthly"', "hard_limit_cents": "1000"} | changes
    return ("{" + ", ".join(f'"{key}": {text}' for key, text in members.items() if text) + "}").encode()


NOT_A_BUDGET = [
    (b"", "body: expected a JSON object, found nothing."),
    (b" \r\n", "body: expected a JSON object, found nothing."),
    (b"[]", "body: expected a JSON object, found a list."),
    (b"null", "body: expected a JSON object, found null."),
    (b"1.5", "body: expected a JSON object, found 1.5."),
    (b'"monthly"', 'body: expected a JSON object, found "monthly".'),
    (
        b"{",
        "body: expected JSON, found an error at line 1, column 2 (Expecting property name enclosed in double quotes).",
    ),
    (b"period=monthly", "body: expected JSON, found an error at line 1, column 1 (Expecting value)."),
    (budget() + b"x", "body: expected JSON, found an error at line 1, column 48 (Extra data)."),
    (
        b'\xef\xbb\xbf{"period": "monthly"}',
        "body: expected JSON, found an error at line 1, column 1 (Unexpected UTF-8 BOM (decode using utf-8-sig)).",
    ),
    (b'{"period": "\xff"}', "body: expected UTF-8, found byte 0xff at offset 12."),
    ('{"period": "monthly"}'.encode("utf-16"), "body: expected UTF-8, found byte 0xff at offset 0."),
    (b'{"period": "a\nb"}', "body: expected JSON, found an error at line 1, column 14 (Invalid control character at)."),
    (b"[" * 60_000, "body: expected a flat JSON object, found deep nesting."),
    (b'{"a":' * 10_000, "body: expected a flat JSON object, found deep nesting."),
    (budget(hard_limit_cents="NaN"), "body: expected finite numbers, found NaN."),
    (budget(hard_limit_cents="Infinity"), "body: expected finite numbers, found Infinity."),
    (budget(hard_limit_cents="-Infinity"), "body: expected finite numbers, found -Infinity."),
    (
        budget(hard_limit_cents="1e99999999999999999999"),
        "body: expected numbers of a sane size, found 1e99999999999999999999.",
    ),
    (b'{"period": "daily", "period": "total"}', 'body: expected each key once, found "period" twice.'),
    (b"{}", f"period: expected {PERIODS}, found nothing; hard_limit_cents: expected a number of cents, found nothing."),
    (budget(period=""), f"period: expected {PERIODS}, found nothing."),
    (budget(period="null"), f"period: expected {PERIODS}, found null."),
    (budget(period="7"), f"period: expected {PERIODS}, found 7."),
    (budget(period='["monthly"]'), f"period: expected {PERIODS}, found a list."),
    (budget(period='"Monthly"'), f'period: expected {PERIODS}, found "Monthly".'),
    (budget(period='"hourly"'), f'period: expected {PERIODS}, found "hourly".'),
    (budget(period='"\\ud800"'), f'period: expected {PERIODS}, found "\\ud800".'),
    (budget(period=f'"{"x" * 100}"'), f'period: expected {PERIODS}, found "{"x" * 79}….'),
    (budget(hard_limit_cents=""), "hard_limit_cents: expected a number of cents, found nothing."),
    (budget(hard_limit_cents="null"), "hard_limit_cents: expected a number of cents, found null."),
    (budget(hard_limit_cents="true"), "hard_limit_cents: expected a number of cents, found true."),
    (budget(hard_limit_cents='"1000"'), 'hard_limit_cents: expected a number of cents, found "1000".'),
    (budget(hard_limit_cents="{}"), "hard_limit_cents: expected a number of cents, found an object."),
    (budget(hard_limit_cents="-1"), "hard_limit_cents: expected cents of 0 or more, found -1."),
    (budget(hard_limit_cents="-0.000001"), "hard_limit_cents: expected cents of 0 or more, found -0.000001."),
    (budget(hard_limit_cents="0.0000001"), "hard_limit_cents: expected at most six decimals of a cent, found 1E-7."),
    (
        budget(hard_limit_cents="1.0000000000000000000000000000001"),
        "hard_limit_cents: expected at most six decimals of a cent, found 1.0000000000000000000000000000001.",
    ),
    (
        budget(hard_limit_cents="1e-99999999"),
        "hard_limit_cents: expected at most six decimals of a cent, found 1E-99999999.",
    ),
    (budget(hard_limit_cents="9007199254.740992"), f"hard_limit_cents: expected {MOST}, found 9007199254.740992."),
    (budget(hard_limit_cents="1e9999999"), f"hard_limit_cents: expected {MOST}, found 1E+9999999."),
    (budget(hard_limit_cents="9" * 5000), f"hard_limit_cents: expected {MOST}, found {'9' * 80}…."),
    (budget(soft_limit_cents="-1"), "soft_limit_cents: expected cents of 0 or more, found -1."),
    (budget(soft_limit_cents="false"), "soft_limit_cents: expected a number of cents or null, found false."),
    (budget(timezone='"Mars/Olympus"'), f'timezone: expected {ZONE}, found "Mars/Olympus".'),
    (budget(timezone='"utc+9"'), f'timezone: expected {ZONE}, found "utc+9".'),
    (budget(timezone='"../../etc/passwd"'), f'timezone: expected {ZONE}, found "../../etc/passwd".'),
    (budget(timezone='"UTC\\u0000"'), f'timezone: expected {ZONE}, found "UTC\\u0000".'),
    (budget(timezone="null"), f"timezone: expected {ZONE}, found null."),
    (budget(timezone="9"), f"timezone: expected {ZONE}, found 9."),
    (budget(week_start="1"), f"week_start: expected {WEEKDAYS}, found 1."),
    (budget(week_start='"Monday"'), f'week_start: expected {WEEKDAYS}, found "Monday".'),
    (budget(week_start="null"), f"week_start: expected {WEEKDAYS}, found null."),
    (budget(hard_limit="5"), f"hard_limit: expected {KEYS}, found 5."),
    (budget(account_id='"somebody"'), f'account_id: expected {KEYS}, found "somebody".'),
    (budget(**{"\\ud800": "1"}), 'body: expected keys that are Unicode text, found "\\ud800".'),
    (
        budget(period='"never"', hard_limit_cents="-1", limit="2"),
        f'period: expected {PERIODS}, found "never"; hard_limit_cents: expected cents of 0 or more, found -1; '
        f"limit: expected {KEYS}, found 2.",
    ),
]
NOT_MEANT = [
    (
        budget(hard_limit_cents="1", soft_limit_cents="1.000001"),
        "soft_limit_cents: expected at most hard_limit_cents (1), found 1.000001.",
    ),
    (budget(week_start='"sunday"'), 'week_start: expected no week_start in a monthly budget, found "sunday".'),
]


@pytest.mark.parametrize(("raw", "message"), NOT_A_BUDGET)
def test_what_is_not_shaped_like_a_budget_is_400(raw: bytes, message: str) -> None:
    with pytest.raises(RefusedError) as refused:
        read_budget(parse_json_object(raw))
    assert (refused.value.message, refused.value.status) == (message, 400)


@pytest.mark.parametrize(("raw", "message"), NOT_MEANT)
def test_what_cannot_be_meant_is_422(raw: bytes, message: str) -> None:
    with pytest.raises(RefusedError) as refused:
        read_budget(parse_json_object(raw))
    assert (refused.value.message, refused.value.status) == (message, 422)


async def test_over_http_each_of_them_is_an_error_that_lists_its_details(call: Call, world: World) -> None:
    for status, code, shapes in ((400, "invalid_request", NOT_A_BUDGET), (422, "unprocessable", NOT_MEANT)):
        for raw, message in shapes:
            for method in ("POST", "PUT"):
                answer = await call(method, "/v1/budgets", data=raw, headers={"Content-Type": "application/json"})
                error = json.loads(await answer.read())
                assert (answer.status, error["error"], error["message"]) == (status, code, message)
                told = [f"{one['field']}: expected {one['expected']}, found {one['found']}" for one in error["details"]]
                assert "; ".join(told) + "." == message
    assert world.admission.changes == []


@pytest.mark.parametrize(
    ("content_type", "message"),
    [
        (None, "body: expected Content-Type application/json, found no Content-Type."),
        ("text/plain", "body: expected Content-Type application/json, found Content-Type text/plain."),
        (
            "application/x-www-form-urlencoded",
            "body: expected Content-Type application/json, found Content-Type application/x-www-form-urlencoded.",
        ),
        ("application/json; charset=utf-16", "body: expected UTF-8, found charset utf-16."),
        ("nonsense", "body: expected Content-Type application/json, found Content-Type application/octet-stream."),
    ],
)
async def test_only_json_is_read(call: Call, content_type: str | None, message: str) -> None:
    more = {"headers": {"Content-Type": content_type}} if content_type else {"skip_auto_headers": ["Content-Type"]}
    answer = await call("POST", "/v1/budgets", data=budget(), **more)
    assert (answer.status, (await answer.json())["message"]) == (400, message)


async def test_utf_8_may_be_named(call: Call) -> None:
    headers = {"Content-Type": 'Application/JSON; charset="UTF-8"'}
    assert (await call("POST", "/v1/budgets", data=budget(), headers=headers)).status == 201


async def test_a_compressed_body_is_refused(call: Call) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    answer = await call("POST", "/v1/budgets", data=b"\x1f\x8b", headers=headers)
    message = "body: expected an unencoded body, found Content-Encoding gzip."
    assert (answer.status, (await answer.json())["message"]) == (400, message)


async def test_a_body_over_64_kib_is_refused(call: Call) -> None:
    headers = {"Content-Type": "application/json"}
    answer = await call("POST", "/v1/budgets", data=budget() + b" " * 65_536, headers=headers)
    assert (answer.status, (await answer.json())["message"]) == (400, "body: expected at most 65536 bytes, found more.")
    padded = budget().ljust(65_536)
    assert (await call("POST", "/v1/budgets", data=padded, headers=headers)).status == 201


def test_a_good_body_is_read_exactly() -> None:
    raw = budget(hard_limit_cents="12.3456780", soft_limit_cents="1.2e1", timezone='"Asia/Tokyo"')
    body = read_budget(parse_json_object(raw))
    assert (body.hard_limit_cents, body.soft_limit_cents) == (12_345_678, 12 * CENT)
    assert body.limit.kind == "monthly/Asia/Tokyo/1"


def test_null_is_no_soft_limit() -> None:
    assert read_budget(parse_json_object(budget(soft_limit_cents="null"))).soft_limit_cents is None
