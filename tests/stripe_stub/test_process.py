import asyncio
import os
import signal
import subprocess
import sys

import pytest
import stripe
from aiohttp import ClientSession

from tests.stripe_stub.receiver import Receiver
from tests.stripe_stub.running import (
    ROOT,
    SECRET,
    STOP_TIMEOUT_S,
    RunningStub,
    base_url_when_ready,
    client_of,
    start_stub,
    stop_stub,
    stub_process,
)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_stub_cleanly(number: signal.Signals) -> None:
    process = start_stub()
    base_url_when_ready(process)
    process.send_signal(number)
    try:
        assert process.wait(STOP_TIMEOUT_S) == 0
    finally:
        stop_stub(process)


async def test_a_process_does_it_all(receiver: Receiver) -> None:
    arguments = ["--webhook-url", receiver.url, "--webhook-secret", "whsec_old", "--webhook-secret", SECRET]
    async with (
        stub_process(*arguments, "--webhook-api-version", "2017-08-15", "--price", "price_x=100:Best") as base_url,
        client_of(base_url) as client,
    ):
        assert (await client.v1.prices.retrieve_async("price_x")).unit_amount == 100
        await client.v1.customers.create_async({})
        while not receiver.got:
            await asyncio.sleep(0.01)
    event = stripe.Webhook.construct_event(receiver.got[0].body, receiver.got[0].signature, SECRET, api_key="sk_test")
    assert event.api_version == "2017-08-15"


async def test_a_request_that_hangs_does_not_hold_up_the_end() -> None:
    process = start_stub()
    base_url = await asyncio.to_thread(base_url_when_ready, process)

    async def ask(client: stripe.StripeClient) -> None:
        with pytest.raises(stripe.APIConnectionError):
            await client.v1.customers.create_async({})

    async with client_of(base_url) as client, ClientSession() as session, asyncio.TaskGroup() as group:
        stub = RunningStub(base_url=base_url, session=session)
        await stub.control("PUT", "faults", [{"mode": "hang"}])
        group.create_task(ask(client))
        while not (await stub.control("GET", "requests"))["data"]:
            await asyncio.sleep(0.01)
        assert await asyncio.to_thread(stop_stub, process) == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--port", "x"], "'x' is not a port number"),
        (["--webhook-url", "nowhere"], "'nowhere' is not an http address"),
        (["--webhook-url", "http://x/"], "--webhook-url needs --webhook-secret"),
        (["--price", "pro"], "'pro' is not ID=CENTS"),
        (["--api-version", "new"], "Invalid Stripe API version: new"),
    ],
)
def test_arguments_that_are_wrong_are_refused(arguments: list[str], words: str) -> None:
    refused = run_stub(*arguments)
    assert (refused.returncode, words in refused.stderr) == (2, True), refused.stderr


def test_a_busy_port_is_one_clear_line() -> None:
    process = start_stub()
    try:
        port = base_url_when_ready(process).rsplit(":", 1)[1]
        refused = run_stub("--port", port)
    finally:
        stop_stub(process)
    assert refused.returncode == 1
    assert "address already in use" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


def run_stub(*arguments: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name in {"PATH", "HOME", "LANG"}}
    command = [sys.executable, "-m", "stripe_stub", *arguments]
    return subprocess.run(command, cwd=ROOT, env=kept, capture_output=True, text=True, timeout=20, check=False)
