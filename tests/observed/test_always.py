"""Which calls have a line whatever the sample says: by their policy, on a gateway that watches no request."""

import asyncio
import json
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import pytest

from tests.gateways import ROOT, RunningGateway, migrated, running_gateway
from tests.policies.upstream import PLAY, running_upstream
from tests.upstream_stub.running import Account, create_account
from upstream_stub.database import migrate

WAIT_S = 20.0
POLICIES = """
policies:
  - name: cast
    match: {path: /v1/cast}
    cost: {fixed: {cents: 1}}
    rate_limits: [{name: once, limit: 1, window: 1d, key: "header:X-Once"}]
    LOG
plans:
  free: {hard_limit_cents: {monthly: 500}}
  poor: {hard_limit_cents: {monthly: 0}}
"""


@dataclass(kw_only=True)
class World:
    gateway: RunningGateway
    account: Account
    poor: Account
    rules: Path

    def use(self, log: str) -> None:
        """Puts the policy with these lines in force."""
        reloads = self.gateway.metric("castgate_config_reloads_total", result="ok")
        self.rules.write_text(POLICIES.replace("LOG", log))
        self.gateway.process.send_signal(signal.SIGHUP)
        deadline_s = time.monotonic() + WAIT_S
        while self.gateway.metric("castgate_config_reloads_total", result="ok") == reloads:
            assert time.monotonic() < deadline_s, "not reloaded:\n" + "".join(self.gateway.log)
            time.sleep(0.02)

    async def calls(self, prefix: str) -> dict[str, int]:
        """One call of each kind; the statuses by the calls' ids, -1 for an answer that was cut."""
        found: dict[str, int] = {}
        async with aiohttp.ClientSession() as session:

            async def call(kind: str, account: Account, once: str = "", **play: Any) -> None:
                headers = {
                    "Authorization": f"Bearer {account.api_key}",
                    "X-Request-Id": f"{prefix}-{kind}",
                    "X-Once": once or f"{prefix}-{kind}",
                    PLAY: json.dumps(play),
                }
                try:
                    async with session.post(f"{self.gateway.base_url}/v1/cast?token=hidden", headers=headers) as answer:
                        await answer.read()
                        found[kind] = answer.status
                except aiohttp.ClientPayloadError:
                    found[kind] = -1

            await call("good", self.account)
            await call("failed", self.account, status=503)
            await call("cut", self.account, cut=True)
            await call("slow", self.account, sleep_ms=60)
            await call("again", self.account, once=f"{prefix}-good")
            await call("broke", self.poor)
            await call("missing", self.account, status=404)
        return found

    def lines(self, prefix: str) -> dict[str, dict[str, Any]]:
        """The lines of these calls, once all that there will be are written: lines come in order."""
        last = f"{prefix}-last"
        self.use("log: {sample: 1, always: []}")
        asyncio.run(self.cast(last))
        deadline_s = time.monotonic() + WAIT_S
        while True:
            seen = [json.loads(text) for text in list(self.gateway.log) if '"event": "request"' in text]
            if any(one["request_id"] == last for one in seen):
                break
            assert time.monotonic() < deadline_s, "".join(self.gateway.log)
            time.sleep(0.02)
        mine = [one for one in seen if one["request_id"].startswith(prefix) and one["request_id"] != last]
        by_kind = {one["request_id"].removeprefix(f"{prefix}-"): one for one in mine}
        assert len(by_kind) == len(mine), "a call has two lines"
        return by_kind

    async def cast(self, request_id: str) -> None:
        headers = {"Authorization": f"Bearer {self.account.api_key}", "X-Request-Id": request_id, "X-Once": request_id}
        url = f"{self.gateway.base_url}/v1/cast"
        async with aiohttp.ClientSession() as session, session.post(url, headers=headers) as answer:
            assert answer.status == 200


