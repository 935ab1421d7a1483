"""A whole gateway that logs every request and traces what it is told to; a collector that keeps what it is sent."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from gateway.embedded import free_port
from tests.gateways import RunningGateway, migrated, running_gateway
from tests.upstream_stub.running import Account, create_account, stub_process

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
COLLECTOR_TOKEN = "of-the-collector"
WAIT_S = 20.0


@dataclass(kw_only=True)
class World:
    gateway: RunningGateway
    account: Account
    session: aiohttp.ClientSession
    spans: list[dict[str, Any]] = field(default_factory=list)
    asked_with: set[str] = field(default_factory=set)

    async def ask(self, method: str, path: str, **headers: str) -> tuple[int, str]:
        own = {"Authorization": f"Bearer {self.account.api_key}", **headers}
        body = {"input": "lumos"} if method == "POST" else None
        url = f"{self.gateway.base_url}{path}"
        async with self.session.request(method, url, headers=own, json=body) as answer:
            return answer.status, await answer.text()

    async def line(self, request_id: str) -> dict[str, Any]:
        """The canonical line of the request with that id, once it is written."""
        async with asyncio.timeout(WAIT_S):
            while True:
                for text in list(self.gateway.log):
                    if f'"{request_id}"' in text and '"event": "request"' in text:
                        found: dict[str, Any] = json.loads(text)
                        return found
                await asyncio.sleep(0.02)

    async def spans_of(self, request_id: str, count: int) -> list[dict[str, Any]]:
        """The spans of the trace in which the request's span is, once there are so many."""
        async with asyncio.timeout(WAIT_S):
            while True:
                named = [span for span in self.spans if attributes(span).get("castgate.request_id") == request_id]
                traces = {span["traceId"] for span in named}
                found = [span for span in self.spans if span["traceId"] in traces]
                if len(found) >= count:
                    return found
                await asyncio.sleep(0.02)


def attributes(span: dict[str, Any]) -> dict[str, str]:
    return {one["key"]: next(iter(one["value"].values())) for one in span["attributes"]}


@pytest.fixture
async def world(database_url: str, redis_url: str) -> AsyncIterator[World]:
    spans: list[dict[str, Any]] = []
    asked_with: set[str] = set()

    async def collect(request: web.Request) -> web.Response:
        asked_with.add(request.headers.get("Authorization", ""))
        for resource in (await request.json())["resourceSpans"]:
            for scope in resource["scopeSpans"]:
                spans.extend(scope["spans"])
        return web.json_response({})

    app = web.Application()
    app.router.add_post("/v1/traces", collect)
    runner = web.AppRunner(app)
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    stores = {"database_url": database_url, "redis_url": redis_url}
    environ = {
        "LOG_REQUEST_SAMPLE": "1",
        "METRICS_STAGE_SAMPLE": "1",
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}",
        "OTEL_EXPORTER_OTLP_HEADERS": f"authorization=Bearer%20{COLLECTOR_TOKEN}",
        "OTEL_TRACES_SAMPLER_ARG": "0",
        "RATE_LIMIT_PER_MINUTE": "2",
    }
    with stub_process(**stores, rate_limit_per_minute=0) as stub:
        await asyncio.to_thread(migrated, database_url)
        account = await create_account(database_url)
        with running_gateway(**stores, upstream_url=stub.base_url, environ=environ) as gateway:
            async with aiohttp.ClientSession() as session:
                yield World(gateway=gateway, account=account, session=session, spans=spans, asked_with=asked_with)
    await runner.cleanup()


