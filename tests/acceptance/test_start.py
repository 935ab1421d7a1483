"""The gateway starts, says what is missing, and serves casts, with any of its stores away."""

import json

import aiohttp
import pytest

from gateway.embedded import free_port
from tests.acceptance.conftest import CAST_BODY, Fleet
from tests.gateways import RunningGateway, running_gateway
from tests.upstream_stub.running import Account


async def _cast(gateway: RunningGateway, account: Account) -> int:
    headers = {"Authorization": f"Bearer {account.api_key}", "Content-Type": "application/json"}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{gateway.base_url}/v1/cast", data=CAST_BODY, headers=headers) as answer,
    ):
        return answer.status


async def _ready(gateway: RunningGateway) -> tuple[int, dict[str, object]]:
    async with aiohttp.ClientSession() as session, session.get(f"{gateway.admin_url}/readyz") as answer:
        return answer.status, await answer.json()


def _events(gateway: RunningGateway, name: str) -> list[dict[str, object]]:
    return [event for line in gateway.log if (event := json.loads(line))["event"] == name]


async def test_without_redis_it_starts_degraded_and_casts_go_on(fleet: Fleet) -> None:
    port = free_port()
    account = await fleet.account(monthly_cents=100)
    with running_gateway(
        database_url=fleet.database_url, redis_url=f"redis://127.0.0.1:{port}/0", upstream_url=fleet.stub_url
    ) as gateway:
        assert await _cast(gateway, account) == 200
        status, body = await _ready(gateway)
        assert (status, body["status"]) == (200, "degraded")
        await fleet.settled(account, 1)
        lost = _events(gateway, "store_lost")[0]
        assert (lost["store"], lost["reason"], lost["level"]) == (
            "redis",
            f"127.0.0.1:{port}: [Errno 111] Connection refused",
            "warning",
        )


async def test_without_postgres_it_starts_degraded_and_casts_go_on(fleet: Fleet) -> None:
    port = free_port()
    account = await fleet.account()
    with running_gateway(
        database_url=f"postgresql://castgate:secret@127.0.0.1:{port}/castgate",
        redis_url=fleet.redis_url,
        upstream_url=fleet.stub_url,
    ) as gateway:
        for _ in range(4):
            assert await _cast(gateway, account) == 200
        status, body = await _ready(gateway)
        assert (status, body["status"]) == (200, "degraded")
        lost = _events(gateway, "store_lost")[0]
        assert (lost["store"], lost["reason"], lost["level"]) == ("postgres", "Connection refused", "warning")
        failing = str(_events(gateway, "identify_failing")[0]["error"])
        assert failing.startswith(f"Postgres at 127.0.0.1:{port}/castgate is away: ")
        assert "secret" not in "".join(gateway.log)


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        (
            "UPSTREAM_URL",
            "ftp://x",
            "config.yaml:27:8: upstream.url: expected http://host:port, https://host:port or unix:/path, "
            'found "ftp://x" (from ${UPSTREAM_URL})',
        ),
        (
            "PORT",
            "eighty",
            'config.yaml:8:9: listen.port: expected an integer of 0 or more, found "eighty" (from ${PORT})',
        ),
        ("COST_PER_CAST_CENTS", "-1", "environment: COST_PER_CAST_CENTS: expected cents of 0 or more, found -1"),
    ],
)
def test_a_bad_environment_stops_it_with_one_clear_line(fleet: Fleet, variable: str, value: str, message: str) -> None:
    with (
        pytest.raises(AssertionError, match="the gateway did not start") as caught,
        running_gateway(
            database_url=fleet.database_url,
            redis_url=fleet.redis_url,
            upstream_url=fleet.stub_url,
            environ={variable: value},
        ),
    ):
        pass
    assert message in str(caught.value)
    assert "Traceback" not in str(caught.value)
