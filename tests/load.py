"""Many casts at once, for tests that count what came back."""

from collections import Counter
from collections.abc import Mapping, Sequence

from bench.load import Endpoint, Load, LoadResult, run

CAST_PATH = "/v1/cast"
CAST_BODY = b'{"input":"light"}'


async def cast_many(
    urls: Sequence[str], api_key: str | Sequence[str], total: int, connections: int, seed: int = 0
) -> Counter[int]:
    """Cast exactly ``total`` times over gateways chosen at random; how often each status came back.

    With several keys each cast has one at random. A cast that got no answer fails the test: nothing is ever sent twice,
    so what the counter says is what was asked.
    """
    result = await cast_load(urls, api_key, total, connections, seed)
    assert not result.errors, f"casts without an answer: {dict(result.errors)}"
    assert result.answered == total
    return result.statuses


async def cast_load(
    urls: Sequence[str],
    api_key: str | Sequence[str],
    total: int,
    connections: int,
    seed: int = 0,
    *,
    headers: Mapping[str, str] | None = None,
) -> LoadResult:
    """The same with all there is to know, for tests in which casts may be lost: errors by kind, latencies."""
    keys = [api_key] if isinstance(api_key, str) else api_key
    fields = [{"Authorization": f"Bearer {key}", "Content-Type": "application/json", **(headers or {})} for key in keys]
    endpoints = [
        Endpoint.of(url.rstrip("/") + CAST_PATH, method="POST", headers=fields, body=CAST_BODY) for url in urls
    ]
    return await run(endpoints, Load(connections=connections, total=total, seed=seed))
