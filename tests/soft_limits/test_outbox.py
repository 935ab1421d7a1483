"""Messages reach the receiver at least once, whatever it does; and nothing else is done for it."""

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import ssl
import time

import asyncpg
import pytest
import structlog
import trustme
from aiohttp import web

from gateway.database import QUERIES
from gateway.metrics import Metrics
from gateway.outbox import BACKOFF_MAX_S, backoff_s
from gateway.webhook_signature import signed_headers
from tests.soft_limits.conftest import OTHER_SECRET, SECRET, MakeOutbox, MakeWriter, Received, Receiver

Connection = asyncpg.Connection


def signature(secret: str, message: Received) -> str:
    """Worked out anew, by the words of the specification."""
    key = base64.b64decode(secret.split("_")[1])
    signed = f"{message.headers['webhook-id']}.{message.headers['webhook-timestamp']}.".encode() + message.body
    return "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()


async def message(make_writer: MakeWriter, account_id: str = "a", cents: float = 55.25) -> None:
    await make_writer(queued=lambda: None).spend(account_id, cents)


async def state(sql: Connection) -> tuple[object, ...]:
    row = await sql.fetchrow("SELECT state, attempts, last_error FROM webhook_outbox")
    assert row is not None
    return tuple(row)


async def make_due(sql: Connection) -> None:
    """Time passes."""
    await sql.execute("UPDATE webhook_outbox SET due_at = now() WHERE state = 'waiting'")


def attempts(metrics: Metrics) -> dict[str, int]:
    results = ("delivered", "failed", "dead")
    return {one: metrics.counter("castgate_webhook_attempts_total", result=one).value for one in results}


