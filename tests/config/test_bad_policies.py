"""Policies with one defect each, in costs, limits and plans; with those of test_refusals.py more than sixty."""

import pytest

from tests.config.good_files import CAST, PLANS, Refusal
from tests.config.test_refusals import DEFECTS as OTHER_DEFECTS

FIXED = '{fixed: {cents: "${COST_PER_CAST_CENTS}"}}'
AT = "policies/cast.yaml:4:11: policies[0].cost"
TOKENS = "{header: {name: X-Tokens, cents_per_unit: 0.01}, maximum_cents: 5}"
WAYS = "fixed, header, json, duration, bytes"
LIMIT = '{name: per-account, limit: "${RATE_LIMIT_PER_MINUTE:-60}", window: 1m}'
WEIGHT = "policies/cast.yaml:6:49: policies[0].rate_limits[0].weight"
ONE_SLOT = "expected no weight for the algorithm concurrency, where each call takes one slot"
CALLERS_OWN = "expected a header name that is the caller's own (not of the connection, the framing or X-Forwarded-…)"
MANY_COSTS = ", ".join(["{fixed: {cents: 1}}"] * 9)


def cost(text: str) -> dict[str, str]:
    return {"policies/cast.yaml": CAST.replace(FIXED, text)}


def tokens(old: str, new: str) -> dict[str, str]:
    assert old in TOKENS
    return cost(TOKENS.replace(old, new))


def limit(text: str) -> dict[str, str]:
    return {"policies/cast.yaml": CAST.replace(LIMIT, text)}


def policy(text: str) -> dict[str, str]:
    return {"policies/cast.yaml": CAST.replace("    cost:", f"    {text}\n    cost:")}


def plan(text: str) -> dict[str, str]:
    return {"policies/plans.yaml": f"{PLANS}  pro: {text}\n"}


