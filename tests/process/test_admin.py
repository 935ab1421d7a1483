"""The admin listener's answers."""

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from gateway.admin import Status, make_app, readiness, serve_admin
from gateway.config.settings_connections import Admin
from gateway.metrics import Metrics


def status(*, ready: int = 2, alive: int = 2, wanted: int = 2, draining: bool = False) -> Status:
    return Status(workers_ready=ready, workers_alive=alive, workers_wanted=wanted, draining=draining)


@pytest.fixture
async def client(tmp_path: Path, aiohttp_client: Callable[..., Any]) -> TestClient[Any, Any]:
    made: TestClient[Any, Any] = await aiohttp_client(TestServer(make_app(status, tmp_path)))
    return made


@pytest.mark.parametrize(
    ("state", "stores", "code", "name"),
    [
        (status(), {}, 200, "ready"),
        (status(), {"postgres": "up", "redis": "up"}, 200, "ready"),
        (status(), {"postgres": "up", "redis": "down"}, 200, "degraded"),
        (status(ready=1), {}, 200, "degraded"),
        (status(ready=0), {}, 503, "starting"),
        (status(ready=0, alive=0), {"redis": "down"}, 503, "starting"),
        (status(draining=True), {"redis": "down"}, 503, "draining"),
        (status(ready=0, draining=True), {}, 503, "draining"),
    ],
)
def test_readiness_says_whether_calls_should_come(state: Status, stores: dict[str, str], code: int, name: str) -> None:
    found, body = readiness(state, stores)
    assert (found, body["status"]) == (code, name)


async def test_a_store_that_one_worker_cannot_reach_is_down(tmp_path: Path, client: TestClient[Any, Any]) -> None:
    workers = [Metrics(tmp_path, f"worker-{index}") for index in range(2)]
    workers[0].gauge("castgate_store_up", store="postgres").set(1)
    workers[0].gauge("castgate_store_up", store="redis").set(1)
    workers[1].gauge("castgate_store_up", store="redis").set(0)
    answer = await client.get("/readyz")
    assert answer.status == 200
    assert await answer.json() == {
        "status": "degraded",
        "workers": {"ready": 2, "alive": 2, "wanted": 2},
        "stores": {"postgres": "up", "redis": "down"},
    }
    for worker in workers:
        worker.close()


async def test_it_is_not_healthy_without_any_worker(tmp_path: Path, aiohttp_client: Callable[..., Any]) -> None:
    client = await aiohttp_client(TestServer(make_app(lambda: status(ready=0, alive=0), tmp_path)))
    assert (await client.get("/healthz")).status == 503


async def test_metrics_come_in_the_format_that_was_asked_for(client: TestClient[Any, Any]) -> None:
    plain = await client.get("/metrics")
    assert plain.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert "# TYPE spell_cast_total counter" in await plain.text()
    openmetrics = await client.get("/metrics", headers={"Accept": "application/openmetrics-text;version=1.0.0"})
    assert openmetrics.headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
    assert (await openmetrics.text()).endswith("# EOF\n")


async def test_other_paths_and_methods_are_refused_in_json(client: TestClient[Any, Any]) -> None:
    missing = await client.get("/")
    assert (missing.status, (await missing.json())["error"]) == (404, "not_found")
    posted = await client.post("/metrics", data=b"x")
    assert (posted.status, (await posted.json())["error"]) == (405, "invalid_request")
    assert posted.headers["Allow"] == "GET, HEAD"
    assert (await client.head("/healthz")).status == 200


TOKEN = "0123456789-of-the-operators"


@pytest.fixture
async def guarded(tmp_path: Path, aiohttp_client: Callable[..., Any]) -> TestClient[Any, Any]:
    app = make_app(status, tmp_path, token=TOKEN, open_paths=("/metrics",))
    made: TestClient[Any, Any] = await aiohttp_client(TestServer(app))
    return made


@pytest.mark.parametrize(
    "shown", [None, "", "Bearer", "Bearer ", f"bearer {TOKEN}", TOKEN, f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", "é"]
)
async def test_without_the_token_nothing_is_told_of_any_path(guarded: TestClient[Any, Any], shown: str | None) -> None:
    headers = {} if shown is None else {"Authorization": shown}
    for path in ("/healthz", "/readyz", "/", "/metrics/", "/%6detrics/x"):
        answer = await guarded.get(path, headers=headers)
        assert (answer.status, (await answer.json())["error"]) == (401, "unauthorized"), path
        assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert (await guarded.post("/readyz", headers=headers)).status == 401


async def test_every_path_that_there_is_asks_for_the_token(tmp_path: Path, aiohttp_client: Callable[..., Any]) -> None:
    app = make_app(status, tmp_path, token=TOKEN)
    client = await aiohttp_client(TestServer(app))
    paths = [resource.canonical for resource in app.router.resources()]
    assert {(await client.get(path)).status for path in paths} == {401}
    shown = {"Authorization": f"Bearer {TOKEN}"}
    assert 401 not in {(await client.get(path, headers=shown)).status for path in paths}


async def test_open_paths_are_open_and_others_open_with_the_token(guarded: TestClient[Any, Any]) -> None:
    assert (await guarded.get("/metrics")).status == 200
    assert (await guarded.get("/healthz", headers={"Authorization": f"Bearer {TOKEN}"})).status == 200


async def test_what_an_operator_has_begun_goes_on_when_the_page_is_closed(tmp_path: Path) -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def change(request: web.Request) -> web.Response:
        begun.set()
        while request.transport is not None:  # until the client has left
            await asyncio.sleep(0.01)
        await asyncio.sleep(0)
        ended.set()
        return web.Response()

    listener = socket.create_server(("127.0.0.1", 0))
    admin = await serve_admin(listener, status, tmp_path, [web.post("/change", change)], settings=Admin())
    _, writer = await asyncio.open_connection(*listener.getsockname())
    writer.write(b"POST /change HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n")
    async with asyncio.timeout(20):
        await begun.wait()
        writer.transport.abort()
        await ended.wait()
    await admin.cleanup()
    listener.close()
