"""Fields of the gateway's own in answers of the service behind: for the call that they are about, and no other."""

import random
from dataclasses import replace
from typing import Any

import pytest

from gateway.accounts import Account
from gateway.credentials import Credentials
from gateway.ledger import UsageEvent
from gateway.policy.rules import Cost, Policy
from gateway.policy.verdicts import PASS, Hold, LimitLeft, Pass, Verdict
from tests.relay.conftest import NO_RULES, Client, Running, answering

CALL = b"POST /v1/cast HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer key\r\nContent-Length: 0\r\n\r\n"
PLAIN = b"GET /elsewhere HTTP/1.1\r\nHost: a\r\n\r\n"
HEAD = b"HTTP/1.1 200 OK\r\nX-A: 1\r\nContent-Length: 2\r\n\r\n"
TOLD = LimitLeft("per-minute", 60, 60_000, 59, 60_400)
IETF = b'RateLimit-Policy: "per-minute";q=60;w=60\r\nRateLimit: "per-minute";r=%d;t=61\r\n'


class Services:
    """Identity, admission and ledger: everybody is known, and admitted as ``verdict`` says, call by call."""

    def __init__(self) -> None:
        self.verdicts: list[Verdict] = []
        self.refuses = False

    def doubt_about(self, *_: object) -> None:
        return None

    def credentials_from(self, *_: object) -> Credentials:
        return Credentials(b"key", None, None)

    def met_with(self, _: bytes) -> None:
        return None

    def remember(self, *_: object) -> None:
        return None

    def cached(self, *_: object) -> Account:
        return Account("a")

    def ask(self, ask: Any) -> None:
        ask.done(self.verdicts.pop(0))

    def void(self, _: Hold) -> None:
        """Nothing is charged."""

    def finished(self, *_: object) -> None:
        """The charge is in the event."""

    def append(self, _: UsageEvent) -> None:
        """Nobody reads it."""


@pytest.fixture
def services(running: Running) -> Services:
    made: Any = Services()
    running.relay.identify = running.relay.admission = running.relay.ledger = made
    use(running, "ietf")
    services: Services = made
    return services


def use(running: Running, form: str) -> None:
    policy = Policy(
        name="cast",
        methods=frozenset(),
        path="/v1/cast",
        cost=Cost(fixed_microcents=1),
        rate_limit_headers=form,
    )
    running.relay.use(replace(NO_RULES, policies=(policy,)))


def hold(*left: LimitLeft) -> Hold:
    return Hold("1" * 32, "a", 1, 0, left)


async def answer_of(client: Client, request: bytes = CALL) -> bytes:
    """The whole head, after its body of the length that it tells was read."""
    await client.send(request)
    head = await client.read_head()
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    await client.read(length)
    return head


async def test_each_call_gets_its_own_though_the_head_is_known(running: Running, services: Services) -> None:
    running.upstream.answer = answering(HEAD + b"hi")
    client = await running.connect()
    for left in range(59, 50, -1):
        services.verdicts.append(hold(TOLD._replace(left=left)))
        assert await answer_of(client) == HEAD[:-2] + IETF % left + b"\r\n"
    # The head was learnt while something was added to it, and without that.
    assert len(running.relay.upstream_pool.known_answers) == 1
    for verdict in (hold(), PASS):
        services.verdicts.append(verdict)
        assert await answer_of(client) == HEAD
    assert await answer_of(client, PLAIN) == HEAD
    services.verdicts.append(Pass((TOLD,)))
    assert await answer_of(client) == HEAD[:-2] + IETF % 59 + b"\r\n"


@pytest.mark.parametrize("spelling", [b"RateLimit", b"ratelimit-policy", b"RATELIMIT"])
async def test_fields_of_the_service_itself_stay_and_ours_are_left_out(
    running: Running, services: Services, spelling: bytes
) -> None:
    theirs = HEAD.replace(b"X-A: 1", spelling + b': "theirs";r=0;t=9')
    running.upstream.answer = answering(theirs + b"hi")
    client = await running.connect()
    for _ in range(4):  # parsed, learnt, and known
        services.verdicts.append(hold(TOLD))
        assert await answer_of(client) == theirs
    use(running, "x_ratelimit")
    lines = b"X-RateLimit-Limit: 60\r\nX-RateLimit-Remaining: 59\r\nX-RateLimit-Reset: 61\r\n"
    services.verdicts.append(hold(TOLD))
    assert await answer_of(client) == theirs[:-2] + lines + b"\r\n"


