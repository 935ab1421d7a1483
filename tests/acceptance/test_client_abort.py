"""A client that hangs up: its call at the upstream ends or goes on, and costs what the policy says."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import aiohttp
import pytest

from gateway.embedded import free_port
from tests.acceptance.conftest import Fleet
from tests.gateways import ROOT, RunningGateway, running_gateway
from tests.upstream_stub.running import Account

CHOICES = ("charge", "finish", "void")
POLICY = """
  - name: {0}
    match: {{path: /{0}/*}}
    cost: {{fixed: {{cents: 1}}}}
    on_client_abort: {0}
"""
SMALL = """
  - name: small
    match: {path: /small}
    cost: {fixed: {cents: 1}}
    body_bytes_max: 1KiB
"""


class Streaming:
    """Answers in two pieces, when it is told to, and notes whether it could send them."""

    def __init__(self) -> None:
        self.asked, self.head, self.tail = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.breaks_off = False
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        self.asked.set()
        hung_up = asyncio.ensure_future(reader.read(-1))
        try:
            for go_on, piece in (
                (self.head, b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\nhello "),
                (self.tail, b"world"),
            ):
                wait = asyncio.ensure_future(go_on.wait())
                await asyncio.wait((wait, hung_up), return_when=asyncio.FIRST_COMPLETED)
                wait.cancel()
                if hung_up.done() or self.breaks_off:
                    raise ConnectionResetError
                writer.write(piece)
                await writer.drain()
            self.ended.set_result("in full")
        except ConnectionError:
            self.ended.set_result("cut off")
        finally:
            hung_up.cancel()
            await asyncio.gather(hung_up, return_exceptions=True)
            writer.close()


@pytest.fixture(scope="module")
def port_of_upstream() -> int:
    return free_port()


@pytest.fixture(scope="module")
def gateway(fleet: Fleet, port_of_upstream: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    folder = tmp_path_factory.mktemp("abort")
    (folder / "policies").mkdir()
    policies = "policies:" + "".join(POLICY.format(choice) for choice in CHOICES) + SMALL
    (folder / "policies" / "all.yaml").write_text(policies + "plans: {free: {}}\n")
    (folder / "config.yaml").write_text((ROOT / "config.yaml").read_text())
    with running_gateway(
        database_url=fleet.database_url,
        redis_url=fleet.redis_url,
        upstream_url=f"http://127.0.0.1:{port_of_upstream}",
        config=folder / "config.yaml",
    ) as running:
        yield running


@asynccontextmanager
async def streaming(port: int) -> AsyncIterator[Streaming]:
    upstream = Streaming()
    server = await asyncio.start_server(upstream.serve, "127.0.0.1", port)
    yield upstream
    server.close()
    await server.wait_closed()


async def begin(
    gateway: RunningGateway, account: Account, path: str, framing: str = ""
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    port = int(gateway.base_url.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    credentials = f"Authorization: Bearer {account.api_key}\r\n"
    writer.write(f"POST {path} HTTP/1.1\r\nHost: h\r\n{credentials}{framing or 'Content-Length: 0'}\r\n\r\n".encode())
    await writer.drain()
    return reader, writer


async def budget_of(gateway: RunningGateway, account: Account) -> tuple[float, float]:
    """What is used and held of the account's monthly budget, in cents."""
    headers = {"Authorization": f"Bearer {account.api_key}"}
    url = f"{gateway.base_url}/v1/budgets"
    async with aiohttp.ClientSession() as session, session.get(url, headers=headers) as answer:
        [budget] = (await answer.json())["budgets"]
    return budget["used_cents"], budget["held_cents"]


async def settled(gateway: RunningGateway, account: Account) -> float:
    """What the account has paid once nothing is held any more."""
    async with asyncio.timeout(15):
        while True:
            used, held = await budget_of(gateway, account)
            if held == 0:
                return used
            await asyncio.sleep(0.02)


async def statuses_in_ledger(fleet: Fleet, account: Account) -> list[int]:
    rows = await fleet.sql("SELECT upstream_status FROM usage_events WHERE account_id = $1", account.user_id)
    return [row[0] for row in rows]


async def hang_up(writer: asyncio.StreamWriter) -> None:
    writer.close()
    await writer.wait_closed()


async def test_before_the_answer(fleet: Fleet, gateway: RunningGateway, port_of_upstream: int) -> None:
    expected = {
        "charge": (1, [200], "cut off"),  # charged at once, as if it had been answered
        "finish": (1, [200], "in full"),
        "void": (0, [], "cut off"),
    }
    for choice, (cents, statuses, ending) in expected.items():
        account = await fleet.account(monthly_cents=10)
        async with streaming(port_of_upstream) as upstream:
            _, writer = await begin(gateway, account, f"/{choice}/call")
            await asyncio.wait_for(upstream.asked.wait(), 10)
            assert await budget_of(gateway, account) == (0, 1), choice
            await hang_up(writer)
            if choice == "finish":
                assert await budget_of(gateway, account) == (0, 1), "it is still being answered"
                upstream.head.set()
                upstream.tail.set()
            assert await asyncio.wait_for(upstream.ended, 10) == ending, choice
            assert await settled(gateway, account) == cents, choice
            assert await statuses_in_ledger(fleet, account) == statuses, choice


async def test_in_the_middle_of_the_answer(fleet: Fleet, gateway: RunningGateway, port_of_upstream: int) -> None:
    expected = {
        "charge": (1, [200], "cut off"),
        "finish": (1, [200], "in full"),
        "void": (0, [], "cut off"),
    }
    for choice, (cents, statuses, ending) in expected.items():
        account = await fleet.account(monthly_cents=10)
        async with streaming(port_of_upstream) as upstream:
            reader, writer = await begin(gateway, account, f"/{choice}/call")
            upstream.head.set()
            await asyncio.wait_for(reader.readuntil(b"hello "), 10)
            await hang_up(writer)
            if choice == "finish":
                upstream.tail.set()
            assert await asyncio.wait_for(upstream.ended, 10) == ending, choice
            assert await settled(gateway, account) == cents, choice
            assert await statuses_in_ledger(fleet, account) == statuses, choice


async def test_to_finish_an_upload_that_was_not_whole_would_be_to_cast_something_else(
    fleet: Fleet, gateway: RunningGateway, port_of_upstream: int
) -> None:
    for choice, cents in (("charge", 1), ("finish", 0), ("void", 0)):
        account = await fleet.account(monthly_cents=10)
        async with streaming(port_of_upstream) as upstream:
            _, writer = await begin(gateway, account, f"/{choice}/call", "Content-Length: 100")
            await asyncio.wait_for(upstream.asked.wait(), 10)
            await hang_up(writer)
            assert await asyncio.wait_for(upstream.ended, 10) == "cut off", choice
            assert await settled(gateway, account) == cents, choice


async def test_an_answer_that_fails_after_the_client_has_left_is_not_charged(
    fleet: Fleet, gateway: RunningGateway, port_of_upstream: int
) -> None:
    account = await fleet.account(monthly_cents=10)
    async with streaming(port_of_upstream) as upstream:
        _, writer = await begin(gateway, account, "/finish/call")
        await asyncio.wait_for(upstream.asked.wait(), 10)
        await hang_up(writer)
        upstream.breaks_off = True
        assert await budget_of(gateway, account) == (0, 1)
        upstream.head.set()
        assert await asyncio.wait_for(upstream.ended, 10) == "cut off"
        assert await settled(gateway, account) == 0
        assert await statuses_in_ledger(fleet, account) == []


async def test_a_body_that_its_policy_does_not_take_costs_nothing(
    fleet: Fleet, gateway: RunningGateway, port_of_upstream: int
) -> None:
    account = await fleet.account(monthly_cents=10)
    async with streaming(port_of_upstream) as upstream:
        reader, writer = await begin(gateway, account, "/small", "Content-Length: 1025")
        assert (await reader.read(-1)).startswith(b"HTTP/1.1 413 ")
        assert not upstream.asked.is_set()
        await hang_up(writer)
        reader, writer = await begin(gateway, account, "/small", "Transfer-Encoding: chunked")
        writer.write(b"400\r\n%b\r\n" % bytes(1024))
        await asyncio.wait_for(upstream.asked.wait(), 10)
        assert await budget_of(gateway, account) == (0, 1)
        writer.write(b"1\r\nx\r\n")
        assert (await reader.read(-1)).startswith(b"HTTP/1.1 413 ")
        await hang_up(writer)
        assert await asyncio.wait_for(upstream.ended, 10) == "cut off"
    assert await settled(gateway, account) == 0
    assert await statuses_in_ledger(fleet, account) == []
