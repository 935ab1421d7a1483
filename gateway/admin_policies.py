"""The admin listener's view of the rules: what is in force, how it came to be, and what it would say to a call."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from aiohttp import web

from gateway.explain import FAULTS, explain, question_of
from gateway.hosted.answers import RefusedError, answer, refusal
from gateway.policy.effective import effective

if TYPE_CHECKING:
    from gateway.policy.explanation import Explanation
    from gateway.reloading import Reloading

# Each question has connections of its own; a script that asks about every account waits for itself.
EXPLAINED_AT_ONCE_MAX = 4
Explained = Callable[[web.Request, "Explanation"], Awaitable[None]]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def policy_routes(
    reloading: "Callable[[], Reloading]", explained: Explained, guarded: Callable[[Handler], Handler]
) -> list[web.RouteDef]:
    """``/policies``, ``/policies/history`` and ``/explain``, each of whose answers ``explained`` hears of first.

    ``guarded`` keeps other sites' pages out.
    """

    async def policies(_: web.Request) -> web.Response:
        versions = reloading().versions
        body = {**_loaded(reloading()), **effective(versions.rules)}
        return answer(body)

    async def history(_: web.Request) -> web.Response:
        entries = [loading.data() for loading in reloading().versions.history]
        return answer({**_loaded(reloading()), "history": entries})

    turns = asyncio.Semaphore(EXPLAINED_AT_ONCE_MAX)

    async def explain_call(request: web.Request) -> web.Response:
        try:
            question = question_of(await request.json())
        except (ValueError, LookupError) as error:
            return _refusal(400, "invalid_request", str(error))
        except RecursionError:
            return _refusal(400, "invalid_request", "expected a flat JSON object, found deep nesting")
        try:
            async with turns:
                explanation = await explain(reloading().loaded, question)
                await explained(request, explanation)
        except RefusedError as refused:
            return refusal(refused)
        except FAULTS as error:
            return _refusal(503, "overloaded", f"Postgres cannot be asked now: {error}")
        return answer(explanation.data())

    return [
        web.get("/policies", guarded(policies)),
        web.get("/policies/history", guarded(history)),
        web.post("/explain", guarded(explain_call)),
    ]


def _refusal(status: int, code: str, message: str) -> web.Response:
    return answer({"error": code, "message": message}, status=status)


def _loaded(reloading: "Reloading") -> dict[str, object]:
    data = reloading.versions.loaded.data()
    return {"version": data["version"], "loaded_at": data["at"], "loaded_by": data["by"]}
