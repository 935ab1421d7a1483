"""New rules while a call is identified or admitted: the call is theirs, and what was taken for it is given back."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from gateway.accounts import Account
from gateway.admission import Ask
from gateway.credentials import Credentials
from gateway.policy.rules import SHADOW, Cost, Idempotency, LogLines, Plan, Policy, RateLimit, Rules
from gateway.policy.verdicts import PASS, Hold, RateLimited
from gateway.policy.weights import HeaderWeight
from tests.relay.conftest import Running, answering

CALL = b"POST /v1/cast HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer key\r\nContent-Length: 0\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def rules(version: str, *policies: Policy) -> Rules:
    return Rules(version=version, policies=policies, plans={"free": Plan(name="free")}, default_plan="free")


def cast(name: str, cents: int, *limits: RateLimit, path: str = "/v1/cast") -> Policy:
    cost = Cost(fixed_microcents=cents * 1_000_000)
    return Policy(name=name, methods=frozenset(), path=path, cost=cost, rate_limits=limits)


class Services:
    """Identity, admission and ledger whose answers the test gives when it likes."""

    def __init__(self) -> None:
        self.lookups: asyncio.Queue[Any] = asyncio.Queue()
        self.asks: asyncio.Queue[Ask] = asyncio.Queue()
        self.voided: list[Hold] = []
        self.events: list[Any] = []
        self.refuses = False

    def doubt_about(self, *_: object) -> None:
        return None

    def credentials_from(self, *_: object) -> Credentials:
        return Credentials(b"key", None, None)

    def met_with(self, _: bytes) -> None:
        return None

    def remember(self, *_: object) -> None:
        return None

    def cached(self, *_: object) -> None:
        return None

    def resolve(self, _: Credentials, done: Any) -> None:
        self.lookups.put_nowait(done)

    def ask(self, ask: Ask) -> None:
        self.asks.put_nowait(ask)

    def void(self, hold: Hold) -> None:
        self.voided.append(hold)

    def finished(self, hold: Hold, *_: int) -> None:
        """The charge is in the event."""

    def append(self, event: Any) -> None:
        self.events.append(event)


@pytest.fixture
def services(running: Running) -> Services:
    made: Any = Services()
    running.relay.identify = running.relay.admission = running.relay.ledger = made
    running.upstream.answer = answering(ANSWER)
    services: Services = made
    return services


def hold(ask: Ask, hold_id: str) -> Hold:
    return Hold(hold_id=hold_id, account_id="a", amount_microcents=ask.hold_microcents, admitted_ms=0)


async def test_rules_that_come_while_a_call_is_identified_decide_it(running: Running, services: Services) -> None:
    running.relay.use(rules("old", cast("old", 1)))
    client = await running.connect()
    await client.send(CALL)
    identified = await services.lookups.get()
    running.relay.use(rules("new", cast("new", 2)))
    identified(Account("a"))
    ask = await services.asks.get()
    assert (ask.policy.name, ask.hold_microcents) == ("new", 2_000_000)
    ask.done(PASS)
    assert b"200 OK" in await client.read_head()
    assert [event.policy for event in services.events] == ["new"]


async def test_a_verdict_by_rules_that_are_gone_is_set_aside(running: Running, services: Services) -> None:
    running.relay.use(rules("old", cast("old", 1)))
    client = await running.connect()
    await client.send(CALL)
    (await services.lookups.get())(Account("a"))
    old = await services.asks.get()
    running.relay.use(rules("new", cast("new", 2)))
    taken = hold(old, "1" * 32)
    old.done(taken)
    assert services.voided == [taken]
    new = await services.asks.get()
    assert new.policy.name == "new"
    new.done(hold(new, "2" * 32))
    assert b"200 OK" in await client.read_head()
    assert [(event.policy, event.cost_microcents) for event in services.events] == [("new", 2_000_000)]


async def test_a_denial_by_rules_that_are_gone_is_no_denial(running: Running, services: Services) -> None:
    running.relay.use(rules("old", cast("old", 1)))
    client = await running.connect()
    await client.send(CALL)
    (await services.lookups.get())(Account("a"))
    old = await services.asks.get()
    running.relay.use(rules("new"))  # under no policy now: relayed untouched
    old.done(RateLimited(policy="old", limit_name="l", limit=1, window_ms=1000, retry_after_ms=1))
    assert b"200 OK" in await client.read_head()
    assert services.events == []


async def test_a_path_that_has_become_doubtful_meanwhile_is_refused(running: Running, services: Services) -> None:
    running.relay.use(rules("old", cast("old", 1)))
    client = await running.connect()
    await client.send(CALL)
    identified = await services.lookups.get()
    running.relay.use(rules("new", cast("new", 1, path="/V1/cast")))
    identified(Account("a"))
    assert b"400 Bad Request" in await client.read_head()


@pytest.mark.parametrize("bytes_max", [(None, 2), (2, None)])
async def test_the_body_limit_is_that_of_the_new_rules(
    running: Running, services: Services, bytes_max: tuple[int | None, int | None]
) -> None:
    async def answer(_head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"0\r\n\r\n")
        writer.write(ANSWER)

    running.upstream.answer = answer
    old, new = (replace(cast("cast", 1), body_bytes_max=limit) for limit in bytes_max)
    running.relay.use(rules("old", old))
    client = await running.connect()
    await client.send(CALL.replace(b"Content-Length: 0", b"Transfer-Encoding: chunked") + b"1\r\na\r\n")
    identified = await services.lookups.get()
    running.relay.use(rules("new", new))
    identified(Account("a"))
    (await services.asks.get()).done(PASS)
    await client.send(b"2\r\nbc\r\n0\r\n\r\n")
    expected = b" 200 " if new.body_bytes_max is None else b" 413 "
    assert expected in await client.read_head()


async def test_the_next_call_with_the_same_head_is_that_of_the_new_rules(running: Running, services: Services) -> None:
    noted = []
    running.relay.noteworthy = lambda exchange, status, *_: noted.append((exchange.policy, status))
    old = cast("cast", 1)
    new = replace(cast("cast", 2), log=LogLines(status_min=200))  # of the same name, and for the same status
    client = await running.connect()
    for number, policy in enumerate((old, old, new, old)):
        running.relay.use(rules(str(number), policy))
        await client.send(CALL)
        (await services.lookups.get())(Account("a"))
        ask = await services.asks.get()
        ask.done(hold(ask, str(number) * 32))
        assert b"200 OK" in await client.read_head()
        await client.read(2)
    assert [event.cost_microcents for event in services.events] == [1_000_000, 1_000_000, 2_000_000, 1_000_000]
    assert noted == [(new, 200)]


async def test_the_next_body_with_the_same_head_has_the_limit_of_the_new_rules(
    running: Running, services: Services
) -> None:
    call = CALL.replace(b"Content-Length: 0", b"Content-Length: 3") + b"abc"
    client = await running.connect()
    for number, (bytes_max, status) in enumerate(((None, b" 200 "), (3, b" 200 "), (2, b" 413 "))):
        running.relay.use(rules(str(number), replace(cast("cast", 1), body_bytes_max=bytes_max)))
        await client.send(call)
        if status == b" 200 ":
            (await services.lookups.get())(Account("a"))
            (await services.asks.get()).done(PASS)
        assert status in await client.read_head()
        await client.read(2)


async def test_a_key_that_only_the_old_rules_ask_for_is_none(running: Running, services: Services) -> None:
    old = replace(cast("cast", 1), idempotency=Idempotency(header="idempotency-key", life_ms=1000))
    running.relay.use(rules("old", old))
    client = await running.connect()
    await client.send(CALL.replace(b"Host", b"Idempotency-Key: seven\r\nHost"))
    (await services.lookups.get())(Account("a"))
    before = await services.asks.get()
    running.relay.use(rules("new", cast("cast", 1)))
    before.done(PASS)
    after = await services.asks.get()
    after.done(PASS)
    assert b"200 OK" in await client.read_head()
    assert (before.key != "", after.key) == (True, "")
    assert [event.terms for event in services.events] == [None]


async def test_more_than_may_wait_stops_the_reading_however_well_its_head_is_known(
    running: Running, services: Services
) -> None:
    running.limit(buffered_bytes_max=1000)
    running.relay.use(rules("one", cast("cast", 1)))
    call = CALL.replace(b"Content-Length: 0", b"Content-Length: 5000") + bytes(5000)
    client = await running.connect()
    for _ in range(3):
        await client.send(call)
        identified = await services.lookups.get()
        await asyncio.sleep(0)
        assert [connection.reading_paused for connection in running.relay._connections] == [True]
        identified(Account("a"))
        (await services.asks.get()).done(PASS)
        assert b"200 OK" in await client.read_head()
        await client.read(2)


async def test_a_cheap_call_does_not_become_another_by_an_override(running: Running, services: Services) -> None:
    cheap, dear = cast("cheap", 1, path="/v1/cheap"), cast("dear", 9)
    running.relay.use(rules("both", cheap, dear))
    call = CALL.replace(b"/v1/cast", b"/v1/cheap")
    for field in (b"X-Original-URL: /v1/cast", b"X-Rewrite-URL: /V1/cast/"):
        client = await running.connect()
        await client.send(call.replace(b"Host: a", b"Host: a\r\n" + field))
        assert b"400 Bad Request" in await client.read_head()
    client = await running.connect()
    await client.send(call.replace(b"Host: a", b"Host: a\r\nX-Original-URL: /v1/cheap"))
    (await services.lookups.get())(Account("a"))
    assert (await services.asks.get()).policy is cheap


async def test_an_override_leads_to_no_policy_that_has_come_meanwhile(running: Running, services: Services) -> None:
    running.relay.use(rules("old", cast("old", 1)))
    client = await running.connect()
    await client.send(CALL.replace(b"Host: a", b"Host: a\r\nX-Original-URL: /v1/dear"))
    identified = await services.lookups.get()
    running.relay.use(rules("new", cast("dear", 9, path="/v1/dear")))
    identified(Account("a"))
    assert b"400 Bad Request" in await client.read_head()


async def test_an_admitted_call_keeps_its_rules(running: Running, services: Services) -> None:
    running.relay.use(rules("old", cast("old", 1)))
    arrived = asyncio.Event()

    async def slowly(_head: bytes, _reader: object, writer: asyncio.StreamWriter) -> None:
        await arrived.wait()
        writer.write(ANSWER)

    running.upstream.answer = slowly
    client = await running.connect()
    await client.send(CALL)
    (await services.lookups.get())(Account("a"))
    ask = await services.asks.get()
    ask.done(hold(ask, "1" * 32))
    await running.upstream.asked.wait()
    running.relay.use(rules("new", cast("new", 2)))
    arrived.set()
    assert b"200 OK" in await client.read_head()
    assert services.voided == []
    assert [(event.policy, event.cost_microcents) for event in services.events] == [("old", 1_000_000)]


async def test_a_verdict_after_the_call_was_told_that_nothing_is_charged_charges_nothing(
    running: Running, services: Services
) -> None:
    cost = Cost(fixed_microcents=1_000_000, charge_when="always")
    running.relay.use(rules("one", replace(cast("cast", 1), cost=cost)))
    client = await running.connect()
    await client.send(CALL)
    (await services.lookups.get())(Account("a"))
    late = await services.asks.get()
    running.pass_time(60)
    assert b" 503 " in await client.read_head()
    assert b"Nothing was charged" in await client.read_until(b"}")
    taken = hold(late, "1" * 32)
    late.done(taken)
    assert services.voided == [taken]
    assert services.events == []


async def test_what_is_charged_though_never_sent_has_the_id_that_came_with_it(
    running: Running, services: Services
) -> None:
    cost = Cost(fixed_microcents=1_000_000, charge_when="always")
    running.relay.use(rules("one", replace(cast("cast", 1), cost=cost)))
    running.upstream.port = 1  # nobody listens there
    client = await running.connect()
    await client.send(CALL.replace(b"Host", b"X-Request-Id: seven\r\nHost"))
    (await services.lookups.get())(Account("a"))
    ask = await services.asks.get()
    ask.done(hold(ask, "1" * 32))
    assert b" 502 " in await client.read_head()
    assert [(event.upstream_status, event.request_id) for event in services.events] == [(0, "seven")]


async def test_a_limit_in_shadow_is_left_out_and_the_rest_asked(running: Running, services: Services) -> None:
    tried = RateLimit(name="tried", key="account", limit=1, window_ms=1000, algorithm="fixed_window", mode=SHADOW)
    kept = RateLimit(name="kept", key="ip", limit=1, window_ms=1000, algorithm="fixed_window")
    running.relay.use(rules("one", cast("cast", 1, tried, kept)))
    client = await running.connect()
    rests = []
    for _ in range(2):
        await client.send(CALL)
        (await services.lookups.get())(Account("a"))
        ask = await services.asks.get()
        ask.done(RateLimited(policy="cast", limit_name="tried", limit=1, window_ms=1000, retry_after_ms=1))
        rest = await services.asks.get()
        assert [limit.name for limit in rest.policy.rate_limits] == ["kept"]
        assert rest.rate_keys == ("127.0.0.1",)
        rests.append(rest.policy)
        rest.done(RateLimited(policy="cast", limit_name="kept", limit=1, window_ms=1000, retry_after_ms=1))
        assert b"429 " in await client.read_head()
        await client.read_until(b"}")
    assert rests[0] is rests[1]  # admission knows a policy by its identity


async def test_a_call_weighs_what_the_service_behind_is_told_too(running: Running, services: Services) -> None:
    by_call = HeaderWeight(field="x-units", default=9, maximum=50)
    limit = RateLimit(name="u", key="account", limit=100, window_ms=1000, algorithm="fixed_window", weight=by_call)
    running.relay.use(rules("one", cast("cast", 1, limit, replace(limit, name="v", weight=3))))
    client = await running.connect()
    for fields, weight, told in (
        (b"X-Units: 7", 7, b"X-Units: 7"),
        (b"X-Units: 7\r\nX-Units: 1", 50, b"X-Units: 1"),
        (b"X-Units: 1\r\nConnection: x-units", 9, b""),  # the field ends here
    ):
        await client.send(CALL.replace(b"Host: a", b"Host: a\r\n" + fields))
        (await services.lookups.get())(Account("a"))
        ask = await services.asks.get()
        assert ask.weights == (weight, 3)
        ask.done(PASS)
        await client.read_head()
        await client.read(2)
        assert (told in running.upstream.heads[-1]) if told else (b"X-Units" not in running.upstream.heads[-1])


async def test_the_body_of_a_refused_call_is_not_sent_with_the_next(running: Running, services: Services) -> None:
    running.relay.use(rules("one", cast("cast", 1)))
    client = await running.connect()
    call = CALL.replace(b"Content-Length: 0", b"Content-Length: 5") + b"lumos"
    verdicts = [PASS, RateLimited(policy="cast", limit_name="l", limit=1, window_ms=1000, retry_after_ms=1)]
    for verdict in (*verdicts, *verdicts, PASS):
        await client.send(call)
        (await services.lookups.get())(Account("a"))
        (await services.asks.get()).done(verdict)
        head = await client.read_head()
        assert head.startswith(b"HTTP/1.1 200" if verdict is PASS else b"HTTP/1.1 429")
        await client.read(int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]))
    # What the upstream reads as heads are heads, each after one body.
    assert [head[:5] for head in running.upstream.heads] == [b"POST "] * 3
