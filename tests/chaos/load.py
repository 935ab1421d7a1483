"""Random load: clients that cast for accounts, wait, hang up, ask for slow answers and errors; and all they were told.

Each client keeps one connection to one gateway, and so to one of its workers, for as long as it lasts.
"""

import asyncio
import contextlib
import json
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

ANSWER_S = 45.0
RECONNECT_S = 0.05
# What became of a call, where it is not a status.
CUT, HUNG_UP, NO_ANSWER, UNDER_WAY = "connection lost", "hung up", "no answer", "under way"
REFUSED = "not connected"  # never sent


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    period: str
    limit: int  # casts, for one costs a cent
    time_zone: str = "UTC"


@dataclass(slots=True, kw_only=True, eq=False)
class Account:
    account_id: str
    api_key: str
    budgets: tuple[Budget, ...]
    plan: str = "unlimited"
    calls: "list[Call]" = field(default_factory=list)


@dataclass(slots=True, kw_only=True, eq=False)
class Call:
    call_id: str
    account: Account
    gateway: int
    fault: str  # what was asked of the service
    sent_s: float  # since 1970
    ended_s: float = 0.0
    result: "int | str" = UNDER_WAY
    body: str = ""

    def shown(self) -> str:
        took = f"{self.ended_s - self.sent_s:.3f}" if self.ended_s else "-"
        asked = f" ({self.fault})" if self.fault else ""
        return f"{self.sent_s:.3f} +{took} gateway {self.gateway} {self.call_id}{asked}: {self.result} {self.body}"


class Client:
    """One connection, one call at a time."""

    def __init__(self, number: int, gateway: int, port: int) -> None:
        self.number = number
        self.gateway = gateway
        self._port = port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._calls = 0

    async def call(self, account: Account, fault: str = "", hang_up_s: float = 0.0) -> Call:
        """Cast once; nothing is ever sent twice. Waits until there is a connection."""
        self._calls += 1
        call = Call(
            call_id=f"{self.number}-{self._calls}", account=account, gateway=self.gateway, fault=fault,
            sent_s=time.time(),
        )  # fmt: skip
        if self._reader is not None and self._reader.at_eof():
            self.close()
        if self._writer is None or self._writer.is_closing():
            try:
                self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
            except OSError:
                call.result, call.ended_s = REFUSED, time.time()
                await asyncio.sleep(RECONNECT_S)
                return call
            call.sent_s = time.time()
        account.calls.append(call)
        assert self._reader is not None
        try:
            async with asyncio.timeout(hang_up_s or ANSWER_S):
                self._writer.write(_request(call))
                call.result, call.body = await _answer(self._reader)
        except TimeoutError:
            call.result = HUNG_UP if hang_up_s else NO_ANSWER
            self.close()
        except (OSError, EOFError, ValueError) as error:
            call.result, call.body = CUT, repr(error)
            self.close()
        call.ended_s = time.time()
        return call

    def close(self) -> None:
        if self._writer is not None:
            with contextlib.suppress(OSError):
                self._writer.transport.abort()
            self._writer = None


def _request(call: Call) -> bytes:
    body = json.dumps({"input": call.call_id}).encode()
    fault = f"X-Stub-Fault: {call.fault}\r\n" if call.fault else ""
    head = (
        f"POST /v1/cast HTTP/1.1\r\nHost: castgate\r\nAuthorization: Bearer {call.account.api_key}\r\n"
        f"Content-Type: application/json\r\n{fault}Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def _answer(reader: asyncio.StreamReader) -> tuple[int, str]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    status = int(head.split(" ", 2)[1])
    length = 0
    for line in head.split("\r\n")[1:]:
        name, _, value = line.partition(":")
        if name.lower() == "content-length":
            length = int(value)
    return status, (await reader.readexactly(length)).decode()


class Load:
    """Clients at work on the accounts that are at hand."""

    def __init__(self, clients: Sequence[Client], seed: int) -> None:
        self.clients = clients
        self.accounts: list[Account] = []  # the first ones more often
        self.results: Counter[int | str] = Counter()
        self.pause_s = 0.06
        self._random = random.Random(seed)
        self._tasks: list[asyncio.Task[None]] = []
        self._ended = False

    def start(self) -> None:
        self._ended = False
        self._tasks = [asyncio.create_task(self._work(client)) for client in self.clients]

    async def end(self) -> None:
        """Every call that was begun gets its answer."""
        self._ended = True
        await asyncio.gather(*self._tasks)

    async def _work(self, client: Client) -> None:
        chance = self._random
        while not self._ended:
            if not self.accounts:
                await asyncio.sleep(self.pause_s)
                continue
            place = min(int(chance.expovariate(2.5) * len(self.accounts)), len(self.accounts) - 1)
            fault, hang_up_s = self._fault()
            call = await client.call(self.accounts[place], fault, hang_up_s)
            self.results[call.result] += 1
            await asyncio.sleep(chance.choice((0, chance.uniform(0, 2), chance.uniform(0, 2))) * self.pause_s)

    def _fault(self) -> tuple[str, float]:
        chance = self._random.random()
        if chance < 0.04:
            return "status=503", 0.0
        if chance < 0.10:
            return f"delay={self._random.randrange(20, 400)}ms", 0.0
        if chance < 0.13:
            return f"delay={self._random.randrange(50, 150)}ms", self._random.uniform(0.005, 0.05)
        return "", 0.0


async def introduce(clients: Sequence[Client], accounts: Sequence[Account]) -> list[Call]:
    """Every client, and so every worker, meets every account; nothing is charged for it.

    All connect anew: a worker that took the place of another has nobody yet, for its clients went to its neighbour.
    """

    async def meet(client: Client) -> list[Call]:
        client.close()
        return [await client.call(account, "status=503") for account in accounts]

    return [call for calls in await asyncio.gather(*(meet(client) for client in clients)) for call in calls]


async def spend_all(clients: Sequence[Client], accounts: Sequence[Account], casts_max: int) -> None:
    """Cast for each account, one after the other, until its budget is spent."""
    waiting = list(accounts)

    async def spend(client: Client) -> None:
        while waiting:
            account = waiting.pop()
            for _ in range(casts_max):
                call = await client.call(account)
                if call.result != 200:
                    break

    await asyncio.gather(*(spend(client) for client in clients))
