from aiohttp import ClientSession

from tests.upstream_stub.running import RunningStub, create_account


async def test_a_key_is_created_used_listed_without_its_secret_and_deleted(client: ClientSession) -> None:
    async with client.post("/v1/keys", json={"name": "laptop"}) as answer:
        assert answer.status == 201
        created = await answer.json()
    key = created.pop("key")
    bearer = {"Authorization": f"Bearer {key}"}
    async with client.get("/v1/keys", headers=bearer) as answer:
        listed = (await answer.json())["keys"]
    assert created in listed
    assert key not in str(listed)
    async with client.delete(f"/v1/keys/{created['id']}", headers=bearer) as answer:
        assert answer.status == 204


async def test_a_deleted_key_is_refused_by_the_next_request(client: ClientSession) -> None:
    async with client.post("/v1/keys") as answer:
        created = await answer.json()
    bearer = {"Authorization": f"Bearer {created['key']}"}
    async with client.post("/v1/cast", headers=bearer) as answer:
        assert answer.status == 200
    async with client.delete(f"/v1/keys/{created['id']}") as answer:
        assert answer.status == 204
    async with client.post("/v1/cast", headers=bearer) as answer:
        assert (answer.status, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
        assert await answer.json() == {"error": "unauthorized", "message": "The API key or session is not valid."}


async def test_another_users_key_is_not_found(client: ClientSession, stub: RunningStub) -> None:
    stranger = await create_account(stub.database_url)
    headers = {"X-API-Key": stranger.api_key}
    async with ClientSession(stub.base_url, headers=headers) as other, other.get("/v1/keys") as answer:
        key_id = (await answer.json())["keys"][0]["id"]
    async with client.delete(f"/v1/keys/{key_id}") as answer:
        assert answer.status == 404


async def test_an_id_that_is_no_id_is_not_found(client: ClientSession) -> None:
    async with client.delete("/v1/keys/nonsense") as answer:
        assert (answer.status, (await answer.json())["error"]) == (404, "not_found")


async def test_an_authorization_header_decides_before_a_good_key_elsewhere(
    client: ClientSession, stub: RunningStub
) -> None:
    good = (await create_account(stub.database_url)).api_key
    async with client.get("/v1/keys", headers={"Authorization": "Bearer ck_wrong", "X-API-Key": good}) as answer:
        assert answer.status == 401
    async with client.get("/v1/keys", headers={"Authorization": f"Basic {good}", "X-API-Key": good}) as answer:
        assert answer.status == 401


async def test_nobody_is_refused(anyone: ClientSession) -> None:
    async with anyone.get("/v1/keys") as answer:
        assert await answer.json() == {"error": "unauthorized", "message": "No API key and no session."}