def test_the_signature_is_that_of_the_specifications_example() -> None:
    headers = signed_headers([SECRET], "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert headers == {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


async def test_a_message_says_what_was_reached_and_is_signed(
    make_writer: MakeWriter, make_outbox: MakeOutbox, receiver: Receiver, sql: Connection, metrics: Metrics
) -> None:
    await message(make_writer)
    assert await make_outbox().deliver_due() is True
    [received] = receiver.received
    row = await sql.fetchrow("SELECT id, announced_at FROM soft_limit_announcements")
    assert row is not None
    assert received.headers["webhook-id"] == row["id"]
    assert "." not in row["id"]
    assert abs(int(received.headers["webhook-timestamp"]) - time.time()) < 60
    assert received.headers["webhook-signature"] == signature(SECRET, received)
    assert received.headers["content-type"] == "application/json"
    told = json.loads(received.body)
    window = told["data"].pop("window_start"), told["data"].pop("resets_at")
    assert [text[7:] for text in window] == ["-01T00:00:00Z"] * 2
    assert told.pop("timestamp")[:13] == row["announced_at"].isoformat()[:13]
    assert told == {
        "type": "budget.threshold_reached",
        "data": {
            "account_id": "a",
            "plan": "free",
            "period": "monthly",
            "timezone": "UTC",
            "threshold": "50",
            "threshold_percent": 50,
            "threshold_cents": 50,
            "limit_cents": 100,
            "used_cents": 55.25,
        },
    }
    assert await state(sql) == ("delivered", 1, None)
    assert attempts(metrics) == {"delivered": 1, "failed": 0, "dead": 0}
    assert await make_outbox().deliver_due() is None


async def test_while_secrets_change_each_signs(
    make_writer: MakeWriter, make_outbox: MakeOutbox, receiver: Receiver
) -> None:
    await message(make_writer)
    await make_outbox(secret=f"{OTHER_SECRET},{SECRET}").deliver_due()
    [received] = receiver.received
    signatures = [signature(secret, received) for secret in (OTHER_SECRET, SECRET)]
    assert received.headers["webhook-signature"].split(" ") == signatures


async def test_a_failure_is_tried_again_later_with_the_same_id_and_body(
    make_writer: MakeWriter, make_outbox: MakeOutbox, receiver: Receiver, sql: Connection, metrics: Metrics
) -> None:
    receiver.plays = [500, 503]
    await message(make_writer)
    outbox = make_outbox()
    with structlog.testing.capture_logs() as logs:
        assert await outbox.deliver_due() is False
        assert await state(sql) == ("waiting", 1, "the receiver answers 500")
        assert await outbox.deliver_due() is None  # too early
        left_s = await sql.fetchval("SELECT extract(epoch FROM due_at - now()) FROM webhook_outbox")
        assert 1 < left_s <= 5
        await make_due(sql)
        assert await outbox.deliver_due() is False
        left_s = await sql.fetchval("SELECT extract(epoch FROM due_at - now()) FROM webhook_outbox")
        assert 3 < left_s <= 10
        await make_due(sql)
        assert await outbox.deliver_due() is True
    assert len({one.headers["webhook-id"] for one in receiver.received}) == 1
    assert len({one.body for one in receiver.received}) == 1
    assert len(receiver.received) == 3
    assert await state(sql) == ("delivered", 3, None)
    assert attempts(metrics) == {"delivered": 1, "failed": 2, "dead": 0}
    assert [line["event"] for line in logs] == ["webhook_failing", "webhook_recovered"]
    # Neither the secret nor a path, which may be one, is shown.
    assert not any(SECRET[6:] in str(line) or "t0ken" in str(line) for line in logs)


def test_pauses_grow_to_a_bound_and_differ() -> None:
    pauses = [[backoff_s(attempt) for _ in range(50)] for attempt in (1, 2, 5, 12, 1000)]
    bounds = [5, 10, 80, BACKOFF_MAX_S, BACKOFF_MAX_S]
    for several, bound in zip(pauses, bounds, strict=True):
        assert bound / 2 <= min(several) < max(several) <= bound


async def test_a_receiver_that_asks_for_time_gets_it(
    make_writer: MakeWriter, make_outbox: MakeOutbox, receiver: Receiver, sql: Connection
) -> None:
    async def busy(_: web.Request) -> web.StreamResponse:
        return web.Response(status=429, headers={"Retry-After": "600"})

    receiver.plays = [busy]
    await message(make_writer)
    await make_outbox().deliver_due()
    left_s = await sql.fetchval("SELECT extract(epoch FROM due_at - now()) FROM webhook_outbox")
    assert 590 < left_s <= 600


async def test_a_receiver_that_hangs_is_left(
    make_writer: MakeWriter, make_outbox: MakeOutbox, receiver: Receiver, sql: Connection
) -> None:
    async def hang(_: web.Request) -> web.StreamResponse:
        await asyncio.sleep(60)
        return web.Response()

    receiver.plays = [hang]
    await message(make_writer)
    assert await make_outbox(timeout="100ms").deliver_due() is False
    assert (await state(sql))[:2] == ("waiting", 1)


async def test_a_receiver_that_answers_byte_by_byte_is_left(
    make_writer: MakeWriter, make_outbox: MakeOutbox, sql: Connection
) -> None:
    left = asyncio.Event()

    async def drip(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        with contextlib.suppress(OSError):
            while not writer.is_closing():
                writer.write(b"x")
                await writer.drain()
                await asyncio.sleep(0.02)
        writer.close()
        left.set()

    server = await asyncio.start_server(drip, "127.0.0.1", 0)
    await message(make_writer)
    outbox = make_outbox(url=f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/", timeout="300ms")
    async with asyncio.timeout(20):
        assert await outbox.deliver_due() is False
        await left.wait()
    assert await state(sql) == ("waiting", 1, "no answer within 0.3 s")
    server.close()
    await server.wait_closed()


async def test_a_body_without_end_is_not_read(
    make_writer: MakeWriter, make_outbox: MakeOutbox, receiver: Receiver, sql: Connection
) -> None:
    async def flood(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        while True:
            await answer.write(b"x" * 65536)

    receiver.plays = [flood]
    await message(make_writer)
    assert await make_outbox().deliver_due() is True
    assert await state(sql) == ("delivered", 1, None)


async def test_nobody_there_is_a_failure_like_others(
    make_writer: MakeWriter, make_outbox: MakeOutbox, sql: Connection, free_port: int
) -> None:
    await message(make_writer)
    assert await make_outbox(url=f"http://127.0.0.1:{free_port}/").deliver_due() is False
    found = await state(sql)
    assert found[:2] == ("waiting", 1)
    assert str(found[2]).startswith("ConnectError: ")


async def test_a_redirect_is_not_followed(
    make_writer: MakeWriter, make_outbox: MakeOutbox, receiver: Receiver, sql: Connection
) -> None:
    async def elsewhere(_: web.Request) -> web.StreamResponse:
        raise web.HTTPTemporaryRedirect("/elsewhere")

    receiver.plays = [elsewhere]
    await message(make_writer)
    assert await make_outbox().deliver_due() is False
    assert receiver.elsewhere == 0
    assert await state(sql) == ("waiting", 1, "the receiver answers 307")


@pytest.mark.parametrize(
    ("answer", "settings"),
    [(500, {"attempts_max": 1}), (500, {"age_max": "1s"}), (410, {})],
    ids=["many", "old", "gone"],
)
async def test_a_message_is_given_up_and_that_is_said(
    make_writer: MakeWriter,
    make_outbox: MakeOutbox,
    receiver: Receiver,
    sql: Connection,
    metrics: Metrics,
    answer: int,
    settings: dict[str, object],
) -> None:
    receiver.plays = [answer]
    await message(make_writer)
    await sql.execute("UPDATE webhook_outbox SET queued_at = now() - interval '1 minute'")
    with structlog.testing.capture_logs() as logs:
        assert await make_outbox(**settings).deliver_due() is False
    assert await state(sql) == ("dead", 1, f"the receiver answers {answer}")
    assert attempts(metrics)["dead"] == 1
    [dead] = [line for line in logs if line["event"] == "webhook_dead"]
    assert (dead["account"], dead["attempts"]) == ("a", 1)
    await make_due(sql)
    assert await make_outbox().deliver_due() is None


async def test_a_certificate_that_nobody_vouches_for_is_refused(
    make_writer: MakeWriter,
    make_outbox: MakeOutbox,
    receiver: Receiver,
    sql: Connection,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: object,
) -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    app = web.Application()
    app.router.add_post("/hooks/t0ken", receiver.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    url = f"https://127.0.0.1:{runner.addresses[0][1]}/hooks/t0ken"
    try:
        await message(make_writer)
        assert await make_outbox(url=url).deliver_due() is False
        assert "CERTIFICATE_VERIFY_FAILED" in str((await state(sql))[2])
        assert receiver.received == []
        with authority.cert_pem.tempfile(dir=str(tmp_path)) as file:
            monkeypatch.setenv("SSL_CERT_FILE", file)
            trusting = make_outbox(url=url)
        await make_due(sql)
        assert await trusting.deliver_due() is True
    finally:
        await runner.cleanup()


async def test_a_worker_that_dies_with_a_message_leaves_it_to_the_next(
    make_writer: MakeWriter, make_outbox: MakeOutbox, receiver: Receiver, sql: Connection
) -> None:
    async def hang(_: web.Request) -> web.StreamResponse:
        await asyncio.sleep(60)
        return web.Response()

    receiver.plays = [hang]
    await message(make_writer)
    dying = asyncio.ensure_future(make_outbox().deliver_due())
    await receiver.wait_for(1)
    dying.cancel()
    await asyncio.wait({dying})
    other = make_outbox()
    assert await other.deliver_due() is None  # it is leased yet
    leased_s = await sql.fetchval("SELECT extract(epoch FROM due_at - now()) FROM webhook_outbox")
    assert 10 < leased_s <= 20
    await make_due(sql)
    assert await other.deliver_due() is True
    assert [one.headers["webhook-id"] for one in receiver.received] == [receiver.received[0].headers["webhook-id"]] * 2
    assert await state(sql) == ("delivered", 2, None)


async def test_an_attempt_that_fails_late_undoes_nothing(
    make_writer: MakeWriter, make_outbox: MakeOutbox, receiver: Receiver, sql: Connection
) -> None:
    go = asyncio.Event()

    async def late(_: web.Request) -> web.StreamResponse:
        await go.wait()
        return web.Response(status=410)

    receiver.plays = [late]
    await message(make_writer)
    slow = asyncio.ensure_future(make_outbox().deliver_due())
    await receiver.wait_for(1)
    await make_due(sql)
    assert await make_outbox().deliver_due() is True
    go.set()
    assert await slow is False
    assert await state(sql) == ("delivered", 2, None)


async def test_several_workers_share_a_queue_and_send_nothing_twice(
    make_writer: MakeWriter, make_outbox: MakeOutbox, receiver: Receiver, sql: Connection
) -> None:
    writer = make_writer(queued=lambda: None)
    for number in range(10):
        await writer.spend(f"account-{number}", 100)
    outboxes = [make_outbox() for _ in range(3)]
    for outbox in outboxes:
        outbox.start()
    await receiver.wait_for(30)
    for outbox in outboxes:
        await outbox.close()
    assert len({one.headers["webhook-id"] for one in receiver.received}) == len(receiver.received) == 30
    assert await sql.fetchval("SELECT count(*) FROM webhook_outbox WHERE state = 'delivered'") == 30


async def test_what_another_worker_is_just_claiming_is_passed_over(
    make_writer: MakeWriter, make_outbox: MakeOutbox, receiver: Receiver, sql: Connection
) -> None:
    await message(make_writer, cents=85)
    async with sql.transaction():
        [claimed] = await sql.fetch(QUERIES["outbox_claim"], 1, 30.0)
        assert await make_outbox().deliver_due() is True
    [received] = receiver.received
    assert received.headers["webhook-id"] != claimed["id"]


async def test_what_is_queued_is_delivered_at_once(
    make_writer: MakeWriter, make_outbox: MakeOutbox, receiver: Receiver
) -> None:
    outbox = make_outbox(poll_s=3600)
    outbox.start()
    await asyncio.sleep(0.05)  # it looks, finds nothing, and waits for an hour
    await make_writer(queued=outbox.wake).spend("a", 55)
    await receiver.wait_for(1)
