"""What a batch costs Redis, counted and not timed: the commands that the script gives, and the memory that it uses.

docs/decisions/0056-a-script-makes-only-what-a-call-needs.md has the reasons, bench/admission_cost.py the time.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest

from gateway.admission_batch import Ask, batch_text
from gateway.admission_settle import Seed, Settled
from gateway.redis_store import ADMIT
from tests.admission.reference import Call
from tests.admission.script import WORKERS, Script, asks_of
from tests.admission.test_script import NOW_MS, PER_MINUTE, TOTAL, call, total

# The script, but it tells how many bytes of Lua's it took.
_TELL = (
    b"local kib = collectgarbage('count') - kib_before collectgarbage('restart') do return math.floor(kib * 1024) end\n"
)
_MEASURED = (
    b"collectgarbage('stop') local kib_before = collectgarbage('count')\n"
    + ADMIT.source.removesuffix(b"return reply\n").replace(b"  return {now}\nend\n", _TELL + b"end\n")
    + _TELL
)


def commands_of(script: Script, run: Callable[[], object]) -> Counter[str]:
    """The commands that the script gives while ``run`` runs."""
    script.join()
    script.redis.config_resetstat()
    run()
    stats: dict[str, dict[str, int]] = script.redis.info("commandstats")  # type: ignore[assignment]
    counts = Counter({name.removeprefix("cmdstat_"): stat["calls"] for name, stat in stats.items()})
    for own in ("config|resetstat", "config", "info", "evalsha", "exists", "time"):
        del counts[own]
    return counts


def calls_of(accounts: int) -> list[Call]:
    return [
        replace(call(total(9), limits=[(PER_MINUTE, f"a{number}")]), account_id=f"a{number}")
        for number in range(accounts)
    ]


def seed(script: Script, accounts: int) -> None:
    settled = Settled()
    for number in range(accounts):
        settled.seed(Seed(account_id=f"a{number}", version=1, usage={TOTAL: (0, 0)}))
    script([], settled, now=NOW_MS)


def settled_of(calls: list[Call], used: int) -> Settled:
    settled = Settled()
    for one in calls:
        settled.use(one.account_id, TOTAL, 0, used)
    settled.remove("w1", [one.hold_id for one in calls], posted=True)
    return settled


@pytest.mark.parametrize("accounts", [1, 64])
def test_a_batch_reads_twice_and_writes_each_account_and_limit_once(script: Script, accounts: int) -> None:
    seed(script, accounts)
    first, second = calls_of(accounts), calls_of(accounts)
    written = {"set": 2 * accounts, "hset": 1}
    assert commands_of(script, lambda: script(first, now=NOW_MS)) == {"hmget": 1, "mget": 1, **written}
    assert commands_of(script, lambda: script(second, settled_of(first, 1), now=NOW_MS)) == {
        "hmget": 2, "mget": 1, **written, "hdel": 1,
    }  # fmt: skip
    assert commands_of(script, lambda: script([], settled_of(second, 2), now=NOW_MS)) == {
        "hmget": 2, "mget": 1, "set": accounts, "hdel": 1,
    }  # fmt: skip


def test_a_batch_of_nothing_reads_its_book(script: Script) -> None:
    assert commands_of(script, lambda: script([], now=NOW_MS)) == {"hmget": 1}


def bytes_of(script: Script, number: int, calls: list[Call], settled: Settled) -> int:
    text = batch_text(number, 1, "", 0, asks_of(calls), settled.text())
    return int(script.redis.eval(_MEASURED, 2, WORKERS, script.book, text, NOW_MS))


# With all functions made by every call, and state in hashes read one by one, it was 11,392, 23,683 and 535,736.
@pytest.mark.parametrize(("accounts", "bytes_max"), [(0, 900), (1, 11_000), (64, 150_000)])
def test_a_batch_makes_little_garbage(script: Script, accounts: int, bytes_max: int) -> None:
    seed(script, accounts)
    rounds = [calls_of(accounts) for _ in range(4)]
    used = [
        bytes_of(
            script, number, calls, settled_of(rounds[number - 2], number) if number > 1 and accounts else Settled()
        )
        for number, calls in enumerate(rounds, start=1)
    ]
    # The least of those that settle too: Lua's table of all strings grows now and then, in whichever round that falls.
    assert min(used[1:]) <= bytes_max


# As entries of their own they took 23,800.
def test_like_calls_make_as_little_garbage_as_a_few(script: Script) -> None:
    seed(script, 1)
    used = []
    before: list[Ask] = []
    for number in range(1, 5):
        asks = asks_of([replace(call(total(999)), account_id="a0") for _ in range(64)])
        settled = Settled()
        for ask in before:
            if ask.group is not None:
                settled.remove_grouped(ask.group.name, ask.place, posted=True)
            else:
                settled.remove("w1", [ask.hold_id], posted=True)
        text = batch_text(number, 1, "", 0, asks, settled.text())
        used.append(int(script.redis.eval(_MEASURED, 2, WORKERS, script.book, text, NOW_MS)))
        before = asks
    assert min(used[1:]) <= 15_500
