"""A head of which only plain values are new is not parsed again: nobody may be able to tell."""

import random
import re
from dataclasses import replace
from typing import Any

import pytest

from gateway.accounts import Account
from gateway.admission import Ask
from gateway.credentials import Credentials, key_in_header
from gateway.identify import Met
from gateway.policy.rules import Cost, Plan, Policy, Rules
from gateway.policy.verdicts import PASS
from gateway.relay import request_reader as reader_module
from gateway.relay.alike import CHANGES_MAX
from tests.relay.conftest import Running, answering

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
# Fields and their values: what may differ, what may not, and what the parser takes, changes or refuses.
FIELDS: dict[bytes, tuple[bytes, ...]] = {
    b"Authorization": (b"Bearer a", b"Bearer b", b"Bearer long-one", b"Basic x", b"", b" Bearer a ", b"Bear\xe9r"),
    b"X-API-Key": (b"one", b"two", b""),
    b"X-Request-Id": (b"1", b"2", b"33"),
    b"X-Trace": (b"1", b"2", b"3", b"with blanks", b" led by one", b"ended by one ", b"\xff", b"tab\there"),
    b"x-trace": (b"1", b"2"),
    b"User-Agent": (b"curl", b"wget"),
    b"Connection": (b"keep-alive", b"X-Trace", b"x-trace, User-Agent", b"Via", b"close"),
    b"Via": (b"1.1 here", b"1.1 there"),
    b"X-Forwarded-For": (b"10.0.0.1", b"10.0.0.2"),
    b"X-Forwarded-Host": (b"a", b"b"),
    b"X-HTTP-Method-Override": (b"PUT", b"GET"),
    b"Cookie": (b"a=1", b"a=2"),
    b"TE": (b"trailers", b"gzip"),
    b"Content_Length": (b"3",),
    b"Expect": (b"100-continue", b"x"),
    b"Transfer-Encoding": (b"chunked", b"gzip"),
}
SEPARATORS = (*[b": "] * 12, b":", b":\t", b":  ")

COMPARED = 500


def head_of(lines: list[tuple[bytes, bytes, bytes]]) -> bytes:
    fields = b"".join(name + separator + value + b"\r\n" for name, separator, value in lines)
    return b"POST /x HTTP/1.1\r\nHost: h\r\n%bContent-Length: 2\r\n\r\n" % fields


def picked(dice: random.Random) -> list[tuple[bytes, bytes, bytes]]:
    names = dice.choices(list(FIELDS)[:8], k=dice.randint(1, 4)) + dice.choices(list(FIELDS), k=dice.randint(0, 1))
    return [(name, dice.choice(SEPARATORS), dice.choice(FIELDS[name])) for name in names]


def altered(
    dice: random.Random, lines: list[tuple[bytes, bytes, bytes]], place: int
) -> list[tuple[bytes, bytes, bytes]]:
    """Mostly another value at ``place``; now and then anything else."""
    changed = list(lines)
    for where in [place] if dice.random() < 0.8 else dice.choices(range(len(changed)), k=2):
        name, separator, _ = changed[where]
        changed[where] = name, separator, dice.choice(FIELDS[name])
    if dice.random() < 0.05:
        dice.shuffle(changed)
    return changed + picked(dice) if dice.random() < 0.05 else changed


