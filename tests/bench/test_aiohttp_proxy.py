"""The bare proxy is a fair yardstick only if it relays faithfully."""

from aiohttp import web
from aiohttp.test_utils import TestServer
from pytest_aiohttp import AiohttpClient, AiohttpServer

from bench.aiohttp_proxy import make_app


async def echo(request: web.Request) -> web.Response:
    body = await request.read()
    seen = {
        "X-Seen-Target": request.raw_path,
        "X-Seen-Host": request.host,
        "X-Seen-Authorization": request.headers.get("Authorization", ""),
        "X-Seen-Length": request.headers.get("Content-Length", "none"),
    }
    return web.Response(body=body[::-1], status=int(request.query.get("status", "200")), headers=seen)


async def upstream(aiohttp_server: AiohttpServer) -> TestServer:
    app = web.Application(client_max_size=0)
    app.router.add_route("*", "/{path:.*}", echo)
    return await aiohttp_server(app)


async def test_it_relays_bodies_headers_and_status(
    aiohttp_server: AiohttpServer, aiohttp_client: AiohttpClient
) -> None:
    behind = await upstream(aiohttp_server)
    client = await aiohttp_client(make_app(f"http://127.0.0.1:{behind.port}"))
    body = bytes(range(256)) * 1000
    headers = {"Authorization": "Bearer ck_1"}
    async with client.post("/v1/c%61st?status=418&x=1", data=body, headers=headers) as answer:
        assert answer.status == 418
        assert await answer.read() == body[::-1]
        assert answer.headers["X-Seen-Target"] == "/v1/cast?status=418&x=1"
        assert answer.headers["X-Seen-Host"] == f"127.0.0.1:{behind.port}"
        assert answer.headers["X-Seen-Authorization"] == "Bearer ck_1"
        assert answer.headers["X-Seen-Length"] == str(len(body))


async def test_a_request_without_a_body_has_none_behind_it(
    aiohttp_server: AiohttpServer, aiohttp_client: AiohttpClient
) -> None:
    behind = await upstream(aiohttp_server)
    client = await aiohttp_client(make_app(f"http://127.0.0.1:{behind.port}"))
    async with client.get("/health") as answer:
        assert (answer.status, await answer.read()) == (200, b"")
        assert answer.headers["X-Seen-Length"] == "none"
