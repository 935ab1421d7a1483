"""A request that is refused keeps its body to itself: the next one with the same head has its own, and no other."""

from gateway.relay.pool import Pool
from tests.relay.conftest import Running
from tests.relay.test_known import POST, answer_of, echo


async def test_the_body_of_a_call_that_was_refused_is_not_sent_with_the_next(running: Running) -> None:
    running.upstream.answer = echo
    reachable = running.relay.upstream_pool

    async def refuse_connection(_: object) -> object:
        raise ConnectionRefusedError

    away = Pool(
        running.relay,
        "upstream",
        refuse_connection,
        host_line=b"Host: upstream\r\n",
        connections_max=4,
        waiting_max=4,
        keepalive_idle_s=4,
    )
    client = await running.connect()
    await client.send(POST + b"one")
    assert (await answer_of(client))[1] == b"POST one"
    running.relay.upstream_pool = away
    for body in (b"two", b"six"):
        await client.send(POST + body)
        assert (await answer_of(client))[0].startswith(b"HTTP/1.1 502 ")
    running.relay.upstream_pool = reachable
    for body in (b"ten", b"end"):
        await client.send(POST + body)
        assert (await answer_of(client))[1] == b"POST " + body
    assert len(running.upstream.heads) == 3
