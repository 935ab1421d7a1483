"""What the samples of a profile are made into."""

from bench.profile_hot_path import folded_stacks, hottest
from bench.targets import REPOSITORY

RELAY = str(REPOSITORY / "gateway/relay/relay.py")
LIBRARY = str(REPOSITORY / ".venv/lib/python3.11/site-packages/redis/client.py")
SAMPLES = (
    f"{RELAY}\tRelay.begin\t10;{RELAY}\tRelay.admit\t20 6\n"
    f"{RELAY}\tRelay.begin\t10;{RELAY}\tRelay.admit\t21 2\n"
    f"{RELAY}\tRelay.begin\t11;{LIBRARY}\tRedis.call\t5 2\n"
)


def test_functions_and_lines_are_listed_by_their_own_share() -> None:
    functions, lines = hottest(SAMPLES, 10).split("\n\n")[1:]
    assert [line.split() for line in functions.splitlines()[1:]] == [
        ["80.0%", "80.0%", "Relay.admit", "(gateway/relay/relay.py)"],
        ["20.0%", "20.0%", "Redis.call", "(redis/client.py)"],
    ]
    assert [line.split()[:2] for line in lines.splitlines()[1:]] == [
        ["60.0%", "gateway/relay/relay.py:20"],
        ["20.0%", "gateway/relay/relay.py:21"],
        ["20.0%", "redis/client.py:5"],
    ]


def test_a_worker_that_did_nothing_is_said_to_have_done_nothing() -> None:
    assert hottest("", 10).startswith("no samples")


def test_folded_stacks_merge_what_differs_by_line_only() -> None:
    assert folded_stacks(SAMPLES).splitlines() == [
        "gateway/relay/relay.py:Relay.begin;gateway/relay/relay.py:Relay.admit 8",
        "gateway/relay/relay.py:Relay.begin;redis/client.py:Redis.call 2",
    ]
