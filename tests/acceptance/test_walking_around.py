"""Over the wire: whatever spelling, framing or credentials a call has, the service casts only what is metered."""

import asyncio
import re
from urllib.parse import urlsplit

import pytest

from tests.acceptance.conftest import CAST_BODY, Fleet
from tests.policy.test_walking_around import variants

_STATUS = re.compile(rb"HTTP/1\.1 ([0-9]{3})")
# Every one of some thousands is matched in tests/policy; these go through the whole gateway.
_SPELLINGS = 150


async def _statuses(fleet: Fleet, requests: list[bytes]) -> list[int]:
    """The final status of each request, each on a connection of its own."""
    address = urlsplit(fleet.gateways[0].base_url)
    found = []
    for request in requests:
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        writer.write(request)
        data = await asyncio.wait_for(reader.read(-1), 10)
        writer.close()
        found.append(int(_STATUS.findall(data)[-1]))
    return found


def _cast(target: bytes, key: bytes, *fields: bytes, method: bytes = b"POST") -> bytes:
    lines = [method + b" " + target + b" HTTP/1.1", b"Host: h", b"Authorization: Bearer " + key, b"Connection: close"]
    lines += [b"Content-Type: application/json", b"Content-Length: %d" % len(CAST_BODY), *fields, b"", CAST_BODY]
    return b"\r\n".join(lines)


async def _casts_are_charged(fleet: Fleet, user_id: object, statuses: list[int], *, at_least: int) -> None:
    """As many casts as the service has of the account, as many events the ledger has, and as many were answered."""
    rows = await fleet.sql("SELECT count(*) FROM casts WHERE user_id::text = $1", str(user_id))
    casts = rows[0][0]
    assert casts >= at_least
    for _ in range(200):
        rows = await fleet.sql("SELECT count(*) FROM usage_events WHERE account_id = $1", str(user_id))
        if rows[0][0] >= casts:
            break
        await asyncio.sleep(0.05)
    assert rows[0][0] == casts == statuses.count(200)


async def test_no_spelling_of_the_path_casts_for_free(fleet: Fleet) -> None:
    account = await fleet.account()
    key = account.api_key.encode()
    spellings = [each for each in sorted(variants(b"/v1/cast")) if b" " not in each and b"\0" not in each]
    chosen = [b"/v1/cast", b"/v1/cast?x", *spellings[:: max(1, len(spellings) // _SPELLINGS)]]
    statuses = await _statuses(fleet, [_cast(each, key) for each in chosen])
    assert set(statuses) <= {200, 400, 404, 405}
    await _casts_are_charged(fleet, account.user_id, statuses, at_least=2)


@pytest.mark.parametrize(
    "fields",
    [
        [b"Authorization: Bearer other"],
        [b"authorization: Bearer other"],
        [b"X-API-Key: a", b"X-API-Key: b"],
        [b"X_API_Key: other"],
        [b"Cookie: session=a; session=b"],
        [b"Cookie: session=a", b"Cookie: session=b"],
        [b'Cookie: session="a"'],
        [b"Cookie: session=%61"],
        [b"Cookie: Session=a"],
        [b"Content-Length: 3"],
        [b"Transfer-Encoding: chunked"],
        [b"Transfer_Encoding: chunked"],
        [b"Host: other"],
    ],
    ids=lambda fields: b", ".join(fields).decode(),
)
async def test_doubtful_calls_are_refused_or_charged(fleet: Fleet, fields: list[bytes]) -> None:
    account = await fleet.account()
    statuses = await _statuses(fleet, [_cast(b"/v1/cast", account.api_key.encode(), *fields)])
    assert statuses in ([200], [400])
    await _casts_are_charged(fleet, account.user_id, statuses, at_least=0)


async def test_overrides_do_not_lead_to_a_policed_call(fleet: Fleet) -> None:
    account = await fleet.account()
    key = account.api_key.encode()
    requests = [
        _cast(b"/v1/cast", key, b"X-HTTP-Method-Override: POST", method=b"GET"),
        _cast(b"/v1/cast", key, b"X-HTTP-Method: post", method=b"PUT"),
        _cast(b"/health", key, b"X-Original-URL: /v1/cast"),
        _cast(b"/health", key, b"X-Rewrite-URL: //v1/c%61st"),
        _cast(b"/health", key, b"X-Rewrite-URL: /v1/cast", b"X-Method-Override: POST", method=b"GET"),
    ]
    assert await _statuses(fleet, requests) == [400] * len(requests)
    harmless = [
        _cast(b"/health", key, b"X-Original-URL: /other", method=b"GET"),
        _cast(b"/v1/cast", key, b"X-HTTP-Method-Override: GET"),
    ]
    assert await _statuses(fleet, harmless) == [200, 200]
    await _casts_are_charged(fleet, account.user_id, [200], at_least=1)
