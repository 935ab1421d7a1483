"""An example for each bucket of the casts' latency: the id of a request that fell into it, for who asks in OpenMetrics.

They come from the sample of requests that is watched (``gateway.observer``). A worker keeps the newest of each bucket
and writes them, from aside, to one small file beside its metrics; a scrape takes the newest of all files.
"""

import contextlib
import json
import time
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

FAMILY = "spell_cast_duration_seconds"
_SUFFIX = ".exemplars"
# An example is for looking it up in logs and traces of now.
LIVE_FOR_S = 600.0
# OpenMetrics allows 128 characters for names and values of an exemplar's labels together.
REQUEST_ID_CHARACTERS_MAX = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Exemplar:
    """One request. ``at_s`` is Unix time."""

    request_id: str
    value: float
    at_s: float


class Exemplars:
    """Those of one process."""

    def __init__(self, folder: Path, process: str, bounds: tuple[float, ...]) -> None:
        self._file = folder / f"{process}{_SUFFIX}"
        self._bounds = bounds
        self._newest: dict[tuple[str, int], tuple[str, float, float]] = {}
        self._changed = False

    def note(self, policy: str, value: float, request_id: str) -> None:
        """A request that took ``value`` seconds."""
        if request_id and len(request_id) <= REQUEST_ID_CHARACTERS_MAX:
            self._newest[policy, bisect_left(self._bounds, value)] = (request_id, value, time.time())
            self._changed = True

    def write(self) -> None:
        """Lets scrapes see what was noted since; the folder may be gone, where the gateway ends."""
        if not self._changed:
            return
        self._changed = False
        new = self._file.with_name(f"{self._file.name}.new")
        with contextlib.suppress(OSError):
            new.write_text(json.dumps([[*key, *found] for key, found in self._newest.items()]))
            new.replace(self._file)


def read_exemplars(folder: Path) -> Mapping[str, Mapping[int, Exemplar]]:
    """By policy and bucket, the newest of all processes; none that is older than LIVE_FOR_S."""
    newest: dict[str, dict[int, Exemplar]] = {}
    oldest_s = time.time() - LIVE_FOR_S
    for path in folder.glob(f"*{_SUFFIX}"):
        with contextlib.suppress(OSError, ValueError):
            for policy, bucket, request_id, value, at_s in json.loads(path.read_text()):
                of_policy = newest.setdefault(policy, {})
                if at_s > max(oldest_s, of_policy[bucket].at_s if bucket in of_policy else 0.0):
                    of_policy[bucket] = Exemplar(request_id=request_id, value=value, at_s=at_s)
    return newest
