"""A gateway behind a proxy of its operator's: whose address counts; and a WebSocket that is one call."""

import asyncio
import shutil
from collections.abc import Iterator
from urllib.parse import urlsplit

import aiohttp
import pytest
from websockets.asyncio.client import connect

from gateway.embedded import RunningServer
from tests.acceptance.conftest import Fleet, _new_database
from tests.gateways import ROOT, migrated, running_gateway
from tests.upstream_stub.running import stub_process

LIVE_POLICY = """
policies:
  - name: live
    match: {methods: [GET], path: /v1/live}
    cost: {fixed: {cents: 3}, charge_when: success}
    rate_limits:
      - {name: per-address, key: ip, limit: 2, window: 1h, algorithm: fixed_window}
"""


@pytest.fixture(scope="module")
def behind_a_proxy(
    postgres_url: str, redis_server: RunningServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Fleet]:
    """One gateway that trusts whoever connects from this machine, with a policy on the WebSocket."""
    folder = tmp_path_factory.mktemp("behind-a-proxy")
    text = (ROOT / "config.yaml").read_text()
    for old, new in {"trusted_proxies: []": "trusted_proxies: [127.0.0.0/8]", 'via: ""': "via: castgate"}.items():
        assert old in text
        text = text.replace(old, new)
    config = folder / "config.yaml"
    config.write_text(text)
    shutil.copytree(ROOT / "policies", folder / "policies")
    (folder / "policies" / "live.yaml").write_text(LIVE_POLICY)
    database_url = asyncio.run(_new_database(postgres_url, "behind_a_proxy"))
    redis_url = redis_server.url.rsplit("/", 1)[0] + "/59"
    with stub_process(database_url, redis_url, rate_limit_per_minute=0) as stub:
        migrated(database_url)
        stores = {"database_url": database_url, "redis_url": redis_url, "upstream_url": stub.base_url}
        with running_gateway(**stores, config=config) as one:
            yield Fleet(gateways=(one, one), stub_url=stub.base_url, database_url=database_url, redis_url=redis_url)


def _ws_url(fleet: Fleet) -> str:
    return urlsplit(fleet.gateways[0].base_url)._replace(scheme="ws", path="/v1/live").geturl()


async def test_a_websocket_is_one_call_however_much_is_said(behind_a_proxy: Fleet) -> None:
    account = await behind_a_proxy.account()
    headers = {"Authorization": f"Bearer {account.api_key}", "X-Forwarded-For": "192.0.2.10"}
    async with connect(_ws_url(behind_a_proxy), additional_headers=headers) as connection:
        for number in range(50):
            await connection.send(f"{number}")
            assert await connection.recv() == f"{number}"
    await behind_a_proxy.settled(account, 1)
    rows = await behind_a_proxy.sql(
        "SELECT policy, upstream_status, cost_microcents FROM usage_events WHERE account_id = $1", account.user_id
    )
    assert [tuple(row) for row in rows] == [("live", 101, 3_000_000)]


async def test_a_limit_by_address_counts_what_the_proxy_saw(behind_a_proxy: Fleet) -> None:
    account = await behind_a_proxy.account()
    url = f"{behind_a_proxy.gateways[0].base_url}/v1/live"

    async def status(forwarded_for: str) -> int:
        headers = {"Authorization": f"Bearer {account.api_key}", "X-Forwarded-For": forwarded_for}
        async with aiohttp.ClientSession() as session, session.get(url, headers=headers) as answer:
            assert answer.status == 429 or answer.headers["Via"] == "1.1 castgate"
            return answer.status

    # No WebSocket's handshake, so that the service says 400: the limit counts it all the same.
    assert [await status("192.0.2.1") for _ in range(3)] == [400, 400, 429]
    assert await status("192.0.2.2") == 400
    assert await status("198.51.100.7, 192.0.2.1") == 429  # what a client claims on the left changes nothing
    assert await status("192.0.2.1, 127.0.0.9") == 429  # nor does another proxy of ours on the right
    assert await status("192.0.2.1, 192.0.2.3") == 400
