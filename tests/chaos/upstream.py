"""The cast service of the chaos suite, as a process: it makes casts, and writes each down before it answers.

``python -m tests.chaos.upstream PORT RECORD``. What stands in RECORD is the checker's truth: no store that is being
killed has any part in it. A line is a JSON list [ms, cast id, call id, request id]; the request id is the hold's, as
the gateway tells it to the service. Faults are those of the Phase 1 stub.
"""

import asyncio
import json
import sys
import time
import uuid
from pathlib import Path
from typing import TextIO

import uvloop
from aiohttp import web

from upstream_stub.faults import misbehave

CONNECTIONS_WAITING_MAX = 2048


def build_app(record: TextIO) -> web.Application:
    async def cast(request: web.Request) -> web.Response:
        call_id = json.loads(await request.read())["input"]
        cast_id = str(uuid.uuid4())
        line = [time.time_ns() // 1_000_000, cast_id, call_id, request.headers.get("X-Request-Id", "")]
        record.write(json.dumps(line) + "\n")
        record.flush()
        return web.Response(body=json.dumps({"id": cast_id}).encode(), content_type="application/json")

    app = web.Application(middlewares=[misbehave])
    app.router.add_post("/v1/cast", cast)
    return app


async def serve(port: int, path: Path) -> None:
    with path.open("a") as record:
        # As in Phase 1 a cast is finished even if nobody waits for it any more.
        runner = web.AppRunner(build_app(record), access_log=None, handler_cancellation=False)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port, backlog=CONNECTIONS_WAITING_MAX).start()
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]), Path(sys.argv[2])))