async def test_each_request_has_one_line_that_says_all_of_it_and_no_secret(world: World) -> None:
    assert (await world.ask("POST", "/v1/cast?token=hidden", **{"X-Request-Id": "a-cast"}))[0] == 200
    cast = await world.line("a-cast")
    assert {name: cast[name] for name in ("method", "path", "kind", "policy", "mode", "verdict", "status")} == {
        "method": "POST",
        "path": "/v1/cast",
        "kind": "policy",
        "policy": "cast",
        "mode": "enforce",
        "verdict": "admitted",
        "status": 200,
    }
    assert (cast["account"], cast["cost_cents"]) == (world.account.user_id, "1")
    assert (cast["client"], cast["ended"], cast["answered_by"]) == ("127.0.0.1", "answered", "upstream")
    stages = [cast[f"{stage}_ms"] for stage in ("identify", "admit", "connect", "first_byte", "answer")]
    assert all(stage >= 0 for stage in stages)
    assert sum(stages) <= cast["duration_ms"] + 0.01

    assert (await world.ask("POST", "/v1/cast", **{"X-Request-Id": "a-second"}))[0] == 200
    assert (await world.ask("POST", "/v1/cast", **{"X-Request-Id": "a-third"}))[0] == 429
    limited = await world.line("a-third")
    assert (limited["verdict"], limited["status"]) == ("rate_limited:per-account", 429)
    assert (limited["answered_by"], limited["ended"]) == ("gateway", "refused")
    assert not {"cost_cents", "connect_ms"} & set(limited)

    key = world.account.api_key
    assert (await world.ask("GET", f"/v1/echo/{key}", **{"X-Request-Id": "plain"}))[0] == 200
    plain = await world.line("plain")
    assert (plain["kind"], plain["path"]) == ("plain", "/v1/echo/ck_[redacted]")
    assert (await world.ask("GET", "/v1/budgets", **{"X-Request-Id": "hosted"}))[0] == 200
    assert (await world.line("hosted"))["kind"] == "hosted"
    assert (await world.ask("POST", "/v1/cast", **{"X-Request-Id": "nobody", "Authorization": "Bearer x"}))[0] == 401
    nobody = await world.line("nobody")
    assert (nobody["verdict"], nobody["status"]) == ("unidentified", 401)

    # The id is on the latency, for who asks in OpenMetrics; and only there.
    accept = {"Accept": "application/openmetrics-text;version=1.0.0"}
    async with asyncio.timeout(WAIT_S):
        while True:
            async with world.session.get(f"{world.gateway.admin_url}/metrics", headers=accept) as answer:
                told = await answer.text()
            if '# {request_id="nobody"}' in told:
                break
            await asyncio.sleep(0.05)
    families = {family.name: family for family in text_string_to_metric_families(told)}
    examples = [sample.exemplar for sample in families["spell_cast_duration_seconds"].samples if sample.exemplar]
    assert {one.labels["request_id"] for one in examples} <= {"a-cast", "a-second", "nobody"}
    for sample in families["spell_cast_duration_seconds"].samples:
        if sample.exemplar:
            assert sample.exemplar.value <= float(sample.labels["le"])
    assert "request_id" not in world.gateway.metrics()

    for text in world.gateway.log:
        assert key not in text
        assert "hidden" not in text
    lines = [text for text in world.gateway.log if '"event": "request"' in text]
    assert len(lines) == 6
    for stage in ("identify", "admit", "first_byte"):
        assert world.gateway.metric("castgate_stage_duration_seconds_count", stage=stage) >= 3
    async with asyncio.timeout(WAIT_S):  # the two that were charged are in the ledger a moment later
        while world.gateway.metric("castgate_stage_duration_seconds_count", stage="settle") < 2:
            await asyncio.sleep(0.05)


async def test_a_traceparent_is_honoured_and_passed_on(world: World) -> None:
    field_value = f"00-{TRACE}-{SPAN}-01"
    headers = {"traceparent": field_value, "tracestate": "vendor=1", "X-Request-Id": "traced"}
    status, text = await world.ask("GET", "/v1/echo", **headers)
    assert status == 200
    server, client = sorted(await world.spans_of("traced", 2), key=lambda span: span["kind"])
    assert f"00-{TRACE}-{client['spanId']}-01" in text
    assert "vendor=1" in text
    assert field_value not in text
    assert (server["traceId"], server["parentSpanId"]) == (TRACE, SPAN)
    assert client["parentSpanId"] == server["spanId"]
    assert int(server["startTimeUnixNano"]) <= int(client["startTimeUnixNano"])
    assert int(client["endTimeUnixNano"]) <= int(server["endTimeUnixNano"])
    assert attributes(server)["http.response.status_code"] == "200"
    assert (await world.line("traced"))["trace_id"] == TRACE
    assert world.asked_with == {f"Bearer {COLLECTOR_TOKEN}"}

    # The same bytes again on the same connection, which the relay does not parse again, are a call of their own.
    again = {**headers, "X-Request-Id": "again"}
    sent = [re.findall(r"00-\w+-(\w+)-01", (await world.ask("GET", "/v1/echo", **again))[1]) for _ in range(3)]
    assert [len(ids) for ids in sent] == [1, 1, 1]
    assert len({ids[0] for ids in sent}) == 3
    spans = [
        span for span in await world.spans_of("again", 8) if attributes(span).get("castgate.request_id") == "again"
    ]
    assert {span["parentSpanId"] for span in spans} == {SPAN}

    # The caller's "no" is honoured too: the field passes as it came. As it does where none came: the sample is 0.
    unsampled = field_value[:-1] + "0"
    _, text = await world.ask("GET", "/v1/echo", traceparent=unsampled, **{"X-Request-Id": "untraced"})
    assert unsampled in text
    _, text = await world.ask("GET", "/v1/echo", **{"X-Request-Id": "of-nobody"})
    assert "traceparent" not in text.lower()
    assert "trace_id" not in await world.line("of-nobody")
    # What was to be sent was sent, secrets left out.
    assert world.account.api_key not in json.dumps(world.spans)
