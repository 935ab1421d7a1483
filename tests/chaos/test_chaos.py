"""The short form of ``./dev chaos``: the same program, a few faults. And the checker, which must find what is wrong."""

import uuid
from pathlib import Path

import pytest

from tests.chaos import checker, report
from tests.chaos.checker import Cast, Cut, Findings
from tests.chaos.load import CUT, Account, Budget, Call
from tests.chaos.run import SINGLE, Outcome, Plan, Run
from tests.chaos.world import Patience, World

SEED = 20261128
MS = 1_795_856_000_000
S = MS / 1000
Row = dict[str, object]


@pytest.mark.timeout(240)
async def test_no_single_fault_makes_a_call_too_many_or_loses_one(tmp_path: Path) -> None:
    # A part of each: Redis empty and old, Postgres killed and away with a full disk, a worker killed.
    plan = Plan(
        seed=SEED,
        injections=7,
        per_episode=7,
        only=(
            *("redis killed, back empty", "redis killed, back old", "redis hangs"),
            *("postgres killed", "postgres hangs", "postgres away", "worker killed"),
        ),
    )
    said: list[str] = []
    world = World(tmp_path / "world", gateways=2, workers=1, clients=12, seed=SEED, patience=Patience())
    async with world:
        outcome = await Run(world, plan, said.append).run()
    assert len(outcome.injections) == 7 - len(outcome.skipped)
    assert outcome.findings[SINGLE].casts > 100
    assert not outcome.faults, "\n".join((f"seed {SEED}", *said, *report.lines(outcome, plan)))


# --- the checker


def account(*budgets: Budget) -> Account:
    return Account(account_id=str(uuid.uuid4()), api_key="ck_", budgets=budgets or (Budget(period="total", limit=2),))


def called(account: Account, result: int | str = 200, *, at_s: float = S, fault: str = "") -> Call:
    call = Call(call_id=f"{len(account.calls)}", account=account, gateway=0, fault=fault, sent_s=at_s)
    call.result, call.ended_s = result, at_s + 0.01
    account.calls.append(call)
    return call


def made(*calls: Call) -> dict[str, list[Cast]]:
    return {
        call.call_id: [Cast(ms=MS, cast_id=f"cast {call.call_id}", hold_id=f"hold {call.call_id}")] for call in calls
    }


def event(of: str, **fields: object) -> Row:
    return {"id": f"hold {of}", "cast_id": f"cast {of}", "outcome": "posted", "status": 200, "ms": MS, **fields}


def found(account: Account, casts: dict[str, list[Cast]], rows: list[Row], *cuts: Cut) -> dict[str, int]:
    findings = Findings()
    checker.check_ledger(findings, account, casts, rows)  # type: ignore[arg-type]
    checker.check_answers(findings, account, casts, rows, cuts)  # type: ignore[arg-type]
    return dict(findings.counts)


def test_what_is_as_it_should_be_is_no_finding() -> None:
    one = account()
    calls = [called(one), called(one), called(one, 402, at_s=S + 1)]
    assert found(one, made(*calls[:2]), [event("0"), event("1")]) == {}


def test_a_cast_too_many_is_found_by_the_casts_and_by_what_is_charged() -> None:
    one = account()
    calls = [called(one) for _ in range(3)]
    assert found(one, made(*calls), [event("0"), event("1"), event("2")]) == {"over": 2}


def test_each_window_has_its_own_casts() -> None:
    one = account(Budget(period="daily", limit=2, time_zone="Asia/Kathmandu"))
    calls = [called(one) for _ in range(3)]
    midnight = 1_795_889_700_000  # in Kathmandu
    rows = [event("0", ms=midnight - 1), event("1", ms=midnight - 1), event("2", ms=midnight)]
    assert found(one, made(*calls), rows) == {}
    rows[2]["ms"] = midnight - 1
    assert found(one, made(*calls), rows) == {"over": 2}


def test_a_cast_without_an_event_is_missing() -> None:
    one = account()
    assert found(one, made(called(one), called(one)), [event("0")]) == {"missing": 1}


def test_a_cast_with_two_events_or_an_event_without_a_call_is_double() -> None:
    one = account(Budget(period="total", limit=9))
    casts = made(called(one), called(one))
    assert found(one, casts, [event("0"), event("1"), event("1", id="another")])["double"] > 0
    assert found(one, casts, [event("0"), event("1"), event("9")])["double"] > 0


def test_a_hold_that_was_charged_without_a_cast_needs_a_call_whose_end_nobody_knows() -> None:
    one = account(Budget(period="total", limit=9))
    expired = event("9", cast_id=None, outcome="expired", status=0)
    assert "double" in found(one, made(called(one)), [event("0"), expired])
    called(one, CUT)
    assert found(one, made(one.calls[0]), [event("0"), expired], Cut(from_s=S - 1, until_s=S + 1, is_idle=False)) == {}


def test_a_402_is_wrong_where_no_more_calls_than_the_limit_may_count() -> None:
    one = account()
    casts = made(called(one), called(one, 503, fault="status=503"))
    called(one, 402, at_s=S + 60)
    assert found(one, casts, [event("0"), event("1")]) == {"wrong": 1}
    one.calls[-1].sent_s = S + 1  # then the one that was not charged may still count
    assert found(one, casts, [event("0"), event("1")]) == {}


def test_an_error_that_nobody_asked_for_and_a_connection_lost_for_no_reason_are_wrong() -> None:
    one = account()
    called(one, 503)
    called(one, 502, fault="status=503")
    called(one, CUT)
    assert found(one, {}, []) == {"wrong": 3}
    assert found(one, {}, [], Cut(from_s=S, until_s=S + 1, is_idle=True)) == {"wrong": 2}


def test_a_run_fails_by_what_its_theme_is_strict_about() -> None:
    outcome = Outcome()
    outcome.findings["redis, postgres"] = Findings()
    outcome.findings["redis, postgres"].find("over", "by 5")
    assert outcome.faults == []
    outcome.findings["redis, postgres"].find("missing", "a cast")
    assert outcome.faults == ["redis, postgres: missing 1"]
