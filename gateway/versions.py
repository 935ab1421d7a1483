"""Which versions of the rules a gateway has had, and which it refused: the last of them, with what they changed."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from gateway.policy.effective import Change, changes, effective
from gateway.policy.rules import Rules

# As many as somebody reads who asks what happened today.
HISTORY_MAX = 20

ACCEPTED = "accepted"
REJECTED = "rejected"  # something is wrong with the files
FAILED = "failed"  # a worker could not take them


@dataclass(frozen=True, slots=True, kw_only=True)
class Loading:
    """One attempt to load the rules. ``by`` says what set it off: start, SIGHUP, files changed."""

    at: datetime
    by: str
    result: str
    version: str  # what was loaded; where it was not, what stayed
    changes: Sequence[Change] = ()
    problems: Sequence[str] = ()

    def data(self) -> dict[str, Any]:
        """Texts, lists, mappings, and Cents."""
        data: dict[str, Any] = {
            "at": self.at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "by": self.by,
            "result": self.result,
            "version": self.version,
        }
        if self.result == ACCEPTED:
            data["changes"] = [{"key": one.key, "before": one.before, "after": one.after} for one in self.changes]
        else:
            data["problems"] = list(self.problems)
        return data


@dataclass(slots=True)
class Versions:
    """The rules as they are, and how they came to be. ``history`` has the newest first."""

    rules: Rules
    history: deque[Loading] = field(default_factory=lambda: deque(maxlen=HISTORY_MAX))
    loaded: Loading = field(init=False)

    def __post_init__(self) -> None:
        self.loaded = Loading(at=_now(), by="start", result=ACCEPTED, version=self.rules.version)
        self.history.appendleft(self.loaded)

    def accepted(self, rules: Rules, by: str) -> Sequence[Change]:
        """All workers have ``rules`` now; returns what is different in them."""
        changed = changes(effective(self.rules), effective(rules))
        self.rules = rules
        self.loaded = Loading(at=_now(), by=by, result=ACCEPTED, version=rules.version, changes=changed)
        self.history.appendleft(self.loaded)
        return changed

    def refused(self, by: str, result: str, problems: Sequence[str]) -> None:
        """What was tried stays out (REJECTED or FAILED), and the last good rules in."""
        self.history.appendleft(Loading(at=_now(), by=by, result=result, version=self.rules.version, problems=problems))


def _now() -> datetime:
    return datetime.now(UTC)
