"""Play a case against one address and gather its answers."""

import asyncio
import json
import re
from contextlib import closing
from dataclasses import dataclass

import redis

from tests.transparency.phase1_requests import Case, Request
from tests.transparency.wire import Answer, Connection, connect
from tests.upstream_stub.running import Account, RunningStub, create_account


@dataclass(frozen=True, kw_only=True, slots=True)
class Played:
    account: Account
    answers: list[Answer]
    ended: bool  # the server closed the connection; looked at only where the case says it must


async def play(case: Case, base_url: str, upstream: RunningStub) -> Played:
    """All requests of the case on one connection to `base_url`, by a new account of `upstream`."""
    account = await create_account(upstream.database_url)
    if case.phase1_limit_spent:
        with closing(redis.Redis.from_url(upstream.redis_url)) as store:
            store.set(f"ratelimit:cast:{account.user_id}", 1_000_000, px=60_000)
    known = {b"key": account.api_key.encode(), b"email": account.email.encode(), b"password": account.password.encode()}
    async with connect(base_url) as connection:
        answers: list[Answer] = []
        if case.pipelined:
            data = b"".join(b"".join(request.wire(known)) for request in case.requests)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(connection.send(data))
                answers = [await connection.read_answer(request.method) for request in case.requests]
        else:
            for request in case.requests:
                answers.append(await _ask(connection, request, known))
                _learn(answers[-1], known)
        ended = case.closes and await connection.ends()
    return Played(account=account, answers=answers, ended=ended)


async def _ask(connection: Connection, request: Request, known: dict[bytes, bytes]) -> Answer:
    """Send and read at once: an answer may begin, or end, before the request has."""
    head, body = request.wire(known)
    if not request.waits_for_continue:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_send(connection, head + body))
            return await connection.read_answer(request.method)
    await connection.send(head)
    go_ahead = await connection.read_head()
    assert go_ahead.status == 100, f"asked to wait for 100, got {go_ahead.status}"
    await connection.send(body)
    answer = await connection.read_answer(request.method)
    return Answer(
        interim=[go_ahead, *answer.interim],
        head=answer.head,
        body=answer.body,
        trailers=answer.trailers,
        whole=answer.whole,
    )


async def _send(connection: Connection, data: bytes) -> None:
    try:
        await connection.send(data)
    except ConnectionError:
        pass  # answered and closed before all was sent: the answer tells


def _learn(answer: Answer, known: dict[bytes, bytes]) -> None:
    for cookie in answer.head.values(b"Set-Cookie"):
        if found := re.match(rb"session=([\w-]{43});", cookie):
            known[b"cookie"] = found[1]
    if answer.head.status == 201:
        created = json.loads(answer.body)
        known[b"id"], known[b"new-key"] = created["id"].encode(), created["key"].encode()
