"""Several addresses: calls go round, failing ones are left out and return, names are kept fresh, nothing goes twice."""

import asyncio
import socket
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tests.relay.backends import Backend, ask, backends, put_behind
from tests.relay.conftest import Client, Running


async def names_of(client: Client, count: int, method: str = "POST") -> Counter[str]:
    """How many of ``count`` calls each upstream answered; all must be answered."""
    found: Counter[str] = Counter()
    for _ in range(count):
        status, body = await ask(client, method)
        assert status == 200, body
        found[body] += 1
    return found


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


async def test_calls_go_round_on_kept_connections(running: Running) -> None:
    async with backends("a", "b", "c") as three:
        put_behind(running, *(one.url for one in three))
        assert await names_of(await running.connect(), 30) == {"a": 10, "b": 10, "c": 10}
        assert [one.connections for one in three] == [1, 1, 1]


async def test_a_call_for_which_no_connection_could_be_made_goes_to_another_address(running: Running) -> None:
    async with backends("a", "b") as (a, b):
        put_behind(running, a.url, b.url, eject_after=1000)
        await a.stop()
        assert await names_of(await running.connect(), 10) == {"b": 10}


async def test_an_address_that_does_not_even_refuse_is_left_for_another(running: Running) -> None:
    async with backends("b") as (b,):
        with socket.socket() as deaf, socket.socket() as first, socket.socket() as second:
            deaf.bind(("127.0.0.1", 0))
            deaf.listen(0)
            for full in (first, second):  # its queue has no more room: who connects now waits for a SYN-ACK
                full.setblocking(False)
                full.connect_ex(deaf.getsockname())
            running.limit(connect_timeout_s=0.3)
            put_behind(running, f"http://127.0.0.1:{deaf.getsockname()[1]}", b.url)
            assert await names_of(await running.connect(), 4) == {"b": 4}


async def test_an_address_that_fails_is_left_out_and_comes_back(running: Running) -> None:
    async with backends("a", "b") as (a, b):
        balancer = put_behind(running, a.url, b.url, eject_after=3, eject_for=60)
        client = await running.connect()
        await a.stop()
        assert await names_of(client, 12) == {"b": 12}
        assert running.relay.counters.upstream_ejections.value == 1
        assert running.relay.counters.upstream_addresses.value == 1
        await a.start()
        assert await names_of(client, 4) == {"b": 4}, "its pause is not over yet"
        next(member for member in balancer._members.values() if member.is_ejected).try_at_s = 0.0
        balancer.tick()
        assert await names_of(client, 1) == {"a": 1}, "one call tries it"
        assert await names_of(client, 10) == {"a": 5, "b": 5}
        assert running.relay.counters.upstream_addresses.value == 2


async def test_while_an_address_is_tried_it_gets_one_call_and_a_failure_doubles_its_pause(running: Running) -> None:
    async with backends("a", "b") as (a, b):
        balancer = put_behind(running, a.url, b.url, eject_after=1, eject_for=0.2)
        client = await running.connect()
        await a.stop()
        await names_of(client, 4)
        member = next(member for member in balancer._members.values() if member.is_ejected)
        for pause_s in (0.4, 0.8, 1.6, 1.6):
            member.try_at_s = 0.0  # in place of waiting for it
            balancer.tick()
            assert await names_of(client, 4) == {"b": 4}
            assert member.pause_s == pause_s


async def test_an_address_that_gives_none_of_an_answer_is_left_out(running: Running) -> None:
    async with backends("a", "b") as (a, b):
        put_behind(running, a.url, b.url, eject_after=2, eject_for=60)
        a.behaviour = "cut"
        statuses = []
        for _ in range(8):
            client = await running.connect()
            statuses.append((await ask(client, "POST"))[0])
        assert Counter(statuses) == {502: 2, 200: 6}
        assert len(a.asked) == 2


async def test_an_address_that_does_not_answer_in_time_is_left_out(running: Running) -> None:
    async with backends("a", "b") as (a, b):
        put_behind(running, a.url, b.url, eject_after=1, eject_for=60)
        running.limit(first_byte_timeout_s=0.1)
        a.behaviour = "hold"
        statuses = [(await ask(await running.connect()))[0] for _ in range(4)]
        assert Counter(statuses) == {504: 1, 200: 3}