DEFECTS: dict[str, tuple[dict[str, str], str]] = {
    # costs
    "two costs": (
        cost("{fixed: {cents: 1}, bytes: {cents_per_byte: 1}, hold_cents: 1}"),
        f"{AT}: expected one of {WAYS}, sum, found fixed and bytes",
    ),
    "a misspelt cost": (
        cost("{heder: {}}"),
        f'{AT.replace("11", "12")}.heder: unknown key "heder", did you mean "header"?',
    ),
    "an idempotency header of the connection": (
        policy("idempotency: {header: connection}"),
        f'policies/cast.yaml:4:27: policies[0].idempotency.header: {CALLERS_OWN}, found "connection"',
    ),
    "an idempotency header that is none": (
        policy("idempotency: {header: 'Idempotency Key'}"),
        'policies/cast.yaml:4:27: policies[0].idempotency.header: expected a header name, found "Idempotency Key"',
    ),
    "a key that lives too long": (
        policy("idempotency: {life: 60d}"),
        'policies/cast.yaml:4:25: policies[0].idempotency.life: expected a duration of 1s to 31d, found "60d"',
    ),
    "a free tier without a cost": (
        cost("{free: {units: 5, per: daily}}"),
        f"{AT.replace('11', '18')}.free: expected a cost beside it: one of {WAYS}, sum",
    ),
    "a free tier of nothing": (
        cost("{fixed: {cents: 1}, free: {units: 0, per: daily}}"),
        f"{AT.replace('11', '45')}.free.units: expected an integer of 1 or more, found 0",
    ),
    "a free tier of more than can be counted": (
        tokens("maximum_cents: 5", "maximum_cents: 5, free: {units: 10000000000, per: daily}"),
        f"{AT.replace('11', '92')}.free.units: expected at most 9007199254 for this cost, found 10000000000",
    ),
    "a free tier of what has no price": (
        cost("{bytes: {cents_per_byte: 0}, hold_cents: 1, free: {units: 5, per: daily}}"),
        f"{AT.replace('11', '61')}.free: expected a price above 0 beside it, found 0",
    ),
    "a free tier without a period": (
        cost("{fixed: {cents: 1}, free: {units: 5}}"),
        f'{AT.replace("11", "37")}.free: missing key "per"',
    ),
    "a free tier per hour": (
        cost("{fixed: {cents: 1}, free: {units: 5, per: hourly}}"),
        f'{AT.replace("11", "53")}.free.per: expected one of daily, weekly, monthly, total, found "hourly"',
    ),
    "an empty item of a sum": (
        cost("{sum: [{fixed: {cents: 1}}, {}]}"),
        f"{AT.replace('11', '39')}.sum[1]: expected exactly one of {WAYS}, found none",
    ),
    "two costs in an item of a sum": (
        cost("{sum: [{fixed: {cents: 1}, duration: {cents_per_ms: 1}}], hold_cents: 1}"),
        f"{AT.replace('11', '18')}.sum[0]: expected exactly one of {WAYS}, found fixed and duration",
    ),
    "a sum in a sum": (
        cost("{sum: [{sum: []}]}"),
        f'{AT.replace("11", "19")}.sum[0].sum: unknown key "sum", expected one of bytes, duration, fixed, header, json',
    ),
    "a sum that is no list": (
        cost("{sum: {fixed: {cents: 1}}}"),
        f"{AT.replace('11', '17')}.sum: expected a list, found a mapping",
    ),
    "too many costs": (
        cost(f"{{sum: [{MANY_COSTS}]}}"),
        f"{AT.replace('11', '17')}.sum: expected at most 8 costs, found 9",
    ),
    "a header cost without a name": (
        tokens("name: X-Tokens, ", ""),
        f'{AT.replace("11", "20")}.header: missing key "name"',
    ),
    "a header cost without a price": (
        tokens(", cents_per_unit: 0.01", ""),
        f'{AT.replace("11", "20")}.header: missing key "cents_per_unit"',
    ),
    "a header that cannot be": (
        tokens("X-Tokens", "X Tokens"),
        f'{AT.replace("11", "27")}.header.name: expected a header name, found "X Tokens"',
    ),
    "a price by another name": (
        tokens("cents_per_unit", "cent_per_unit"),
        f'{AT.replace("11", "37")}.header.cent_per_unit: unknown key "cent_per_unit", did you mean "cents_per_unit"?',
    ),
    "a negative price": (
        tokens("0.01", "-0.01"),
        f"{AT.replace('11', '53')}.header.cents_per_unit: expected cents of 0 or more, found -0.01",
    ),
    "a price in exponent form": (
        tokens("0.01", "1e-5"),
        f'{AT.replace("11", "53")}.header.cents_per_unit: expected cents as a number, found "1e-5"',
    ),
    "a price too fine": (
        tokens("0.01", "0.0000000000000000001"),
        f"{AT.replace('11', '53')}.header.cents_per_unit: expected at most 18 decimals, found 0.0000000000000000001",
    ),
    "a price beyond all money": (
        tokens("0.01", "10000000000"),
        f"{AT.replace('11', '53')}.header.cents_per_unit: "
        "expected at most 9007199254.740991 cents (2^53 microcents), found 10000000000",
    ),
    "a price of nothing": (
        tokens("0.01", ""),
        f"{AT.replace('11', '53')}.header.cents_per_unit: expected cents as a number, found nothing",
    ),
    "a pointer without a slash": (
        cost("{json: {pointer: usage, cents_per_unit: 1}, hold_cents: 1}"),
        f'{AT.replace("11", "28")}.json.pointer: expected a JSON pointer such as /id, found "usage"',
    ),
    "a pointer with a bad escape": (
        cost('{json: {pointer: "/a~2", cents_per_unit: 1}, hold_cents: 1}'),
        f'{AT.replace("11", "28")}.json.pointer: expected a JSON pointer such as /id, found "/a~2"',
    ),
    "unknown events": (
        cost("{json: {pointer: /a, cents_per_unit: 1, events: lst}, hold_cents: 1}"),
        f'{AT.replace("11", "59")}.json.events: expected one of last, sum, found "lst", did you mean "last"?',
    ),
    "an unknown body": (
        cost("{bytes: {cents_per_byte: 1, of: response}, hold_cents: 1}"),
        f'{AT.replace("11", "43")}.bytes.of: expected one of answer, request, both, found "response"',
    ),
    "a duration by the second": (
        cost("{duration: {cents_per_s: 1}, hold_cents: 1}"),
        f'{AT.replace("11", "23")}.duration.cents_per_s: unknown key "cents_per_s", did you mean "cents_per_ms"?',
    ),
    "nothing to hold": (
        tokens(", maximum_cents: 5", ""),
        f'{AT}: missing key "hold_cents" or "maximum_cents" (the cost header is not known before)',
    ),
    "a hold of nothing": (
        tokens("maximum_cents: 5", "hold_cents: 0"),
        f"{AT.replace('11', '72')}.hold_cents: "
        "expected more than 0 cents to hold for a cost that is not known before, found 0",
    ),
    "a hold above the maximum": (
        tokens("maximum_cents: 5", "maximum_cents: 5, hold_cents: 6"),
        f"{AT.replace('11', '90')}.hold_cents: expected at most maximum_cents (5), found 6",
    ),
    "a hold below the minimum": (
        tokens("maximum_cents: 5", "minimum_cents: 2, hold_cents: 1.5"),
        f"{AT.replace('11', '90')}.hold_cents: expected at least minimum_cents (2), found 1.5",
    ),
    "a minimum above the maximum": (
        tokens("maximum_cents: 5", "maximum_cents: 5, minimum_cents: 6"),
        f"{AT.replace('11', '93')}.minimum_cents: expected at most maximum_cents (5), found 6",
    ),
    "a hold for a fixed cost": (
        cost("{fixed: {cents: 1}, hold_cents: 2}"),
        f"{AT.replace('11', '43')}.hold_cents: expected none for a cost that is the same for every call",
    ),
    "an unknown word for what is missing": (
        tokens("maximum_cents: 5", "maximum_cents: 5, if_missing: fre"),
        f'{AT.replace("11", "90")}.if_missing: expected one of hold, free, found "fre", did you mean "free"?',
    ),
    "an unknown word for when": (
        cost("{charge_when: succes}"),
        f"{AT.replace('11', '25')}.charge_when: "
        'expected one of success, sent, always, found "succes", did you mean "success"?',
    ),
    "a status that cannot be": (
        cost("{charge_when: [200, 2000]}"),
        f"{AT.replace('11', '25')}.charge_when: expected an integer of at most 599, found 2000",
    ),
    "no status at all": (
        cost("{charge_when: []}"),
        f"{AT.replace('11', '25')}.charge_when: expected a list of statuses such as [200, 201], found a list",
    ),
    # limits
    "an unknown key of a limit": (
        limit("{name: a, limit: 1, widow: 1m}"),
        'policies/cast.yaml:6:29: policies[0].rate_limits[0].widow: unknown key "widow", did you mean "window"?',
    ),
    "a limit of no kind of caller": (
        limit("{name: a, key: user, limit: 1, window: 1m}"),
        "policies/cast.yaml:6:24: policies[0].rate_limits[0].key: "
        'expected account, api_key, ip, route or header:<name>, found "user"',
    ),
    "a limit beyond counting": (
        limit("{name: a, limit: 1000000001, window: 1m}"),
        "policies/cast.yaml:6:26: policies[0].rate_limits[0].limit: "
        "expected an integer of at most 1000000000, found 1000000001",
    ),
    "a window in words": (
        limit("{name: a, limit: 1, window: minute}"),
        "policies/cast.yaml:6:37: policies[0].rate_limits[0].window: "
        'expected a duration such as 250ms, 5s, 1m, 1h or 1d, found "minute"',
    ),
    "a window too long": (
        limit("{name: a, limit: 1, window: 32d}"),
        'policies/cast.yaml:6:37: policies[0].rate_limits[0].window: expected a duration of 100ms to 31d, found "32d"',
    ),
    "a burst of nothing": (
        limit("{name: a, limit: 1, window: 1m, algorithm: token_bucket, burst: 0}"),
        "policies/cast.yaml:6:73: policies[0].rate_limits[0].burst: expected an integer of 1 or more, found 0",
    ),
    "an algorithm nearly right": (
        limit("{name: a, limit: 1, window: 1m, algorithm: sliding_windows}"),
        "policies/cast.yaml:6:52: policies[0].rate_limits[0].algorithm: expected one of fixed_window, "
        'sliding_window, token_bucket, concurrency, found "sliding_windows", did you mean "sliding_window"?',
    ),
    "a key twice": (
        limit("{name: a, key: [ip, ip], limit: 1, window: 1m}"),
        "policies/cast.yaml:6:24: policies[0].rate_limits[0].key: "
        "expected a list of 1 to 4 different keys, found a list",
    ),
    "a key that the gateway writes": (
        limit("{name: a, key: 'header:X-Forwarded-For', limit: 1, window: 1m}"),
        f'policies/cast.yaml:6:24: policies[0].rate_limits[0].key: {CALLERS_OWN}, found "header:X-Forwarded-For"',
    ),
    "a key of nothing": (
        limit("{name: a, key: [ip, 'header:'], limit: 1, window: 1m}"),
        "policies/cast.yaml:6:24: policies[0].rate_limits[0].key: "
        'expected account, api_key, ip, route or header:<name>, found "header:"',
    ),
    "callers that are none": (
        limit("{name: a, limit: 1, window: 1m, callers: anonymous}"),
        "policies/cast.yaml:6:50: policies[0].rate_limits[0].callers: "
        'expected one of identified, unidentified, all, found "anonymous"',
    ),
    "an account of callers without one": (
        limit("{name: a, key: [ip, account], limit: 1, window: 1m, callers: all}"),
        "policies/cast.yaml:6:24: policies[0].rate_limits[0].key: "
        "expected ip, route or header:<name> for callers all, found account",
    ),
    "calls at once of callers without an account": (
        limit("{name: a, key: ip, limit: 1, algorithm: concurrency, callers: unidentified}"),
        "policies/cast.yaml:6:71: policies[0].rate_limits[0].callers: "
        "expected identified for the algorithm concurrency",
    ),
    "a limit's mode": (
        limit("{name: a, limit: 1, window: 1m, mode: report}"),
        'policies/cast.yaml:6:47: policies[0].rate_limits[0].mode: expected one of enforce, shadow, found "report"',
    ),
    "a weight of nothing": (
        limit("{name: a, limit: 1, window: 1m, weight: 0}"),
        f"{WEIGHT}: expected an integer of 1 or more, found 0",
    ),
    "a blank weight": (
        limit("{name: a, limit: 1, window: 1m, weight: }"),
        f"{WEIGHT}: expected an integer of 1 or more, found nothing",
    ),
    "a weight in words": (
        limit("{name: a, limit: 1, window: 1m, weight: heavy}"),
        f'{WEIGHT}: expected an integer of 1 or more, found "heavy"',
    ),
    "a list of weights": (
        limit("{name: a, limit: 1, window: 1m, weight: [1]}"),
        f"{WEIGHT}: expected an integer of 1 or more, found a list",
    ),
    "a weight above the limit": (
        limit("{name: a, limit: 9, window: 1m, weight: 10}"),
        f"{WEIGHT}: expected at most the limit (9), as no call would pass, found 10",
    ),
    "a weight above the burst": (
        limit("{name: a, limit: 60, window: 1m, weight: 10, algorithm: token_bucket, burst: 9}"),
        f"{WEIGHT.replace('49', '50')}: expected at most the burst (9), as no call would pass, found 10",
    ),
    "a weight of calls at once": (
        limit("{name: a, limit: 9, weight: 2, algorithm: concurrency}"),
        f"{WEIGHT.replace('49', '37')}: {ONE_SLOT}",
    ),
    "a weight that a call tells, of calls at once": (
        limit("{name: a, limit: 9, weight: {header: X-Units, max: 2}, algorithm: concurrency}"),
        f"{WEIGHT.replace('49', '37')}: {ONE_SLOT}",
    ),
    "a weight of no field": (
        limit("{name: a, limit: 1, window: 1m, weight: {default: 1, max: 2}}"),
        f'{WEIGHT}: missing key "header"',
    ),
    "a weight without bound": (
        limit("{name: a, limit: 1, window: 1m, weight: {header: X-Units}}"),
        f'{WEIGHT}: missing key "max"',
    ),
    "a weight of a field that cannot be": (
        limit("{name: a, limit: 1, window: 1m, weight: {header: X Units, max: 2}}"),
        f'{WEIGHT.replace("49", "58")}.header: expected a header name, found "X Units"',
    ),
    "a weight by the framing": (
        limit("{name: a, limit: 1, window: 1m, weight: {header: Content-Length, max: 2}}"),
        f'{WEIGHT.replace("49", "58")}.header: {CALLERS_OWN}, found "Content-Length"',
    ),
    "a weight by nearly the right name": (
        limit("{name: a, limit: 1, window: 1m, weight: {heder: X-Units, max: 2}}"),
        f'{WEIGHT.replace("49", "50")}.heder: unknown key "heder", did you mean "header"?',
    ),
    "a usual weight above the most": (
        limit("{name: a, limit: 9, window: 1m, weight: {header: X-Units, default: 3, max: 2}}"),
        f"{WEIGHT.replace('49', '76')}.default: expected at most max (2), found 3",
    ),
    "a usual weight above the limit": (
        limit("{name: a, limit: 9, window: 1m, weight: {header: X-Units, default: 10, max: 20}}"),
        f"{WEIGHT.replace('49', '76')}.default: expected at most the limit (9), as no call would pass, found 10",
    ),
    # policies
    "on_store_failure": (
        policy("on_store_failure: alow"),
        "policies/cast.yaml:4:23: policies[0].on_store_failure: "
        'expected one of allow, deny, found "alow", did you mean "allow"?',
    ),
    "on_client_abort": (
        policy("on_client_abort: stop"),
        'policies/cast.yaml:4:22: policies[0].on_client_abort: expected one of finish, charge, void, found "stop"',
    ),
    "headers of no kind": (
        policy("rate_limit_headers: draft"),
        "policies/cast.yaml:4:25: policies[0].rate_limit_headers: "
        'expected one of none, ietf, x_ratelimit, found "draft"',
    ),
    "a policy that is a list": (
        {"policies/cast.yaml": "policies:\n  - [name, cast]\n"},
        "policies/cast.yaml:2:5: policies[0]: expected a mapping, found a list",
    ),
    "a name too long": (
        {"policies/cast.yaml": CAST.replace("name: cast", f"name: {'c' * 65}")},
        "policies/cast.yaml:2:11: policies[0].name: expected a name of at most 64 letters, digits, dots, dashes or "
        f'underscores, found "{"c" * 60}…"',
    ),
    # plans
    "a percent of too much": (
        plan("{soft_limit_percents: [50, 101]}"),
        "policies/plans.yaml:3:30: plans.pro.soft_limit_percents: expected an integer of at most 100, found 101",
    ),
    "a percent twice": (
        plan("{soft_limit_percents: [50, 50]}"),
        "policies/plans.yaml:3:30: plans.pro.soft_limit_percents: "
        "expected a list of at most 10 different percents such as [50, 80, 100], found a list",
    ),
    "a hard limit by nearly the right name": (
        plan("{hard_limit_cent: {monthly: 5}}"),
        "policies/plans.yaml:3:9: plans.pro.hard_limit_cent: "
        'unknown key "hard_limit_cent", did you mean "hard_limit_cents"?',
    ),
    "a limit of a plan that is no mapping": (
        plan("{rate_limits: {per-account: 600}}"),
        "policies/plans.yaml:3:36: plans.pro.rate_limits.per-account: expected a mapping, found 600",
    ),
    "a plan's limit without a number": (
        plan("{rate_limits: {per-account: {}}}"),
        'policies/plans.yaml:3:36: plans.pro.rate_limits.per-account: missing key "limit"',
    ),
    "a plan's limit below what a call weighs": (
        {
            **limit("{name: per-account, limit: 9, window: 1m, weight: 5}"),
            **plan("{rate_limits: {per-account: {limit: 4}}}"),
        },
        "policies/plans.yaml:3:44: plans.pro.rate_limits.per-account.limit: "
        'expected at least 5, what a call of policy "cast" weighs, found 4',
    ),
    "a week that begins nowhere": (
        plan("{week_start: sunnday}"),
        "policies/plans.yaml:3:21: plans.pro.week_start: expected one of monday, tuesday, wednesday, thursday, "
        'friday, saturday, sunday, found "sunnday", did you mean "sunday"?',
    ),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_defect_is_told_with_its_place_its_key_and_what_was_expected(defect: str, refusal: Refusal) -> None:
    files, line = DEFECTS[defect]
    assert refusal(files) == [line]


def test_there_are_sixty_bad_policy_files_and_more() -> None:
    others = [files for files, _ in OTHER_DEFECTS.values() if all(name.startswith("policies/") for name in files)]
    assert len(others) + len(DEFECTS) >= 60


def test_defects_of_one_file_are_told_all_at_once(refusal: Refusal) -> None:
    files = {
        "policies/cast.yaml": CAST.replace(FIXED, "{heder: {}, charge_when: never}").replace("limit:", "limits:"),
        "policies/plans.yaml": PLANS.replace("monthly", "montly"),
    }
    assert [line.partition(" ")[0] for line in refusal(files)] == [
        "policies/cast.yaml:4:12:",
        "policies/cast.yaml:4:36:",
        "policies/cast.yaml:6:29:",
        "policies/plans.yaml:2:29:",
    ]
