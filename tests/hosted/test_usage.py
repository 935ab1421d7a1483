"""``GET /v1/usage``."""

import base64
import json
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from urllib.parse import urlencode

import pytest

from gateway.hosted.usage import Position, Span, cursor_text, read_cursor
from tests.hosted.world import CENT, Call, World

ZONE = "an IANA time zone name such as Asia/Tokyo"
DAY = "a day such as 2026-11-22"


async def usage(call: Call, **parameters: str) -> dict[str, Any]:
    answer = await call("GET", f"/v1/usage?{urlencode(parameters)}")
    assert answer.status == 200, await answer.text()
    page: dict[str, Any] = json.loads(await answer.text(), parse_float=Decimal)
    return page


async def test_an_account_that_used_nothing_has_an_empty_page_of_the_last_thirty_days(call: Call, world: World) -> None:
    assert await usage(call) == {
        "account_id": world.account_id,
        "from": "2026-10-24",
        "to": "2026-11-22",
        "timezone": "UTC",
        "usage": [],
        "next_cursor": None,
    }


async def test_calls_and_cost_are_summed_by_day_and_policy_newest_day_first(call: Call, world: World) -> None:
    await world.spend(1)
    await world.spend(2)
    await world.spend(5, policy="brew")
    await world.spend(3, at=world.now - timedelta(days=1))
    await world.spend(9, account="somebody else")
    assert (await usage(call))["usage"] == [
        {"day": "2026-11-22", "policy": "brew", "calls": 1, "cost_cents": 5},
        {"day": "2026-11-22", "policy": "cast", "calls": 2, "cost_cents": 3},
        {"day": "2026-11-21", "policy": "cast", "calls": 1, "cost_cents": 3},
    ]


async def test_amounts_are_exact(call: Call, world: World) -> None:
    for _ in range(3):
        await world.database.execute(
            "INSERT INTO usage_events (id, account_id, policy, occurred_at, cost_microcents, upstream_status, outcome) "
            "VALUES (gen_random_uuid(), $1, 'cast', $2, $3, 200, 'posted')",
            world.account_id,
            world.now,
            CENT // 10 + 1,
        )
    assert (await usage(call))["usage"][0]["cost_cents"] == Decimal("0.300003")


async def test_days_begin_at_midnight_of_the_zone_asked_for(call: Call, world: World) -> None:
    await world.spend(1, at=datetime(2026, 11, 21, 14, 59, 59, 999000, tzinfo=UTC))
    await world.spend(2, at=datetime(2026, 11, 21, 15, tzinfo=UTC))
    page = await usage(call, timezone="Asia/Tokyo")
    assert [(row["day"], row["cost_cents"]) for row in page["usage"]] == [("2026-11-22", 2), ("2026-11-21", 1)]


async def test_both_ends_of_the_range_belong_to_it(call: Call, world: World) -> None:
    for day in range(1, 8):
        await world.spend(day, at=datetime(2026, 11, day, tzinfo=UTC))
    page = await usage(call, **{"from": "2026-11-03", "to": "2026-11-05"})
    assert [row["cost_cents"] for row in page["usage"]] == [5, 4, 3]


async def test_an_hour_that_the_clocks_repeat_is_in_one_day(call: Call, world: World) -> None:
    await world.spend(1, at=datetime(2026, 10, 25, 0, 30, tzinfo=UTC))
    await world.spend(2, at=datetime(2026, 10, 25, 1, 30, tzinfo=UTC))
    page = await usage(call, timezone="Europe/Berlin")
    assert [(row["day"], row["calls"]) for row in page["usage"]] == [("2026-10-25", 2)]


async def test_a_day_that_a_zone_never_had_is_not_listed_twice(call: Call, world: World) -> None:
    # Samoa crossed the date line: 30 December 2011 did not happen there.
    await world.spend(1, at=datetime(2011, 12, 30, 12, tzinfo=UTC))
    page = await usage(call, timezone="Pacific/Apia", **{"from": "2011-12-28", "to": "2012-01-02"})
    assert [(row["day"], row["calls"]) for row in page["usage"]] == [("2011-12-31", 1)]


async def test_pages_together_are_the_whole_each_row_once(call: Call, world: World) -> None:
    for days_ago in (0, 1, 40, 41, 200):
        for policy in ("a", "B", "é"):
            await world.spend(1, at=world.now - timedelta(days=days_ago), policy=policy)
    asked = {"from": "2026-01-01", "to": "2026-11-22"}
    whole = (await usage(call, **asked))["usage"]
    assert len(whole) == 15
    assert [row["policy"] for row in whole[:3]] == ["B", "a", "é"]
    for limit in (1, 2, 4, 14, 15):
        rows: list[dict[str, Any]] = []
        parameters = {**asked, "limit": str(limit)}
        while True:
            page = await usage(call, **parameters)
            assert len(page["usage"]) <= limit
            rows += page["usage"]
            if page["next_cursor"] is None:
                break
            parameters["cursor"] = page["next_cursor"]
        assert rows == whole


async def test_a_page_that_holds_all_has_no_next(call: Call, world: World) -> None:
    await world.spend(1)
    assert (await usage(call, limit="1"))["next_cursor"] is None


