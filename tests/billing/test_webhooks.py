"""What is sent to /webhooks/stripe by Stripe, and by everybody else."""

import asyncio
import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.hosted.signature import SignatureError, verify
from tests.billing.conftest import OLD_SECRET
from tests.billing.world import Scene, add_row, deliver, event_of, signed, subscription_of
from tests.stripe_stub.running import SECRET

GOOD = json.dumps(
    event_of("evt_good", "customer.subscription.updated", 1000, subscription_of("sub_1", "active", account_id="a"))
).encode()


def crafted() -> list[tuple[bytes, list[str], str]]:
    """Body, signature headers, and the error that they come to. Each is wrong in one way."""
    cases: list[tuple[bytes, list[str], str]] = []

    def unsigned(body: bytes, *headers: str) -> None:
        cases.append((body, list(headers), "invalid_signature"))

    def unreadable(body: bytes) -> None:
        cases.append((body, [signed(body, SECRET)], "invalid_request"))

    header = signed(GOOD, SECRET)
    time_part, v1 = header.split(",")
    now_s = int(time_part[2:])
    unsigned(GOOD)
    unsigned(GOOD, header, header)
    for text in (
        "",
        " ",
        ",",
        "=",
        "t=",
        "v1=",
        "garbage",
        time_part,
        v1,
        f"{time_part},",
        f"t=x,{v1}",
        f"t=-1,{v1}",
        f"t=,{v1}",
        f"t={now_s}.0,{v1}",
        f"t=٣,{v1}",
        f"t={'9' * 400},{v1}",
        f"{time_part},{time_part},{v1}",
        f"{v1[3:]},{time_part}",
        f"{time_part},v0={v1[3:]}",
        f"{time_part},v1=é{v1[4:]}",
        f"{time_part},v1={v1[3:].upper()}",
        f"{time_part},v1={v1[3:-1]}",
        f"{time_part},v1={v1[3:]}0",
        f"{time_part},v1={'0' * 64}",
        f"{time_part},v1=",
        f"{time_part};{v1}",
        f"{time_part},{','.join(['v1=' + '0' * 64] * 17)},{v1}",
        header + "," + "v1=" + "0" * 5000,
        v1[3:],
    ):
        unsigned(GOOD, text)
    unsigned(GOOD, signed(GOOD, "whsec_of_somebody_else"))
    unsigned(GOOD, signed(GOOD, SECRET.removeprefix("whsec_")))
    unsigned(GOOD, signed(GOOD, ""))
    unsigned(GOOD, signed(GOOD, SECRET, now_s - 310))
    unsigned(GOOD, signed(GOOD, SECRET, now_s + 310))
    unsigned(GOOD, signed(GOOD, SECRET, 0))
    unsigned(GOOD + b" ", header)
    unsigned(b"", header)
    unsigned(json.dumps(json.loads(GOOD), indent=1).encode(), header)  # the same JSON in other bytes
    for body in (
        b"",
        b" ",
        b"null",
        b"1",
        b"[]",
        b'"event"',
        b"{}",
        b"{",
        b"not JSON",
        b"\xff\xfe",
        b'{"a": "\xff"}',
        b"NaN",
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b"9" * 5000,
        b"-" + b"9" * 5000,
        b"\xef\xbb\xbf{}",
        b"\x00",
        b"x" * 262_145,
    ):
        unreadable(body)
    for changes in (
        {"object": "v2.core.event"},
        {"object": "subscription"},
        {"object": None},
        {"id": None},
        {"id": ""},
        {"id": 7},
        {"id": "evt_\u0000"},
        {"id": "evt_\ud800"},
        {"id": "x" * 256},
        {"id": ["evt"]},
        {"type": None},
        {"type": ""},
        {"type": 5},
        {"type": "x" * 101},
        {"type": "customer subscription"},
        {"created": None},
        {"created": "1000"},
        {"created": 1.5},
        {"created": -1},
        {"created": True},
        {"created": 10**30},
        {"data": None},
        {"data": []},
        {"data": {}},
        {"data": {"object": None}},
        {"data": {"object": []}},
        {"data": {"object": {}}},
    ):
        unreadable(json.dumps({**json.loads(GOOD), **changes}).encode())
    for thing in (
        {"id": None},
        {"id": 5},
        {"id": "\u0000"},
        {"status": None},
        {"status": 1},
        {"status": ""},
        {"status": "\ud800"},
    ):
        event = json.loads(GOOD)
        event["data"]["object"] |= thing
        unreadable(json.dumps(event).encode())
    return cases


def random_ones(count: int, seed: int) -> list[tuple[bytes, list[str], str]]:
    """A good delivery with something in it changed at random."""
    source = random.Random(seed)
    cases = []
    for _ in range(count):
        body, header = bytearray(GOOD), signed(GOOD, SECRET)
        match source.randrange(4):
            case 0:
                body[source.randrange(len(body))] ^= 1 << source.randrange(7)
            case 1:
                body[source.randrange(len(body)) : source.randrange(len(body))] = source.randbytes(
                    source.randrange(1, 9)
                )
            case 2:
                place = source.randrange(header.index("v1=") + 3, len(header))
                other = source.choice([letter for letter in "0123456789abcdefg=, " if letter != header[place]])
                header = header[:place] + other + header[place + 1 :]
            case _:
                header = "".join(chr(source.randrange(33, 127)) for _ in range(source.randrange(1, 200)))
        if bytes(body) == GOOD and header == signed(GOOD, SECRET):
            continue
        cases.append((bytes(body), [header], "invalid_signature"))
    return cases