async def test_chunked_answers_closing_ones_and_those_without_a_body_have_them_too(
    running: Running, services: Services
) -> None:
    added = IETF % 59
    client = await running.connect()
    running.upstream.answer = answering(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n")
    services.verdicts.append(hold(TOLD))
    await client.send(CALL)
    assert await client.read_head() == b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n" + added + b"\r\n"
    assert await client.read(12) == b"2\r\nhi\r\n0\r\n\r\n"
    running.upstream.answer = answering(b"HTTP/1.1 304 Not Modified\r\n\r\n")
    services.verdicts.append(hold(TOLD))
    await client.send(CALL)
    assert await client.read_head() == b"HTTP/1.1 304 Not Modified\r\n" + added + b"\r\n"
    running.upstream.answer = answering(HEAD + b"hi")
    services.verdicts.append(hold(TOLD))
    await client.send(CALL.replace(b"Host: a", b"Host: a\r\nConnection: close"))
    assert await client.read_all() == HEAD[:-2] + b"Connection: close\r\n" + added + b"\r\nhi"


async def test_interim_answers_and_trailers_have_none(running: Running, services: Services) -> None:
    early = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: RateLimit\r\n\r\n"
    trailer = b'2\r\nhi\r\n0\r\nRateLimit: "theirs";r=1\r\n\r\n'
    running.upstream.answer = answering(early + chunked + trailer)
    client = await running.connect()
    services.verdicts.append(hold(TOLD))
    await client.send(CALL)
    assert await client.read_head() == early
    head = await client.read_head()
    assert head.endswith(b"\r\n" + IETF % 59 + b"\r\n")
    assert head.count(b"RateLimit:") == 1
    assert await client.read(len(trailer)) == trailer


async def test_an_admitted_call_that_the_gateway_answers_hears_them_as_well(
    running: Running, services: Services
) -> None:
    running.upstream.answer = answering(b"not HTTP at all\r\n\r\n")
    client = await running.connect()
    services.verdicts.append(hold(TOLD))
    await client.send(CALL)
    head = await client.read_head()
    assert head.startswith(b"HTTP/1.1 502 ")
    assert IETF % 59 in head


async def test_calls_at_once_are_told_without_a_window(running: Running, services: Services) -> None:
    running.upstream.answer = answering(HEAD + b"hi")
    client = await running.connect()
    services.verdicts.append(hold(TOLD, LimitLeft("cap", 4, 0, 3, -1)))
    assert (
        b'RateLimit-Policy: "per-minute";q=60;w=60, "cap";q=4;qu="concurrent-requests"\r\n'
        b'RateLimit: "per-minute";r=59;t=61, "cap";r=3\r\n'
    ) in await answer_of(client)


async def test_of_several_limits_x_ratelimit_shows_the_one_with_the_least_left(
    running: Running, services: Services
) -> None:
    use(running, "x_ratelimit")
    running.upstream.answer = answering(HEAD + b"hi")
    client = await running.connect()
    hour, day = LimitLeft("hour", 1000, 3_600_000, 300, 1), LimitLeft("day", 2000, 86_400_000, 599, 7_000)
    services.verdicts.append(hold(TOLD, hour, day))
    assert b"X-RateLimit-Limit: 2000\r\nX-RateLimit-Remaining: 599\r\nX-RateLimit-Reset: 7\r\n" in await answer_of(
        client
    )


# What the service sends, and what of it the client gets in front of what is added.
THEIRS = b"X-RateLimit-Limit: 9\r\n"
ANSWERS = (
    (HEAD, HEAD[:-2]),
    (HEAD.replace(b"X-A: 1\r\n", THEIRS), HEAD[:-2].replace(b"X-A: 1\r\n", THEIRS)),
    # Named by Connection the field ends here, and there is none of theirs.
    (HEAD.replace(b"X-A: 1\r\n", THEIRS + b"Connection: x-ratelimit-limit\r\n"), HEAD[:-2].replace(b"X-A: 1\r\n", b"")),
    (HEAD.replace(b"200 OK", b"429 No"), HEAD[:-2].replace(b"200 OK", b"429 No")),
    (HEAD.replace(b"X-A: 1", b"X-A: 2"), HEAD[:-2].replace(b"X-A: 1", b"X-A: 2")),
)


async def test_in_any_order_of_answers_and_verdicts_each_call_hears_its_own(
    running: Running, services: Services
) -> None:
    use(running, "x_ratelimit")
    client = await running.connect()
    seen = random.Random(20261128)
    for number in range(800):
        sent, passed = ANSWERS[min(seen.randrange(8), 4)]
        running.upstream.answer = answering(sent + b"hi")
        is_told = seen.random() < 0.6
        services.verdicts = [hold(TOLD._replace(left=number)) if is_told else hold()]
        head = await answer_of(client)
        own = b"X-RateLimit-Limit: 60\r\nX-RateLimit-Remaining: %d\r\nX-RateLimit-Reset: 61\r\n" % number
        assert head == passed + (own if is_told and THEIRS not in passed else b"") + b"\r\n", number
    assert len(running.relay.upstream_pool.known_answers) == len(ANSWERS)