async def test_the_cursor_alone_goes_on_with_the_same_range_although_a_new_day_has_begun(
    call: Call, world: World
) -> None:
    for day in (20, 21, 22):
        await world.spend(day, at=world.now.replace(day=day))
    first = await usage(call, limit="1", timezone="Asia/Tokyo")
    world.now += timedelta(days=1)
    await world.spend(23)
    second = await usage(call, cursor=first["next_cursor"])
    assert [row["cost_cents"] for row in first["usage"] + second["usage"]] == [22, 21, 20]
    assert [first[key] for key in ("from", "to", "timezone")] == [second[key] for key in ("from", "to", "timezone")]


BAD_PARAMETERS = [
    ("limit=0", 'limit: expected a whole number from 1 to 1000, found "0".'),
    ("limit=1001", 'limit: expected a whole number from 1 to 1000, found "1001".'),
    ("limit=-1", 'limit: expected a whole number from 1 to 1000, found "-1".'),
    ("limit=1.0", 'limit: expected a whole number from 1 to 1000, found "1.0".'),
    ("limit=", 'limit: expected a whole number from 1 to 1000, found "".'),
    ("limit=%D9%A1", 'limit: expected a whole number from 1 to 1000, found "\\u0661".'),
    (f"limit={'9' * 6000}", f'limit: expected a whole number from 1 to 1000, found "{"9" * 79}….'),
    ("from=yesterday", f'from: expected {DAY}, found "yesterday".'),
    ("from=2026-11-31", f'from: expected {DAY}, found "2026-11-31".'),
    ("from=20261101", f'from: expected {DAY}, found "20261101".'),
    ("to=2026-W47-1", f'to: expected {DAY}, found "2026-W47-1".'),
    ("to=9999-12-31", f'to: expected {DAY}, found "9999-12-31".'),
    ("to=0001-01-01", f'to: expected {DAY}, found "0001-01-01".'),
    ("to=%00", f'to: expected {DAY}, found "\\u0000".'),
    (
        "from=2026-11-23",
        'from: expected a day of the 366 days that end with to (2026-11-22), found "2026-11-23".',
    ),
    (
        "from=2025-11-21&to=2026-11-22",
        'from: expected a day of the 366 days that end with to (2026-11-22), found "2025-11-21".',
    ),
    ("timezone=Moon", f'timezone: expected {ZONE}, found "Moon".'),
    ("cursor=x", 'cursor: expected a next_cursor of an earlier answer, found "x".'),
    ("cursor=%FF", 'cursor: expected a next_cursor of an earlier answer, found "\\ufffd".'),
    ("form=2026-11-01", 'form: expected no parameter but from, to, timezone, limit, cursor, found "2026-11-01".'),
    ("limit=1&limit=2", "limit: expected one, found more than one."),
    (
        "limit=0&timezone=Moon",
        f'limit: expected a whole number from 1 to 1000, found "0"; timezone: expected {ZONE}, found "Moon".',
    ),
]


async def test_bad_parameters_are_named(call: Call) -> None:
    for query, message in BAD_PARAMETERS:
        answer = await call("GET", f"/v1/usage?{query}")
        error = await answer.json()
        assert (answer.status, error["error"], error["message"]) == (400, "invalid_request", message)
        assert error["details"]


async def test_a_cursor_does_not_mix_with_another_range(call: Call, world: World) -> None:
    for day in (20, 21):
        await world.spend(1, at=world.now.replace(day=day))
    cursor = (await usage(call, limit="1"))["next_cursor"]
    answer = await call("GET", f"/v1/usage?cursor={cursor}&from=2026-11-01&timezone=UTC")
    message = 'from: expected the cursor\'s own (2026-10-24), or nothing, found "2026-11-01".'
    assert (answer.status, (await answer.json())["message"]) == (400, message)


def _cursor(parts: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(parts).encode()).decode()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "AA",
        _cursor([]),
        _cursor({}),
        _cursor(["2026-11-01", "2026-11-30", "UTC", "2026-11-20", 7]),
        _cursor(["2026-11-01", "2026-11-30", "Moon", "2026-11-20", "cast"]),
        _cursor(["2026-11-01", "2026-11-30", "UTC", "2026-12-20", "cast"]),
        _cursor(["2020-11-01", "2026-11-30", "UTC", "2026-11-20", "cast"]),
        _cursor(["2026-11-01", "2026-11-30", "UTC", "2026-11-20", "\0"]),
        _cursor(["2026-11-01", "2026-11-30", "UTC", "2026-11-20", "\ud800"]),
        base64.urlsafe_b64encode(b"[" * 700).decode(),
        "A" * 1001,
        "é",
    ],
)
def test_what_is_no_cursor_of_ours_is_not_read(text: str) -> None:
    assert read_cursor(text) is None


def test_a_cursor_reads_as_it_was_written() -> None:
    span = Span(first=date(2026, 11, 1), last=date(2026, 11, 30), time_zone="America/Argentina/Buenos_Aires")
    position = Position(day=date(2026, 11, 2), policy="é" * 40)
    assert read_cursor(cursor_text(span, position)) == (span, position)
