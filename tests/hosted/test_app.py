"""What all hosted endpoints have in common: paths, methods, errors, billing while it is off, metrics."""

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient

from gateway.database import StoreError
from gateway.hosted.answers import Cents, json_text
from gateway.hosted.app import ROUTES, hosted_paths
from tests.hosted.world import Call, World

Anyone = TestClient[web.Request, web.Application]


async def test_an_unknown_path_is_404(call: Call) -> None:
    answer = await call("GET", "/v1/budgets/monthly")
    assert answer.status == 404
    assert await answer.json() == {"error": "not_found", "message": "The gateway has nothing at this path."}


async def test_a_method_that_a_path_does_not_have_is_405_and_told(anyone: Anyone) -> None:
    for path in ROUTES:
        for method in ("PATCH", "TRACE", "PROPFIND"):
            answer = await anyone.request(method, path)
            assert answer.status == 405
            error = await answer.json()
            assert error["error"] == "invalid_request"
            assert error["message"] == f"{path} does not know the method {method}."
            expected = f"one of {answer.headers['Allow']}"
            assert error["details"] == [{"field": "method", "found": method, "expected": expected}]
    assert (await anyone.post("/v1/usage")).headers["Allow"] == "GET, HEAD, OPTIONS"


async def test_options_tells_the_methods_to_anyone_and_permits_no_other_origin(anyone: Anyone) -> None:
    asked = {"Origin": "https://evil.example", "Access-Control-Request-Method": "PUT"}
    for path in ROUTES:
        answer = await anyone.options(path, headers=asked)
        assert (answer.status, await answer.read()) == (204, b"")
        assert answer.headers["Allow"] == (await anyone.patch(path)).headers["Allow"]
        assert not [name for name in answer.headers if name.startswith("Access-Control")]


async def test_answers_do_not_tell_what_serves_them(call: Call) -> None:
    for path in ("/v1/budgets", "/v1/nothing"):
        assert "Server" not in (await call("GET", path)).headers


async def test_head_is_get_without_its_body(call: Call) -> None:
    for path in ("/v1/budgets", "/v1/usage", "/metrics", "/v1/openapi.json"):
        got, head = await call("GET", path), await call("HEAD", path)
        assert await head.read() == b""
        assert (head.status, head.headers["Content-Length"]) == (got.status, str(len(await got.read())))
    assert (await call("HEAD", "/v1/budgets", key="unknown")).status == 401


async def test_billing_that_is_off_says_so(anyone: Anyone) -> None:
    for path, hint in (
        ("/v1/billing/checkout", "nothing was charged"),
        ("/v1/billing/portal", "nothing was charged"),
        ("/webhooks/stripe", "send the event again later"),
    ):
        answer = await anyone.post(path, data=b"anything")
        assert answer.status == 503
        assert await answer.json() == {
            "error": "billing_disabled",
            "message": f"Billing is switched off on this gateway; {hint}.",
        }


async def test_metrics_are_there_only_where_they_are_public(anyone: Anyone, world: World) -> None:
    answer = await anyone.get("/metrics")
    assert (answer.status, await answer.text()) == (200, "spell_cast_total 1.0\n")
    assert answer.headers["Content-Type"] == "text/plain; version=0.0.4"
    private = world.settings.metrics.model_copy(update={"public": False})
    world.settings = world.settings.model_copy(update={"metrics": private})
    answer = await anyone.get("/metrics")
    assert (answer.status, (await answer.json())["error"]) == (404, "not_found")


def test_the_relay_learns_which_paths_are_ours() -> None:
    public = hosted_paths(metrics_public=True)
    assert b"/v1/budgets" in public
    assert public - hosted_paths(metrics_public=False) == {b"/metrics"}


async def test_an_unforeseen_fault_is_500_and_tells_nothing_of_itself(
    call: Call, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    async def budget_state(account: object) -> None:
        raise ZeroDivisionError("the secret inside")

    world.admission.budget_state = budget_state  # type: ignore[method-assign,assignment]
    answer = await call("GET", "/v1/budgets")
    assert answer.status == 500
    assert await answer.json() == {
        "error": "internal_error",
        "message": "The gateway could not answer; its log says why.",
    }
    logged = capsys.readouterr()
    assert "the secret inside" in logged.out + logged.err


async def test_a_store_that_is_away_is_503_and_worth_another_try(call: Call, world: World) -> None:
    async def budget_state(account: object) -> None:
        raise StoreError("Redis is away")

    world.admission.budget_state = budget_state  # type: ignore[method-assign,assignment]
    answer = await call("GET", "/v1/budgets")
    assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
    assert await answer.json() == {
        "error": "overloaded",
        "message": "A store that this answer needs cannot be reached just now; try again shortly.",
    }


async def test_with_postgres_away_a_key_is_not_called_unknown(call: Call, world: World) -> None:
    await world.database.close()
    for path in ("/v1/budgets", "/v1/usage"):
        assert (await call("GET", path)).status == 503


async def test_with_postgres_gone_later_known_callers_get_503_too(call: Call, world: World) -> None:
    assert (await call("GET", "/v1/budgets")).status == 200
    await world.database.close()
    assert (await call("GET", "/v1/budgets")).status == 503
    assert (await call("POST", "/v1/budgets", json={"period": "daily", "hard_limit_cents": 1})).status == 503
    assert world.admission.changes == []


def test_json_is_exact_and_refuses_floats() -> None:
    value = {"a": [Cents(250_000), Cents(10**15), None, True, 3], "b": "é\ud800"}
    assert json_text(value) == '{"a": [0.25, 1000000000, null, true, 3], "b": "\\u00e9\\ud800"}'
    with pytest.raises(TypeError, match="float has no exact JSON"):
        json_text({"cents": 0.1})
