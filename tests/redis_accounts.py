"""Accounts as Redis has them, for tests that look at them, or change what they say."""

import struct
from typing import Any

import redis
from redis.client import NEVER_DECODE

from gateway.account_record import AccountRecord, account_record

_SPOIL = """
local at = ({v = 0, h = 8, x = 16})[ARGV[1]]
if not at then
  local kind = string.sub(ARGV[1], 3)
  at = string.find(redis.call('GET', KEYS[1]), kind .. '\\0', 1, true) + #kind + 8
end
redis.call('SETRANGE', KEYS[1], at, struct.pack('<d', tonumber(ARGV[2])))
"""


def account_at(client: "redis.Redis[Any]", key: str) -> AccountRecord | None:
    """What stands under the key; None where nothing does."""
    packed = client.execute_command("GET", key, **{NEVER_DECODE: []})
    return None if packed is None else account_record(packed)


def fields_at(client: "redis.Redis[Any]", key: str) -> dict[str, str]:
    """``v`` version, ``h`` held, of each window ``s:<kind>`` start and ``u:<kind>`` used; ``r`` what rolled over.

    Blank where nothing is there.
    """
    record = account_at(client, key)
    if record is None:
        return {}
    fields = {"h": str(record.held_microcents)}
    if record.version is not None:
        fields["v"] = str(record.version)
    for kind, (start_ms, used) in record.windows.items():
        fields[f"s:{kind}"], fields[f"u:{kind}"] = str(start_ms), str(used)
    if record.rolled:
        fields["r"] = " ".join(sorted(record.rolled))
    return fields


def held_at(client: "redis.Redis[Any]", key: str) -> int:
    """Microcents that the account holds; 0 where it is not there."""
    record = account_at(client, key)
    return 0 if record is None else record.held_microcents


def spoil(client: "redis.Redis[Any]", key: str, field: str, value: int) -> None:
    """The account says something else from now on: a field of ``fields_at``, or ``x``, when it expires."""
    client.eval(_SPOIL, 1, key, field, value)


def holds_in(client: "redis.Redis[Any]", book: str) -> set[str]:
    """The ids of the holds in a worker's book, those of groups among them (``lua/groups.lua``)."""
    found: set[str] = set()
    fields = client.execute_command("HGETALL", book, **{NEVER_DECODE: []})
    for name, packed in fields.items() if isinstance(fields, dict) else zip(fields[::2], fields[1::2], strict=True):
        text = name if isinstance(name, str) else name.decode()
        if text in ("epoch", "seq"):
            continue
        found.update(_members(packed) if packed[0] == 2 else (text,))
    return found


def _members(packed: bytes) -> list[str]:
    at = 17
    for _ in ("account", "policy"):
        at += 4 + int.from_bytes(packed[at : at + 4], "little")
    (mask,) = struct.unpack_from("<I", packed, at)
    ids = packed[at + 4 :].decode().split(",")
    return [one for place, one in enumerate(ids) if mask >> place & 1]
