"""What calls under way hold of an account, on its page: as Redis has it, or Postgres while Redis is away."""

from collections.abc import Callable
from typing import Any

import asyncpg
import pytest

from gateway.console import holds
from gateway.embedded import free_port
from gateway.policy.verdicts import Hold
from tests.billing.conftest import scene as scene  # noqa: PLC0414  a fixture
from tests.billing.world import Scene
from tests.console.world import TOKEN, sign_in


@pytest.fixture
def account_id(scene: Scene) -> str:
    return scene.account_id


async def held(client: Any, account_id: str) -> dict[str, Any]:
    answer = await client.get(f"/console/accounts/{account_id}")
    assert answer.status == 200, await answer.text()
    found: dict[str, Any] = (await answer.json())["holds"]
    return found


async def test_each_call_under_way_is_there_until_it_is_settled(
    scene: Scene, serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await serve(TOKEN)
    assert await sign_in(client) == 303
    assert await held(client, scene.account_id) == {"source": "redis", "count": 0, "held_cents": "0", "list": []}
    verdict = await scene.here.replica.ask(scene.account_id)
    assert isinstance(verdict, Hold)
    shown = await held(client, scene.account_id)
    assert (shown["source"], shown["count"], shown["held_cents"]) == ("redis", 1, "2")
    [one] = shown["list"]
    assert (one["id"], one["cents"], one["policy"], one["worker"]) == (verdict.hold_id, "2", "cast", "gateway-0-1")
    assert await held(client, "somebody-else") == {"source": "redis", "count": 0, "held_cents": "0", "list": []}
    # Redis serves nobody else meanwhile, so it does not look through as many as there may be.
    monkeypatch.setattr(holds, "LOOKED_THROUGH_MAX", 0)
    too_many = await held(client, scene.account_id)
    assert (too_many["count"], too_many["held_cents"], too_many["list"]) == (None, None, [])


async def test_while_redis_is_away_postgres_is_asked(
    scene: Scene, serve: Callable[..., Any], database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holds, "HOLDS_MAX", 2)
    connection: asyncpg.Connection[Any] = await asyncpg.connect(database_url)
    await connection.execute(
        "INSERT INTO usage_holds (id, account_id, amount_microcents, admitted_at, policy, worker_id)"
        " SELECT gen_random_uuid(), $1, 1500000, now() - number * interval '1 second', 'cast', 'w' || number"
        " FROM generate_series(1, 3) AS number",
        scene.account_id,
    )
    await connection.close()
    client = await serve(TOKEN, redis={"url": f"redis://127.0.0.1:{free_port()}"})
    assert await sign_in(client) == 303
    shown = await held(client, scene.account_id)
    assert (shown["source"], shown["count"], shown["held_cents"]) == ("postgres", 3, "4.5")
    assert [one["worker"] for one in shown["list"]] == ["w3", "w2"]  # the oldest first
