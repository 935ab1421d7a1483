"""Samples of a worker's stacks as a table of stages: where the microseconds of a call go."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from bench.report import Table

# In this order: the first that is in a stack's innermost frames of the program, or in the library beside it, wins.
# (what a path ends in, function or blank for all of them, stage)
_STAGES: Sequence[tuple[str, str, str]] = (
    ("gateway/relay/client.py", "ClientConnection.write", "write the answer to the client (send)"),
    ("gateway/relay/upstream.py", "UpstreamConnection.start", "write the request to the service (send)"),
    ("gateway/relay/upstream.py", "UpstreamConnection.write", "write the request to the service (send)"),
    ("gateway/redis_store.py", "RedisLink.send", "write to Redis (send)"),
    ("gateway/redis_store.py", "", "read Redis' answers"),
    ("gateway/relay/client.py", "", "read and recognise the request"),
    ("gateway/relay/request.py", "", "read and recognise the request"),
    ("gateway/relay/request_reader.py", "", "read and recognise the request"),
    ("gateway/relay/heads.py", "", "read and recognise the request"),
    ("gateway/relay/alike.py", "", "read and recognise the request"),
    ("gateway/relay/upstream.py", "", "read and recognise the answer"),
    ("gateway/relay/known.py", "", "read and recognise the answer"),
    ("gateway/relay/capture.py", "", "read and recognise the answer"),
    ("gateway/relay/pool.py", "", "connections to the service"),
    ("gateway/relay/balancer.py", "", "connections to the service"),
    ("gateway/identify.py", "", "identify"),
    ("gateway/credentials.py", "", "identify"),
    ("gateway/accounts.py", "", "identify"),
    ("gateway/usage_events.py", "", "ledger"),
    ("gateway/ledger.py", "", "ledger"),
    ("gateway/database.py", "", "ledger"),
    ("/asyncpg/", "", "ledger"),
    ("gateway/admission", "", "admission: ask, batch, verdicts, settlement"),
    ("gateway/metrics", "", "metrics"),
    ("gateway/relay/counters.py", "", "metrics"),
    ("gateway/observer.py", "", "metrics"),
    ("gateway/relay/", "", "the exchange: match, forward, meter, settle"),
    ("gateway/policy/", "", "the exchange: match, forward, meter, settle"),
)
OTHER = "the event loop and all else"


def stage_of(path: str, function: str) -> str:
    """The stage of one frame; OTHER where it is none of the program's."""
    for ending, name, stage in _STAGES:
        if ending in path and name in ("", function):
            return stage
    return OTHER


def stage_counts(folded: str) -> Counter[str]:
    """Samples by stage: the innermost frame that belongs to one."""
    counts: Counter[str] = Counter()
    for entry in folded.splitlines():
        stack, _, count = entry.rpartition(" ")
        found = OTHER
        for frame in reversed(stack.split(";")):
            path, function, _ = frame.split("\t")
            found = stage_of(Path(path).as_posix(), function)
            if found != OTHER:
                break
        counts[found] += int(count)
    return counts


def stage_table(folded: str, user_us: float, system_us: float) -> Table:
    """Stages with their share and µs of a call, the dearest first; and how much of all of it the kernel takes."""
    counts = stage_counts(folded)
    total = sum(counts.values())
    whole_us = user_us + system_us
    table: Table = [("stage", "share", "µs a call")]
    for stage, count in counts.most_common():
        table.append((stage, f"{count / total:.0%}", f"{count / total * whole_us:.1f}"))
    table.append(("all", "", f"{whole_us:.1f}"))
    table.append(("of that in the kernel (sockets, polling)", f"{system_us / whole_us:.0%}", f"{system_us:.1f}"))
    return table