@pytest.fixture(scope="module")
def world(
    postgres_url: str, redis_server: Any, tmp_path_factory: pytest.TempPathFactory, _administrator: Any
) -> Iterator[World]:
    _administrator.execute("DROP DATABASE IF EXISTS always WITH (FORCE)")
    _administrator.execute("CREATE DATABASE always")
    database_url = postgres_url.rsplit("/", 1)[0] + "/always"
    asyncio.run(migrate(database_url))
    migrated(database_url)
    folder = tmp_path_factory.mktemp("always")
    (folder / "config.yaml").write_text((ROOT / "config.yaml").read_text())
    (folder / "policies").mkdir()
    rules = folder / "policies" / "rules.yaml"
    rules.write_text(POLICIES.replace("LOG", ""))
    with running_upstream() as upstream:
        stores = {"database_url": database_url, "redis_url": redis_server.url.rsplit("/", 1)[0] + "/60"}
        account, poor = asyncio.run(create_account(database_url)), asyncio.run(create_account(database_url))
        asyncio.run(_make_poor(database_url, poor.user_id))
        environ = {"METRICS_STAGE_SAMPLE": "0", "LOG_REQUEST_SAMPLE": "0"}
        with running_gateway(
            **stores, upstream_url=upstream.url, environ=environ, config=folder / "config.yaml"
        ) as gateway:
            yield World(gateway=gateway, account=account, poor=poor, rules=rules)


async def _make_poor(database_url: str, account_id: str) -> None:
    connection: asyncpg.Connection[Any] = await asyncpg.connect(database_url)
    await connection.execute("INSERT INTO billing_accounts (account_id, plan) VALUES ($1, 'poor')", account_id)
    await connection.close()


STATUSES = {"good": 200, "failed": 503, "cut": -1, "slow": 200, "again": 429, "broke": 402, "missing": 404}


@pytest.mark.parametrize(
    ("log", "kinds"),
    [
        ("", {"failed", "cut", "again", "broke"}),
        ("log: {always: []}", set()),
        ("log: {always: [denials]}", {"again", "broke"}),
        ("log: {always: [errors]}", {"failed", "cut"}),
        ("log: {always: [slow], slow_after: 50ms}", {"slow"}),
        ("log: {sample: 1}", set(STATUSES)),  # each has one line, not two
    ],
)
def test_errors_and_denials_have_a_line_unless_the_policy_says_otherwise(
    world: World, log: str, kinds: set[str]
) -> None:
    world.use(log)
    prefix = f"p{abs(hash(log)) % 10**9}"
    assert asyncio.run(world.calls(prefix)) == STATUSES
    assert set(world.lines(prefix)) == kinds


def test_such_a_line_says_what_is_known_of_a_call_that_nobody_watched(world: World) -> None:
    world.use("log: {always: [errors, denials, slow], slow_after: 50ms}")
    asyncio.run(world.calls("facts"))
    lines = world.lines("facts")
    slow = {name: lines["slow"][name] for name in ("verdict", "status", "answered_by", "ended", "cost_cents", "kind")}
    assert slow == {
        "verdict": "admitted",
        "status": 200,
        "answered_by": "upstream",
        "ended": "answered",
        "cost_cents": "1",
        "kind": "policy",
    }
    assert lines["slow"]["duration_ms"] >= 50
    assert (lines["slow"]["account"], lines["slow"]["client"]) == (world.account.user_id, "127.0.0.1")
    assert "first_byte_ms" not in lines["slow"]
    told = {kind: (one["verdict"], one["status"], one["answered_by"], one["ended"]) for kind, one in lines.items()}
    assert told["failed"] == ("admitted", 503, "upstream", "answered")
    assert "cost_cents" not in lines["failed"]
    assert told["cut"] == ("admitted", 200, "upstream", "cut")
    assert told["again"] == ("rate_limited:once", 429, "gateway", "refused")
    assert told["broke"] == ("budget_exceeded:monthly", 402, "gateway", "refused")
    assert lines["broke"]["account"] == world.poor.user_id
    assert "hidden" not in "".join(world.gateway.log)
    assert lines["failed"]["path"] == "/v1/cast"
