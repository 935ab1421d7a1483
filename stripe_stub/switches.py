"""How webhooks are delivered, and to whom: the switches a test turns."""

from dataclasses import asdict, dataclass, field, fields, replace
from fnmatch import fnmatchcase
from typing import Any
from urllib.parse import urlsplit

from stripe_stub.errors import ApiError, invalid
from stripe_stub.versions import NEWEST, checked_version

ORDERS = ("in_order", "reverse", "shuffle")


@dataclass(frozen=True, kw_only=True, slots=True)
class Switches:
    running: bool = True  # false: events wait until it is true again
    order: str = "in_order"  # of those that wait: in_order | reverse | shuffle
    duplicates: int = 0  # so many more deliveries of every event
    concurrency: int = 1  # deliveries under way at once, for each endpoint
    delay_s: float = 0.0  # before the first attempt
    jitter_s: float = 0.0  # and at random up to so much more, which reorders events that come one after another
    lose: tuple[str, ...] = ()  # types that are never delivered, `*` for all; they are in the list of events only
    retry_first_s: float = 1.0  # from the first attempt to the second; then each time `retry_factor` as long
    retry_factor: float = 2.0
    retry_max_s: float = 3600.0
    attempts_max: int = 16  # with the defaults about two hours and a half; Stripe: three days
    timeout_s: float = 10.0  # for the endpoint's answer
    clock_offset_s: int = 0  # added to the time that is signed
    seed: int = 0  # of shuffle and jitter

    def changed(self, values: Any) -> "Switches":
        """With some of them set anew. Raises a 400 for what is not a switch or out of bounds."""
        names = {known.name: known for known in fields(self)}
        if not isinstance(values, dict) or not values.keys() <= names.keys():
            raise invalid(f"Switches are {', '.join(names)}.")
        for name, value in values.items():
            now = getattr(self, name)
            if isinstance(now, tuple):
                fits = isinstance(value, list) and all(isinstance(text, str) for text in value)
            elif isinstance(now, bool):
                fits = isinstance(value, bool)
            elif isinstance(now, str):
                fits = value in ORDERS
            elif isinstance(now, float):
                fits = isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0
            else:
                fits = isinstance(value, int) and not isinstance(value, bool)
            if not fits:
                raise invalid(f"{name} cannot be {value!r}.")
        lose = {"lose": tuple(values["lose"])} if "lose" in values else {}
        switches = replace(self, **{**values, **lose})
        if not (0 <= switches.duplicates <= 100 and 1 <= switches.concurrency <= 256 and switches.attempts_max >= 1):
            raise invalid("duplicates is 0 to 100, concurrency 1 to 256, attempts_max 1 or more.")
        return switches

    def loses(self, kind: str) -> bool:
        return any(fnmatchcase(kind, pattern) for pattern in self.lose)

    def retry_after_s(self, attempts: int) -> float:
        return min(self.retry_first_s * self.retry_factor ** (attempts - 1), self.retry_max_s)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class Endpoint:
    """One address that events are sent to. Its id is its place in the list, so that it outlives a changed address."""

    id: str
    url: str
    secrets: tuple[str, ...]  # several while one takes over from another: each makes a signature
    api_version: str = NEWEST
    enabled_events: tuple[str, ...] = field(default=("*",))

    @classmethod
    def parse_all(cls, rows: Any) -> "list[Endpoint]":
        """Raises a 400 for what is not ``[{"url", "secrets", "api_version"?, "enabled_events"?}]``."""
        if not isinstance(rows, list):
            raise invalid("Endpoints are a list.")
        return [cls._parse(row, f"we_{number}") for number, row in enumerate(rows, 1)]

    @classmethod
    def _parse(cls, row: Any, identifier: str) -> "Endpoint":
        if not isinstance(row, dict) or not row.keys() <= {"id", "url", "secrets", "api_version", "enabled_events"}:
            raise _not_an_endpoint(row)
        url, secrets = row.get("url"), row.get("secrets")
        events, version = row.get("enabled_events", ["*"]), row.get("api_version", NEWEST)
        if not isinstance(url, str) or urlsplit(url).scheme not in {"http", "https"} or not isinstance(version, str):
            raise _not_an_endpoint(row)
        for texts in (secrets, events):
            if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text for text in texts):
                raise _not_an_endpoint(row)
        return cls(
            id=identifier,
            url=url,
            secrets=tuple(secrets or ()),
            api_version=checked_version(version),
            enabled_events=tuple(events),
        )

    def wants(self, kind: str) -> bool:
        return any(fnmatchcase(kind, pattern) for pattern in self.enabled_events)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def _not_an_endpoint(row: Any) -> ApiError:
    return invalid(f"Not an endpoint: {row}; it is {{url, secrets, api_version?, enabled_events?}}.")