async def test_500_deliveries_that_are_not_stripes_are_400_and_change_nothing(
    scene: Scene, capfd: pytest.CaptureFixture[str]
) -> None:
    cases = crafted()
    cases += random_ones(500 - len(cases), seed=7)
    app = scene.here.app
    for body, headers, error in cases:
        fields = [("Content-Type", "application/json"), *(("Stripe-Signature", header) for header in headers)]
        answer = await app.post("/webhooks/stripe", data=body, headers=fields)
        text = await answer.text()
        assert (answer.status, json.loads(text)["error"]) == (400, error), (body[:200], headers, text)
        for secret in (SECRET, OLD_SECRET):
            assert secret not in text
    assert await scene.database.fetch("SELECT id FROM stripe_events") == []
    logged = capfd.readouterr()
    for secret in (SECRET, OLD_SECRET):
        assert secret not in logged.out + logged.err


@pytest.mark.parametrize("secret", [OLD_SECRET, SECRET])
async def test_each_of_the_configured_secrets_signs(scene: Scene, secret: str) -> None:
    answer = await deliver(scene.here, json.loads(GOOD), secret)
    assert (answer.status, await answer.json()) == (200, {"received": True, "result": "applied"})


async def test_an_event_has_its_effect_once_however_often_and_wherever_it_is_delivered(scene: Scene) -> None:
    event = json.loads(GOOD)
    answers = await asyncio.gather(
        *(deliver(gateway, event, SECRET) for gateway in (scene.here, scene.elsewhere) for _ in range(10))
    )
    results = [(await answer.json())["result"] for answer in answers]
    assert {answer.status for answer in answers} == {200}
    assert sorted(results) == ["applied"] + ["duplicate"] * 19
    assert (await scene.standing("a"))["facts_version"] == 1


async def test_unknown_types_are_recorded(scene: Scene) -> None:
    answer = await deliver(scene.here, event_of("evt_new", "treasury.invented_in_2031", 5, {"odd": [1]}), SECRET)
    assert (answer.status, (await answer.json())["result"]) == (200, "recorded")
    assert [row["id"] for row in await scene.database.fetch("SELECT id FROM stripe_events")] == ["evt_new"]


async def test_an_event_of_nobody_is_recorded(scene: Scene) -> None:
    answer = await deliver(
        scene.here, event_of("evt_1", "customer.subscription.updated", 5, subscription_of("sub_9", "active")), SECRET
    )
    assert (answer.status, (await answer.json())["result"]) == (200, "unmatched")


async def test_the_stored_customer_says_whose_an_event_is_whatever_the_metadata_say(scene: Scene) -> None:
    async with scene.database.connection() as connection:
        await add_row(connection, "owner", "cus_1")
    thing = subscription_of("sub_1", "active", customer="cus_1", account_id="somebody-else")
    await deliver(scene.here, event_of("evt_1", "customer.subscription.updated", 5, thing), SECRET)
    assert (await scene.standing("owner"))["plan"] == "pro"
    assert await scene.standing("somebody-else") == {}


async def test_a_large_event_is_taken_and_a_larger_one_is_not_read(scene: Scene) -> None:
    event = event_of("evt_large", "product.updated", 5, {"text": "x" * 200_000})
    assert (await deliver(scene.here, event, SECRET)).status == 200
    event = event_of("evt_huge", "product.updated", 5, {"text": "x" * 300_000})
    answer = await deliver(scene.here, event, SECRET)
    assert (answer.status, (await answer.json())["error"]) == (400, "invalid_request")


async def test_an_event_is_not_answered_2xx_before_every_replica_knows(scene: Scene) -> None:
    """The process that committed an event died before it could tell: the next delivery, a duplicate, does so."""
    event = event_of("evt_1", "customer.subscription.updated", 5, subscription_of("sub_1", "active", account_id="a"))
    await deliver(scene.here, event, SECRET)
    told = scene.elsewhere.replica.admission.changes
    before = len(told)
    await deliver(scene.elsewhere, event, SECRET)
    assert told[before:] == [("a", 1)]


def test_the_metric_knows_no_type_that_a_request_invents(tmp_path: Path) -> None:
    from gateway.hosted.webhooks import Webhooks
    from gateway.metrics import Metrics
    from gateway.metrics_scrape import render

    metrics = Metrics(tmp_path, "worker-0")
    webhooks = Webhooks((SECRET,), metrics)
    webhooks.count("invoice.paid", "applied")
    webhooks.count("evil.type", "recorded")
    text = render(tmp_path).decode()
    metrics.close()
    assert 'stripe_webhook_total{result="applied",type="invoice.paid"} 1.0' in text
    assert 'stripe_webhook_total{result="recorded",type="other"} 1.0' in text
    assert "evil" not in text


def test_every_signature_is_compared_with_every_secret_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    import hmac

    compared: list[object] = []
    real: Callable[[bytes, bytes], bool] = hmac.compare_digest

    def watched(one: bytes, other: bytes) -> bool:
        compared.append(other)
        return real(one, other)

    monkeypatch.setattr(hmac, "compare_digest", watched)
    now_s = 1_800_000_000
    header = f"{signed(GOOD, SECRET, now_s)},v1={'0' * 64}"
    verify(header, GOOD, (SECRET, OLD_SECRET), now_s)
    assert len(compared) == 4
    with pytest.raises(SignatureError):
        verify(header, GOOD, (OLD_SECRET,), now_s)


@pytest.mark.parametrize("age_s", [-299, 0, 299])
def test_a_signature_is_good_for_five_minutes(age_s: int) -> None:
    now_s = 1_800_000_000
    verify(signed(GOOD, SECRET, now_s - age_s), GOOD, (SECRET,), now_s)
