"""The hot path as machine code: the same sources, compiled by mypyc where ``./dev compile`` or an image's build did so.

What was compiled lies beside the installed packages, with a digest of the sources of its time. A worker takes it if
these are the sources that it has, and interprets them otherwise: after an edit, under another Python, or where nothing
was compiled, nothing differs but the speed (docs/decisions/0067). Nobody but a worker takes it.
"""

import os
import platform
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from hashlib import sha256
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType

# One group: calls between these are calls of C functions. None may be imported before ``use``.
MODULES = (
    *("admission", "admission_batch", "admission_holds", "admission_lane", "admission_settle", "admission_verdicts"),
    *("credentials", "identify"),
    *("ledger", "metrics", "observer", "redis_store", "usage_columns", "usage_events"),
    "policy.verdicts",
    *("relay.added", "relay.alike", "relay.balancer", "relay.call", "relay.capture"),
    *("relay.client", "relay.conformance", "relay.counters", "relay.cut_short", "relay.endings"),
    *("relay.exchange", "relay.first_met", "relay.forwarding", "relay.heads", "relay.idempotency"),
    *("relay.known", "relay.meter", "relay.observed", "relay.pool", "relay.rate_keys"),
    *("relay.refusals", "relay.relay", "relay.request", "relay.request_reader", "relay.server_events"),
    *("relay.settle", "relay.shadow", "relay.traceparent", "relay.upstream"),
)
GROUP = "castgate"
LIBRARY = f"{GROUP}__mypyc"  # a module of its own, of which the others are doors
SWITCH = (
    "CASTGATE_COMPILED"  # in the environment; 0: sources are interpreted; else the folder, in place of the usual one
)
DIGEST = "digest"

_SOURCES = Path(__file__).resolve().parent


def folder() -> Path:
    """Where what was compiled for this Python is, or would be: a file for each module, named as it is imported."""
    told = os.environ.get(SWITCH)
    return Path(told) if told and told != "0" else Path(sysconfig.get_path("platlib")) / "castgate_compiled"


def names() -> list[str]:
    """What MODULES are imported as."""
    return [f"gateway.{name}" for name in MODULES]


def digest() -> str:
    """Of all sources, as what was compiled relies on the types of others, and of what it was compiled for."""
    found = sha256(f"{sys.implementation.cache_tag} {sys.platform} {platform.machine()}\n".encode())
    for path in sorted(_SOURCES.rglob("*.py")):
        text = path.read_bytes()
        found.update(f"{path.relative_to(_SOURCES)} {len(text)}\n".encode() + text)
    return found.hexdigest()


def why_interpreted() -> str:
    """Why a worker interprets its sources; blank where it runs what was compiled."""
    if os.environ.get(SWITCH) == "0":
        return f"{SWITCH} is 0"
    try:
        made_of = (folder() / DIGEST).read_bytes()
    except OSError:
        return "not compiled"
    if made_of != digest().encode():
        return "compiled from other sources"
    missing = [name for name in (LIBRARY, *names()) if not (folder() / f"{name}.so").exists()]
    return f"of what was compiled, {missing[0]} is missing" if missing else ""


def use() -> str:
    """Have what was compiled imported in place of its sources; where one of these was already, all are interpreted.

    Gives ``why_interpreted``, or that.
    """
    reason = why_interpreted()
    if not reason:
        if not sys.modules.keys().isdisjoint(names()):
            return "sources were imported already"
        sys.meta_path.insert(0, _Finder({name: folder() / f"{name}.so" for name in (LIBRARY, *names())}))
    return reason


class _Finder(MetaPathFinder):
    def __init__(self, files: Mapping[str, Path]) -> None:
        self._files = files

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        file = self._files.get(fullname)
        return None if file is None else spec_from_file_location(fullname, file)