async def test_what_goes_on_is_what_would_have_gone_on_from_a_connection_of_its_own(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = 0

    def counted(*words: Any) -> bytes:
        nonlocal taken
        head = become(*words)
        taken += head != b""
        return head

    running.relay.forwarding = replace(running.relay.forwarding, via=b"here")
    become = reader_module.become
    monkeypatch.setattr(reader_module, "become", counted)
    running.upstream.answer = answering(ANSWER)

    async def carried(*requests: bytes) -> tuple[bytes, bytes]:
        """The last one's head as the service got it, and the status it was answered with."""
        client = await running.connect()
        status = b""
        for request in requests:
            running.upstream.heads.clear()
            await client.send(request)
            status = (await client.read_head())[:12]
            if status.endswith(b"200"):
                await client.read(2)
        client.writer.close()
        head = running.upstream.heads[-1] if running.upstream.heads else b""
        return re.sub(rb"X-Request-Id: [0-9a-f-]{32,}\r\n", b"", head), status

    dice = random.Random(7)
    compared = 0
    while compared < COMPARED:
        lines = picked(dice)
        place, requests = dice.randrange(len(lines)), [head_of(lines) + b"ab"]
        while len(requests) < 5:
            if (await carried(requests[-1]))[1] != b"HTTP/1.1 200" or re.search(b"close|Expect", requests[-1]):
                break
            lines = altered(dice, lines, place)
            requests.append(head_of(lines) + b"%02d" % len(requests))
            compared += 1
            assert await carried(*requests) == await carried(requests[-1]), requests
    assert taken > COMPARED / 8


class Services:
    """Identity that knows every key, and admission that lets everything pass."""

    def __init__(self) -> None:
        self.met: dict[bytes, Met] = {}
        self.reads = 0
        self.asks: list[Ask] = []
        self.refuses = False  # as the ledger

    def doubt_about(self, *_: object) -> None:
        return None

    def credentials_from(self, header: bytes | None, alternative: bytes | None, cookie: bytes | None) -> Credentials:
        self.reads += 1
        return Credentials(key_in_header(header, b"bearer"), alternative, cookie)

    def met_with(self, authorization: bytes) -> Met | None:
        return self.met.get(authorization)

    def remember(self, authorization: bytes, credentials: Credentials) -> Met:
        return self.met.setdefault(authorization, Met(credentials, self.cached(credentials, None), 0.0))

    def cached(self, credentials: Credentials, met: Met | None) -> Account:
        return Account(repr(tuple(credentials))) if met is None else met.account

    def ask(self, ask: Ask) -> None:
        self.asks.append(ask)
        ask.done(PASS)

    def append(self, _: object) -> None:
        """Whatever is charged."""


@pytest.fixture
def services(running: Running) -> Services:
    made: Any = Services()
    running.relay.identify = running.relay.admission = running.relay.ledger = made
    running.upstream.answer = answering(ANSWER)
    policy = Policy(name="x", methods=frozenset({"POST"}), path="/x", cost=Cost())
    running.relay.use(Rules(version="1", policies=(policy,), plans={"free": Plan(name="free")}, default_plan="free"))
    services: Services = made
    return services


async def statuses(running: Running, *fields: bytes, line: bytes = b"POST /x HTTP/1.1\r\n") -> list[bytes]:
    """Of requests with these field lines, one after the other on one connection until it closes."""
    client = await running.connect()
    found = []
    for one in fields:
        await client.send(line + one + b"Content-Length: 0\r\n\r\n")
        found.append((await client.read_head())[9:12])
        if found[-1] != b"200":
            break
        await client.read(2)
    return found


async def test_a_call_with_another_key_is_another_account_s(running: Running, services: Services) -> None:
    shown = [
        (b"Bearer a", b"1", b"s=1"), (b"Bearer bcd", b"1", b"s=1"), (b"Basic e", b"2", b"s=1"),
        (b"Bearer a", b"2", b"s=1"), (b"Bearer a", b"3", b"s=1"), (b"Basic e", b"3", b"s=2"),
        (b"Bearer fg", b"3", b"s=2"), (b"Bearer hij", b"3", b"s=2"), (b"Basic e", b"3", b"s=2"),
    ]  # fmt: skip
    fields = [b"Host: h\r\nAuthorization: %b\r\nX-API-Key: %b\r\nCookie: %b\r\n" % one for one in shown]
    assert await statuses(running, *fields) == [b"200"] * len(shown)
    assert all(one in head for one, head in zip(fields, running.upstream.heads, strict=True))
    expected = [repr((key_in_header(header, b"bearer"), *others)) for header, *others in shown]
    assert [ask.account.account_id for ask in services.asks if ask.account is not None] == expected


@pytest.mark.parametrize(("others", "reads"), [(b"", 8), (b"X-API-Key: 1\r\n", 11), (b"Cookie: s=1\r\n", 11)])
async def test_a_key_that_was_met_is_read_no_more_where_it_alone_says_who_calls(
    running: Running, services: Services, others: bytes, reads: int
) -> None:
    keys = (b"a", b"b", b"c", b"de", b"c", b"a", b"a", b"a", b"de", b"f", b"b")
    shown = [*(b"Bearer %b" % key for key in keys), b"Basic b", b"Bearer c"]
    fields = [b"Host: h\r\nAuthorization: %b\r\n%b" % (one, others) for one in shown]
    assert await statuses(running, *fields) == [b"200"] * len(shown)
    assert all(one in head for one, head in zip(fields, running.upstream.heads, strict=True))
    alternative, cookie = (b"1" if b"Key" in others else None), (b"s=1" if b"Cookie" in others else None)
    expected = [repr((key_in_header(one, b"bearer"), alternative, cookie)) for one in shown]
    assert [ask.account.account_id for ask in services.asks if ask.account is not None] == expected
    assert services.reads == reads


@pytest.mark.parametrize(
    ("field", "values"),
    [
        (b"X-A: a\r\nHost", (b"h", b"i", b"h,i")),
        (b"Host: h\r\nX-Request-Id", (b"1", b"2", b"1" * 4096)),
        (b"Host: h\r\nX-HTTP-Method", (b"GET", b"PUT", b"POST")),
        (b"Host: h\r\nX-A", (b"a", b"b", b"c\0")),
    ],
)
@pytest.mark.usefixtures("services")
async def test_what_is_refused_elsewhere_is_refused_here(
    running: Running, field: bytes, values: tuple[bytes, ...]
) -> None:
    heads = [b"%b: %b\r\n" % (field, value) for value in values]
    assert await statuses(running, *heads, line=b"GET /x HTTP/1.1\r\n") == [b"200", b"200", b"400"]


async def test_what_comes_behind_a_head_is_no_part_of_it(running: Running) -> None:
    running.upstream.answer = answering(ANSWER)
    client = await running.connect()
    request = b"POST /x HTTP/1.1\r\nHost: h\r\nX-A: %d\r\nContent-Length: 0\r\n\r\n"
    for numbers in ([1], [2, 3], [4], [5], [6, 7], [8], [9]):
        await client.send(b"".join(request % number for number in numbers))
        for _ in numbers:
            await client.read_head()
            await client.read(2)
    assert re.findall(rb"X-A: (.)", b"".join(running.upstream.heads)) == [b"%d" % number for number in range(1, 10)]


async def test_a_line_of_the_gateway_s_own_is_not_taken_for_one_that_ends_here(running: Running) -> None:
    running.relay.forwarding = replace(running.relay.forwarding, via=b"here")
    running.upstream.answer = answering(ANSWER)
    heads = [b"Host: h\r\nConnection: Via\r\nVia: 1.1 %b\r\n" % name for name in (b"here", b"there", b"where")]
    assert await statuses(running, *heads) == [b"200"] * 3
    assert [re.findall(rb"Via: (.*)\r\n", head) for head in running.upstream.heads] == [[b"1.1 here"]] * 3


async def test_fields_of_one_name_keep_their_order(running: Running) -> None:
    running.upstream.answer = answering(ANSWER)
    traces = [
        (b"1", b"2"), (b"2", b"1"), (b"3", b"1"), (b"1", b"3"), (b"1", b"4"), (b"1", b"1"), (b"1", b"5"), (b"5", b"5"),
    ]  # fmt: skip
    fields = [b"Host: h\r\nX-Trace: %b\r\nX-Trace: %b\r\n" % pair for pair in traces]
    assert await statuses(running, *fields) == [b"200"] * len(traces)
    assert all(one in head for one, head in zip(fields, running.upstream.heads, strict=True))


async def test_a_call_has_the_id_that_came_with_it_and_of_several_the_last(running: Running) -> None:
    running.upstream.answer = answering(ANSWER)
    exchanges = []
    new_exchange = running.relay.new_exchange

    def kept(*words: Any) -> Any:
        exchanges.append(new_exchange(*words))
        return exchanges[-1]

    running.relay.new_exchange = kept  # type: ignore[assignment]
    ids = [(b"1", b"9"), (b"2", b"9"), (b"2", b"8"), (b"8", b"8"), (b"7", b"8")]
    fields = [b"Host: h\r\nX-Request-Id: %b\r\nx-request-id: %b\r\n" % pair for pair in ids]
    assert await statuses(running, *fields) == [b"200"] * len(ids)
    assert [exchange.request_id for exchange in exchanges] == [last for _, last in ids]


async def test_a_head_with_more_new_values_than_are_worth_it_is_parsed(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []

    def noted(*words: Any) -> bytes:
        head = become(*words)
        taken.append(head != b"")
        return head

    become = reader_module.become
    monkeypatch.setattr(reader_module, "become", noted)
    running.upstream.answer = answering(ANSWER)
    changes = (0, CHANGES_MAX, CHANGES_MAX + 1, 1, 120, CHANGES_MAX)
    values = [0] * 120
    fields = []
    for count in changes:
        values[:count] = [value + 1 for value in values[:count]]
        fields.append(b"Host: h\r\n" + b"".join(b"X-%d: %d\r\n" % pair for pair in enumerate(values)))
    assert await statuses(running, *fields) == [b"200"] * len(changes)
    assert taken == [True, False, True, False, True]
    assert all(one in head for one, head in zip(fields, running.upstream.heads, strict=True))


@pytest.mark.parametrize("sizes", [(1, 40_000), (1, 2, 40_000)])
async def test_a_head_that_has_grown_too_large_is_refused(running: Running, sizes: tuple[int, ...]) -> None:
    running.upstream.answer = answering(ANSWER)
    client = await running.connect()
    for number, size in enumerate(sizes):
        await client.send(b"GET /x HTTP/1.1\r\nHost: h\r\nX-A: %b\r\n\r\n" % (b"%d" % number * size))
        status = await client.read_head()
        if size < 1000:
            assert status.startswith(b"HTTP/1.1 200 ")
            await client.read(2)
    assert status.startswith(b"HTTP/1.1 431 ")


@pytest.mark.parametrize(
    ("line", "moved"),
    [
        (b"OPTIONS /x HTTP/1.1\r\n", b"Max-Forwards: 5\r\n"),
        (b"POST /x HTTP/1.0\r\n", b"Connection: keep-alive\r\nExpect: 100-continue\r\n"),
    ],
)
async def test_a_head_that_was_met_before_it_was_looked_at_goes_on_as_its_own(
    running: Running, line: bytes, moved: bytes
) -> None:
    """A call too many is answered without a look at its head; that look gives some lines another place, or none."""
    running.upstream.answer = answering(ANSWER)
    client = await running.connect()
    head = b"Host: h\r\n%bContent-Length: 0\r\nAuthorization: Bearer %b\r\nX-A: 1\r\nX-B: 2\r\n"
    fields = [head % (moved, key) for key in (b"a", b"b", b"c")]
    for one, in_flight_max in zip(fields, (0, 1000, 1000), strict=True):
        running.limit(in_flight_max=in_flight_max)
        await client.send(line + one + b"\r\n")
        length = re.search(rb"Content-Length: (.*)\r\n", await client.read_head())
        assert length is not None
        await client.read(int(length[1]))
    assert [re.findall(rb"(?:Authorization|X-A|X-B): (.*)\r\n", head) for head in running.upstream.heads] == [
        [b"Bearer b", b"1", b"2"],
        [b"Bearer c", b"1", b"2"],
    ]
