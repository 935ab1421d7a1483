"""Who is let in, and as whom."""

from aiohttp import web
from aiohttp.test_utils import TestClient

from tests.hosted.world import KEY, SESSION, World

Anyone = TestClient[web.Request, web.Application]
BUDGET = {"period": "daily", "hard_limit_cents": 5}

KNOWN: list[dict[str, str]] = [
    {"Authorization": f"Bearer {KEY}"},
    {"authorization": f"bearer  {KEY}"},
    {"X-API-Key": KEY},
    {"Cookie": f"theme=dark; session={SESSION}"},
    {"Cookie": f"session={SESSION}", "X-API-Key": "unknown"},
]
NONE_GIVEN = "No API key and no session were given."
NOT_KNOWN = "The API key or session is not known."
NOBODY: list[tuple[dict[str, str], str]] = [
    ({}, NONE_GIVEN),
    ({"Authorization": "Basic eDp5"}, NONE_GIVEN),
    ({"Authorization": "Bearer"}, NONE_GIVEN),
    ({"Authorization": f"Bearer {KEY}x"}, NOT_KNOWN),
    ({"X-API-Key": "é"}, NOT_KNOWN),
    ({"Cookie": f"session={KEY}"}, NOT_KNOWN),
]
FROM_ELSEWHERE: list[dict[str, str]] = [
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://["},
    {"Origin": "https://gateway.example.evil.example"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site", "Origin": "https://gateway.example"},
]
MEANT: list[dict[str, str]] = [
    {"Cookie": f"session={SESSION}"},
    {"Cookie": f"session={SESSION}", "Origin": "https://Gateway.example", "Sec-Fetch-Site": "same-origin"},
    # A page of another site cannot add these without being let to, so who sends them means it.
    {"X-API-Key": KEY, "Origin": "https://another.example"},
    {"Authorization": f"Bearer {KEY}", "Sec-Fetch-Site": "cross-site"},
]


async def test_a_key_or_a_session_tells_the_account(anyone: Anyone, world: World) -> None:
    for headers in KNOWN:
        answer = await anyone.get("/v1/budgets", headers=headers)
        assert (answer.status, (await answer.json())["account_id"]) == (200, world.account_id), headers


async def test_nobody_is_401(anyone: Anyone) -> None:
    for headers, message in NOBODY * 2:  # the second time from the cache
        for path in ("/v1/budgets", "/v1/usage"):
            answer = await anyone.get(path, headers=headers)
            assert answer.status == 401
            assert answer.headers["WWW-Authenticate"] == "Bearer"
            assert await answer.json() == {"error": "unauthorized", "message": message}, headers


async def test_who_is_nobody_learns_nothing_about_their_request(anyone: Anyone) -> None:
    for method in ("POST", "PUT", "DELETE"):
        assert (await anyone.request(method, "/v1/budgets", data=b"{")).status == 401


async def test_unknown_is_401_also_where_it_is_not_remembered(world: World, anyone: Anyone) -> None:
    world.forget_unknown_callers()
    assert (await anyone.get("/v1/budgets", headers={"X-API-Key": "unknown"})).status == 401


async def test_two_credentials_of_one_kind_are_refused(anyone: Anyone) -> None:
    headers = [("Authorization", f"Bearer {KEY}"), ("Authorization", "Bearer another")]
    answer = await anyone.get("/v1/budgets", headers=headers)
    assert answer.status == 400
    assert (await answer.json())["message"] == "Authorization: expected at most one, found 2 fields."


async def test_another_sites_page_changes_nothing_with_a_cookie(anyone: Anyone, world: World) -> None:
    message = "A session cookie does not authorise a request that another site's page has made."
    for headers in FROM_ELSEWHERE:
        fields = {"Cookie": f"session={SESSION}", "Host": "gateway.example", **headers}
        for method, query in (("POST", ""), ("PUT", ""), ("DELETE", "?period=daily")):
            answer = await anyone.request(method, f"/v1/budgets{query}", json=BUDGET, headers=fields)
            assert (answer.status, (await answer.json())["message"]) == (401, message), headers
    assert world.admission.changes == []


async def test_ones_own_page_and_any_program_may_change(anyone: Anyone) -> None:
    for headers in MEANT:
        fields = {"Host": "gateway.example", **headers}
        assert (await anyone.post("/v1/budgets", json=BUDGET, headers=fields)).status == 201, headers
        assert (await anyone.delete("/v1/budgets?period=daily", headers=fields)).status == 204, headers


async def test_a_form_that_another_sites_page_posts_is_no_json(anyone: Anyone) -> None:
    # The one cross-site POST that browsers send unasked, from one so old that it says no Origin.
    headers = {"Cookie": f"session={SESSION}", "Content-Type": "text/plain"}
    assert (await anyone.post("/v1/budgets", data=b'{"period": "daily"}', headers=headers)).status == 400
