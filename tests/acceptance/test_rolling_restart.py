"""All workers are replaced under load, and no request is lost. The long form is ``python -m bench.rolling_restart``."""

from bench.load import Endpoint
from bench.rolling_restart import roll
from tests.acceptance.conftest import CAST_BODY, Fleet
from tests.gateways import running_gateway

ROUNDS = 3


async def test_replacing_all_workers_three_times_under_load_fails_no_request(fleet: Fleet) -> None:
    account = await fleet.account(monthly_cents=1_000_000)
    await fleet.put_on_plan(account, "unlimited")
    stores = {"database_url": fleet.database_url, "redis_url": fleet.redis_url, "upstream_url": fleet.stub_url}
    headers = {"Authorization": f"Bearer {account.api_key}", "Content-Type": "application/json"}
    with running_gateway(**stores, workers=2) as gateway:
        url = f"{gateway.base_url}/v1/cast"
        rolled = await roll(
            Endpoint.of(url, method="POST", headers=headers, body=CAST_BODY),
            admin_url=gateway.admin_url,
            supervisor=gateway.process.pid,
            workers=2,
            rounds=ROUNDS,
            connections=64,
        )
    assert rolled.failed == 0, str(rolled)
    casts = rolled.load.statuses[200]
    assert casts > 64
    await fleet.settled(account, casts)
    rows = await fleet.sql("SELECT count(*) FROM usage_events WHERE account_id = $1", account.user_id)
    assert rows[0][0] == casts
