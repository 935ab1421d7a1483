"""What Redis has of an account, as ``lua/accounts.lua`` packs it: for those who read it without a script."""

import struct
from dataclasses import dataclass, field

_HEAD = struct.Struct("<dddH")
_WINDOW = struct.Struct("<ddB")  # behind the kind, which ends with a NUL


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountRecord:
    """``version`` of the facts, None where nobody has told; by kind of window its start in ms, and microcents used."""

    version: int | None = None
    held_microcents: int = 0
    windows: dict[str, tuple[int, int]] = field(default_factory=dict)
    rolled: frozenset[str] = frozenset()  # kinds of windows that began while Postgres was away


def account_record(packed: bytes | None) -> AccountRecord:
    """The record; of an account that Redis does not know, one that says nothing."""
    if packed is None:
        return AccountRecord()
    version, held, _, count = _HEAD.unpack_from(packed)
    place = _HEAD.size
    windows, rolled = {}, set()
    for _ in range(count):
        kind, _, rest = packed[place:].partition(b"\0")
        start_ms, used, is_rolled = _WINDOW.unpack_from(rest)
        place += len(kind) + 1 + _WINDOW.size
        windows[kind.decode()] = int(start_ms), int(used)
        if is_rolled:
            rolled.add(kind.decode())
    return AccountRecord(
        version=None if version < 0 else int(version),
        held_microcents=int(held),
        windows=windows,
        rolled=frozenset(rolled),
    )
