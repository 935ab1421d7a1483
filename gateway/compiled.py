"""The hot path as machine code: the same sources, compiled by mypyc where ``./dev compile`` or an image's build did so.

What was compiled lies beside the installed packages, with a digest of the sources of its time. A worker takes it if
these are the sources that it has, and interprets them otherwise: after an edit, under another Python, or where nothing
was compiled, nothing differs but the speed (docs/decisions/0067). Nobody but a worker takes it.
"""

import os
import platform
import sys
import sysconfig
import warnings
from collections.abc import Mapping, Sequence
from hashlib import sha256
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType

# One group: calls between these are calls of C functions. None may be imported before ``use``.
MODULES = (
    *("admission", "admission_batch", "admission_holds", "admission_lane", "admission_settle", "admission_verdicts"),
    *("credentials", "identify"),
    *("ledger", "metrics", "observer", "redis_store", "soft_limits", "usage_columns", "usage_events"),
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
# In the environment. 0: sources are interpreted; another value: the folder of what was compiled, for the usual one.
SWITCH = "CASTGATE_COMPILED"
DIGEST = "digest"
THROW_WARNING = r"the \(type, exc, tb\) signature of throw"

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
    # The suffix tells Pythons of one version apart that cannot load each other's modules: debug, free-threaded, musl.
    found = sha256(f"{EXTENSION_SUFFIXES[0]} {sys.platform} {platform.machine()}\n".encode())
    for path in sorted(_SOURCES.rglob("*.py")):
        text = path.read_bytes()
        found.update(f"{path.relative_to(_SOURCES)} {len(text)}\n".encode() + text)
    return found.hexdigest()


def digest_of_files(made: Path) -> str:
    """Of what was compiled into ``made``: a file that a full disk or a power cut left half would be loaded, and crash.

    Raises OSError where one is missing.
    """
    found = sha256()
    for name in (LIBRARY, *names()):
        text = (made / f"{name}.so").read_bytes()
        found.update(f"{name} {len(text)}\n".encode() + text)
    return found.hexdigest()


def made_of(made: Path, sources: str) -> str:
    """What ``DIGEST`` says in a folder that was compiled of ``sources``. Raises OSError."""
    return f"{sources}\n{digest_of_files(made)}\n"


def why_interpreted() -> str:
    """Why a worker interprets its sources; blank where it runs what was compiled."""
    if os.environ.get(SWITCH) == "0":
        return f"{SWITCH} is 0"
    try:
        said = (folder() / DIGEST).read_bytes()
    except OSError:
        return (
            f"{SWITCH} is {os.environ[SWITCH]!r}, where nothing is compiled"
            if os.environ.get(SWITCH)
            else "not compiled"
        )
    sources = digest()
    if said.partition(b"\n")[0] != sources.encode():
        return "compiled from other sources"
    missing = [name for name in (LIBRARY, *names()) if not (folder() / f"{name}.so").exists()]
    if missing:
        return f"of what was compiled, {missing[0]} is missing"
    try:
        return "" if said == made_of(folder(), sources).encode() else "what was compiled is damaged"
    except OSError as error:
        return f"what was compiled cannot be read: {error}"


def use() -> str:
    """Have what was compiled imported in place of its sources; where one of these was already, all are interpreted.

    Gives ``why_interpreted``, or that, or why it cannot be loaded: it may be of a newer C library than the one here.
    """
    reason = why_interpreted()
    if not reason:
        if not sys.modules.keys().isdisjoint(names()):
            return "sources were imported already"
        finder = _Finder({name: folder() / f"{name}.so" for name in (LIBRARY, *names())})
        sys.meta_path.insert(0, finder)
        try:
            import_module(LIBRARY)  # has all the code, and imports nothing itself
        except ImportError as error:
            sys.meta_path.remove(finder)
            return f"what was compiled cannot be loaded: {error}"
        # Since 3.12 Python warns of the way that compiled coroutines hand on an exception. Where warnings are errors,
        # the warning would come back in the exception's place, and nobody catches that.
        warnings.filterwarnings("ignore", THROW_WARNING, DeprecationWarning)
    return reason


class _Finder(MetaPathFinder):
    def __init__(self, files: Mapping[str, Path]) -> None:
        self._files = files

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        file = self._files.get(fullname)
        return None if file is None else spec_from_file_location(fullname, file)