async def test_the_last_address_is_never_left_out(running: Running) -> None:
    async with backends("a", "b") as (a, b):
        put_behind(running, a.url, b.url, eject_after=1, eject_for=60)
        await a.stop()
        await b.stop()
        client = await running.connect()
        for _ in range(5):
            assert (await ask(client, "POST"))[0] == 502
        await a.start()
        assert await names_of(client, 5) == {"a": 5}, "whichever it is that comes back"


async def test_a_call_that_was_sent_is_not_sent_to_another_address(running: Running) -> None:
    async with backends("a", "b") as both:
        put_behind(running, *(one.url for one in both), eject_after=1000)
        for one in both:
            one.behaviour = "cut"
        assert (await ask(await running.connect(), "POST"))[0] == 502
        assert sum(len(one.asked) for one in both) == 1


async def test_a_name_is_looked_up_again_and_calls_under_way_end_where_they_are(running: Running) -> None:
    async with backends("a") as (a,):
        b = Backend("b")
        b.port = a.port
        other = await asyncio.start_server(b._serve, "127.0.0.2", a.port)
        found = ["127.0.0.1"]

        async def look_up(host: str, port: int) -> list[str]:
            assert host == "cast.internal"
            return list(found)

        balancer = put_behind(running, f"http://cast.internal:{a.port}", look_up=look_up, dns_ttl=0.1)
        client, slow = await running.connect(), await running.connect()
        assert await names_of(client, 3) == {"a": 3}
        a.behaviour = "hold"
        late = asyncio.ensure_future(ask(slow))
        await until(lambda: len(a.asked) == 4)
        found[:] = ["127.0.0.2"]
        await until(lambda: [str(member.target) for member in balancer._members.values()] == [f"127.0.0.2:{a.port}"])
        assert await names_of(client, 3) == {"b": 3}
        a.go_on.set()
        assert await late == (200, "a")
        await until(lambda: not balancer._retired)
        found.insert(0, "127.0.0.1")
        await until(lambda: len(balancer._members) == 2)
        assert await names_of(client, 6) == {"a": 3, "b": 3}
        other.close()


async def test_a_lookup_that_fails_changes_nothing_and_calls_before_the_first_wait_for_it(running: Running) -> None:
    async with backends("a") as (a,):
        answers: list[list[str] | OSError] = [OSError("no such host"), ["127.0.0.1"], OSError("resolver is away")]
        ask_now = asyncio.Semaphore(0)

        async def look_up(host: str, port: int) -> list[str]:
            await ask_now.acquire()
            answer = answers.pop(0) if answers else ["127.0.0.1"]
            if isinstance(answer, OSError):
                raise answer
            return answer

        put_behind(running, f"http://cast.internal:{a.port}", look_up=look_up, dns_ttl=0.1)
        client = await running.connect()
        early = asyncio.ensure_future(ask(client))
        await until(lambda: bool(running.relay.upstream_pool._waiting))
        ask_now.release()
        assert (await early)[0] == 502
        ask_now.release()
        assert await names_of(client, 2) == {"a": 2}
        ask_now.release()
        await until(lambda: not answers)
        assert await names_of(client, 2) == {"a": 2}


async def test_an_address_that_is_known_serves_while_a_name_leads_nowhere(running: Running) -> None:
    async with backends("a", "b") as (a, b):
        answers: list[list[str] | Exception] = [UnicodeError("label too long"), TimeoutError(), [], ["127.0.0.1"]]
        asked = 0

        async def look_up(host: str, port: int) -> list[str]:
            nonlocal asked
            asked += 1
            answer = answers[min(asked, len(answers)) - 1]
            if isinstance(answer, Exception):
                raise answer
            return answer

        balancer = put_behind(running, a.url, f"http://b..internal:{b.port}", look_up=look_up)
        assert await names_of(await running.connect(), 3) == {"a": 3}
        await until(lambda: len(balancer._members) == 2)
        assert await names_of(await running.connect(), 4) == {"a": 2, "b": 2}


async def test_the_systems_own_resolver_is_asked(running: Running) -> None:
    async with backends("a") as (a,):
        put_behind(running, f"http://localhost:{a.port}")
        assert await names_of(await running.connect(), 3) == {"a": 3}


async def test_a_unix_socket_is_an_upstream(running: Running, tmp_path: Path) -> None:
    async with Backend("a", path=tmp_path / "upstream.sock") as a:
        put_behind(running, a.url)
        assert await names_of(await running.connect(), 3) == {"a": 3}
        assert a.connections == 1
