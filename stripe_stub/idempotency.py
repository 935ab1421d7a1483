"""Idempotency keys with Stripe's semantics. https://docs.stripe.com/api/idempotent_requests

The first answer to a key is kept for a day and given again, server errors and declined cards among them; refusals of
the parameters are not kept, for nothing was done. The same key with other parameters is a 400, a key whose first
request is still under way a 409.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from stripe_stub.errors import ApiError, invalid

KEPT_S = 24 * 3600.0
KEYS_MAX = 10_000  # the oldest go
KEY_CHARS_MAX = 255


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    status: int
    body: str
    request_id: str


@dataclass(kw_only=True, slots=True)
class _Entry:
    asked: str  # method, path and parameters of the first request
    since_s: float
    answer: Answer | None = None  # None: still under way


class IdempotencyKeys:
    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def earlier_answer(self, key: str, asked: str) -> Answer | None:
        """What was answered to `key` before. Raises what Stripe answers to a key used wrongly."""
        if len(key) > KEY_CHARS_MAX:
            raise invalid(f"Idempotency-Key is longer than {KEY_CHARS_MAX} characters.")
        entry = self._entries.get(key)
        if entry is None or entry.since_s < time.time() - KEPT_S:
            return None
        if entry.asked != asked:
            endpoint, _, _ = entry.asked.partition("?")
            if endpoint != asked.partition("?")[0]:
                message = f"Keys for idempotent requests can only be used for the same endpoint ('{endpoint}')"
            else:
                message = "Keys for idempotent requests can only be used with the same parameters"
            raise ApiError(
                400,
                "idempotency_error",
                f"{message} they were first used with. Try using a key other than '{key}' if you meant to execute "
                "a different request.",
            )
        if entry.answer is None:
            raise ApiError(
                409,
                "idempotency_error",
                "There is currently another in-progress request using this Idempotent Key (that probably means you "
                "submitted twice, and the other request is still going through): "
                f"{key}. Please try again later.",
                code="idempotency_key_in_use",
            )
        return entry.answer

    @contextmanager
    def under_way(self, key: str, asked: str) -> Iterator[list[Answer]]:
        """The key is taken inside. An answer appended to what this gives is kept; else the key is free again."""
        entry = _Entry(asked=asked, since_s=time.time())
        self._entries.pop(key, None)
        self._entries[key] = entry
        if len(self._entries) > KEYS_MAX:
            del self._entries[next(iter(self._entries))]
        answers: list[Answer] = []
        try:
            yield answers
        finally:
            if answers:
                entry.answer = answers[-1]
            elif self._entries.get(key) is entry:
                del self._entries[key]

    def clear(self) -> None:
        self._entries.clear()

    def dump(self) -> list[dict[str, Any]]:
        return [{"key": key, **asdict(entry)} for key, entry in self._entries.items() if entry.answer is not None]

    def load(self, rows: list[dict[str, Any]]) -> None:
        for row in rows:
            answer = Answer(**row["answer"])
            self._entries[row["key"]] = _Entry(asked=row["asked"], since_s=row["since_s"], answer=answer)
