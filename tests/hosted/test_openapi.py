"""The document, and whether the application keeps what it says."""

import asyncio
import sys
from pathlib import Path

from aiohttp import web
from aiohttp.test_utils import TestClient

from gateway.hosted.app import ROUTES
from tests.hosted.world import KEY, World

Anyone = TestClient[web.Request, web.Application]
EXAMPLES_MAX = 30
TIMEOUT_S = 50.0
# Refused although the schema, which cannot say everything, lets it pass: a soft limit above the hard one, a week_start
# in a month, from after to, a made-up cursor, a number with seven decimals.
CONFIGURATION = """
[checks]
positive_data_acceptance.expected-statuses = ["2xx", "400", "401", "404", "409", "422"]
"""


async def test_everything_that_can_be_done_here_is_described(anyone: Anyone) -> None:
    paths = (await (await anyone.get("/v1/openapi.json")).json())["paths"]
    described = {(path, method.upper()) for path, operations in paths.items() for method in operations}
    served = {(path, method) for path, handlers in ROUTES.items() for method in handlers}
    switched_off = {("/v1/billing/checkout", "POST"), ("/v1/billing/portal", "POST"), ("/webhooks/stripe", "POST")}
    assert described == served - switched_off


async def test_metrics_are_described_only_where_they_are_public(anyone: Anyone, world: World) -> None:
    private = world.settings.metrics.model_copy(update={"public": False})
    world.settings = world.settings.model_copy(update={"metrics": private})
    assert "/metrics" not in (await (await anyone.get("/v1/openapi.json")).json())["paths"]


async def test_the_configured_ways_to_identify_are_described(anyone: Anyone, world: World) -> None:
    schemes = (await (await anyone.get("/v1/openapi.json")).json())["components"]["securitySchemes"]
    assert schemes == {
        "apiKey": {"type": "http", "scheme": "bearer"},
        "apiKeyHeader": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
        "session": {"type": "apiKey", "in": "cookie", "name": "session"},
    }


async def test_schemathesis_finds_no_violation(anyone: Anyone, tmp_path: Path) -> None:
    configuration = tmp_path / "schemathesis.toml"
    configuration.write_text(CONFIGURATION)
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(configuration), "run"]
    command += [str(anyone.make_url("/v1/openapi.json")), "--header", f"Authorization: Bearer {KEY}"]
    command += ["--max-examples", str(EXAMPLES_MAX), "--seed", "1", "--generation-database", "none", "--no-color"]
    process = await asyncio.create_subprocess_exec(
        *command, cwd=tmp_path, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        async with asyncio.timeout(TIMEOUT_S):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, output.decode()
