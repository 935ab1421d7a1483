"""Whose credentials: known, unknown, known of old; how long each answer is believed and how often Postgres is asked."""

from uuid import UUID

import pytest

from gateway.accounts import NOT_LOADED, Account
from gateway.config.settings_accounts import Identity
from gateway.credentials import Credentials
from gateway.database import StoreError
from gateway.identify import UNKNOWN
from tests.identify.conftest import Setting

ONE = "00000000-0000-0000-0000-000000000001"
TWO = "00000000-0000-0000-0000-000000000002"


def key(value: bytes) -> Credentials:
    return Credentials(value, None, None)


def session(value: bytes) -> Credentials:
    return Credentials(None, None, value)


def ids(accounts: list[Account | None]) -> list[str | None]:
    return [account.account_id if account else None for account in accounts]


async def test_a_key_is_its_accounts_and_comes_with_facts(setting: Setting) -> None:
    await setting.add_key(b"k1", 1)
    assert setting.identify.cached(key(b"k1")) is None
    [account] = await setting.resolve(key(b"k1"))
    assert account is not None
    assert (account.account_id, account.version, account.plan) == (ONE, 0, "free")
    assert setting.identify.cached(key(b"k1")) is account
    assert (setting.counted("miss"), setting.counted("hit")) == (1, 1)


async def test_any_valid_credential_identifies_and_the_key_goes_first(setting: Setting) -> None:
    await setting.add_key(b"k1", 1)
    await setting.add_session(b"s2", 2)
    answers = await setting.resolve(
        session(b"s2"),
        Credentials(b"k1", None, b"s2"),
        Credentials(b"unknown", None, b"s2"),
        Credentials(b"unknown", b"k1", b"s2"),
        Credentials(b"k1", b"unknown", b"unknown"),
        Credentials(b"unknown", b"unknown", b"unknown"),
    )
    assert ids(answers) == [TWO, ONE, TWO, ONE, ONE, None]


async def test_one_account_is_one_object_whatever_credential_showed_it(setting: Setting) -> None:
    await setting.add_key(b"k1", 1)
    await setting.add_session(b"s1", 1)
    first, second = await setting.resolve(key(b"k1"), session(b"s1"))
    assert first is second is setting.accounts.get(ONE)


async def test_a_session_that_is_over_is_unknown(setting: Setting) -> None:
    await setting.add_session(b"s1", 1, life="-1 second")
    assert await setting.resolve(session(b"s1")) == [None]


async def test_what_cannot_be_text_is_unknown(setting: Setting) -> None:
    assert await setting.resolve(key(b"\xff\x00"), session(b"\x00")) == [None, None]


async def test_the_same_credential_asked_many_times_at_once_is_looked_up_once(setting: Setting) -> None:
    await setting.add_key(b"k1", 1)
    answers = await setting.resolve(*[key(b"k1")] * 50)
    assert ids(answers) == [ONE] * 50
    assert setting.database.statements == 2, "one for the key, one for the facts"


async def test_many_credentials_at_once_are_looked_up_together(setting: Setting) -> None:
    for number in range(100):
        await setting.add_key(b"k%d" % number, number)
    answers = await setting.resolve(*(key(b"k%d" % number) for number in range(100)))
    assert len(set(ids(answers))) == 100
    assert setting.database.statements == 2


async def test_an_unknown_credential_is_remembered_for_a_short_while(setting: Setting) -> None:
    assert await setting.resolve(key(b"k1")) == [None]
    assert setting.identify.cached(key(b"k1")) is UNKNOWN
    await setting.add_key(b"k1", 1)
    setting.clock.now += 4.9
    assert setting.identify.cached(key(b"k1")) is UNKNOWN
    setting.clock.now += 0.2
    assert setting.identify.cached(key(b"k1")) is None
    assert ids(await setting.resolve(key(b"k1"))) == [ONE]


async def test_an_unknown_credential_that_phase_1_accepted_is_forgotten(setting: Setting) -> None:
    await setting.resolve(key(b"k1"))
    setting.identify.forget(key(b"k1"))
    assert setting.identify.cached(key(b"k1")) is None


async def test_an_answer_over_its_age_serves_once_more_and_is_read_again_behind(setting: Setting) -> None:
    await setting.add_key(b"k1", 1)
    await setting.resolve(key(b"k1"))
    await setting.phase1.execute("DELETE FROM api_keys")
    setting.clock.now += 31.0
    assert isinstance(setting.identify.cached(key(b"k1")), Account)
    await setting.tasks.drain(5.0)
    assert setting.identify.cached(key(b"k1")) is UNKNOWN


async def test_a_busy_credential_is_read_once_when_it_is_due(setting: Setting) -> None:
    await setting.add_key(b"k1", 1)
    await setting.resolve(key(b"k1"))
    before = setting.database.statements
    setting.clock.now += 31.0
    for _ in range(10):
        assert isinstance(setting.identify.cached(key(b"k1")), Account)
    await setting.tasks.drain(5.0)
    assert setting.database.statements - before == 2, "the key, and the facts"


async def test_an_answer_of_twice_its_age_is_asked_anew(setting: Setting) -> None:
    await setting.add_key(b"k1", 1)
    await setting.resolve(key(b"k1"))
    setting.clock.now += 60.0
    assert setting.identify.cached(key(b"k1")) is None


async def test_while_postgres_is_away_old_answers_serve_up_to_their_bound(setting: Setting) -> None:
    await setting.add_key(b"k1", 1)
    await setting.resolve(key(b"k1"))
    await setting.link.close()
    setting.clock.now += 3599.0
    assert setting.identify.cached(key(b"k1")) is None
    assert ids(await setting.resolve(key(b"k1"), key(b"new"))) == [ONE, None]
    assert (setting.counted("stale"), setting.counted("error")) == (1, 1)
    assert setting.identify.cached(key(b"new")) is None, "not knowing is not 'unknown'"
    setting.clock.now += 1.0
    assert ids(await setting.resolve(key(b"k1"))) == [None]
    await setting.link.open()
    assert ids(await setting.resolve(key(b"k1"))) == [ONE]


async def test_a_hanging_postgres_is_waited_for_no_longer_than_its_time_out(setting: Setting) -> None:
    await setting.add_key(b"k1", 1)
    setting.link.jam()
    assert await setting.resolve(key(b"k1")) == [None]
    setting.link.clear()
    assert ids(await setting.resolve(key(b"k1"))) == [ONE]


async def test_whose_a_key_is_does_not_hang_on_facts_that_cannot_be_read(setting: Setting) -> None:
    await setting.add_key(b"k1", 1)
    async with setting.phase1.transaction():
        await setting.phase1.execute("LOCK TABLE billing_accounts IN ACCESS EXCLUSIVE MODE")
        [account] = await setting.resolve(key(b"k1"))
        with pytest.raises(StoreError):
            await setting.identify.owner_of(key(b"k1"))
    assert account is not None
    assert (account.account_id, account.version) == (ONE, NOT_LOADED)
    assert await setting.identify.owner_of(key(b"k1")) is account
    assert account.version == 0


@pytest.mark.parametrize("identity", [Identity.model_validate({"cache": {"entries_max": 10}})])
async def test_the_cache_is_bounded_and_forgets_the_longest_unread(setting: Setting) -> None:
    for number in range(30):
        await setting.add_key(b"k%d" % number, 1)
        await setting.resolve(key(b"k%d" % number))
    known = [number for number in range(30) if setting.identify.cached(key(b"k%d" % number)) is not None]
    assert known == list(range(20, 30))


async def test_known_credentials_are_met_by_the_value_that_showed_them_last(setting: Setting) -> None:
    await setting.add_key(b"k1", 1)
    assert setting.identify.remember(b"Bearer k1", key(b"k1")) is None
    [account] = await setting.resolve(key(b"k1"))
    assert setting.identify.met_with(b"Bearer k1") is None
    met = setting.identify.remember(b"Bearer k1", key(b"k1"))
    assert met is not None
    assert (met.account, met.credentials) == (account, key(b"k1"))
    assert setting.identify.met_with(b"Bearer k1") is met
    assert setting.identify.remember(b"bearer  k1", key(b"k1")) is met
    assert (setting.identify.met_with(b"Bearer k1"), setting.identify.met_with(b"bearer  k1")) == (None, met)
    assert setting.identify.cached(key(b"k1"), met) is account
    assert setting.counted("hit") == 1


async def test_what_was_met_is_believed_for_no_longer_than_what_is_cached(setting: Setting) -> None:
    await setting.add_key(b"k1", 1)
    await setting.resolve(key(b"k1"))
    met = setting.identify.remember(b"Bearer k1", key(b"k1"))
    setting.clock.now += 31.0
    assert isinstance(setting.identify.cached(key(b"k1"), met), Account)
    await setting.tasks.drain(5.0)
    assert setting.identify.met_with(b"Bearer k1") is met, "it was read again"
    setting.clock.now += 60.0
    assert setting.identify.cached(key(b"k1"), met) is None


async def test_whoever_is_unknown_now_is_not_met_either(setting: Setting) -> None:
    await setting.add_key(b"k1", 1)
    await setting.resolve(key(b"k1"))
    met = setting.identify.remember(b"Bearer k1", key(b"k1"))
    await setting.phase1.execute("DELETE FROM api_keys")
    assert await setting.resolve(key(b"k1")) == [None]
    assert setting.identify.met_with(b"Bearer k1") is None
    assert setting.identify.cached(key(b"k1"), met) is UNKNOWN


async def test_whoever_belongs_to_another_is_met_as_that_one(setting: Setting) -> None:
    await setting.add_key(b"k1", 1)
    await setting.resolve(key(b"k1"))
    met = setting.identify.remember(b"Bearer k1", key(b"k1"))
    await setting.phase1.execute("UPDATE api_keys SET user_id = $1", UUID(int=2))
    assert ids(await setting.resolve(key(b"k1"))) == [TWO]
    found = setting.identify.cached(key(b"k1"), met)
    assert isinstance(found, Account)
    assert found.account_id == TWO


@pytest.mark.parametrize("identity", [Identity.model_validate({"cache": {"entries_max": 10}})])
async def test_what_is_met_is_bounded_by_what_is_known(setting: Setting) -> None:
    for number in range(30):
        await setting.add_key(b"k%d" % number, 1)
        await setting.resolve(key(b"k%d" % number))
        setting.identify.remember(b"Bearer k%d" % number, key(b"k%d" % number))
    met = [number for number in range(30) if setting.identify.met_with(b"Bearer k%d" % number) is not None]
    assert met == list(range(20, 30))


async def test_values_that_are_mostly_blanks_do_not_fill_the_memory(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.identify._KNOWN_BYTES_MAX", 1000)
    for number in range(10):
        await setting.add_key(b"k%d" % number, 1)
        await setting.resolve(key(b"k%d" % number))
    values = [b"Bearer%bk%d" % (b" " * 400, number) for number in range(10)]
    for number, value in enumerate(values):
        setting.identify.remember(value, key(b"k%d" % number))
    assert [setting.identify.met_with(value) is not None for value in values] == [True] * 3 + [False] * 7


@pytest.mark.parametrize("identity", [Identity.model_validate({"cache": {"entries_max": 10}})])
async def test_guesses_do_not_push_out_what_is_known(setting: Setting) -> None:
    await setting.add_key(b"k1", 1)
    await setting.resolve(key(b"k1"))
    await setting.resolve(*(key(b"guess%d" % number) for number in range(1000)))
    assert isinstance(setting.identify.cached(key(b"k1")), Account)


@pytest.mark.parametrize("identity", [Identity.model_validate({"cache": {"ttl": "0s", "negative_ttl": "0s"}})])
async def test_without_ages_every_request_is_looked_up(setting: Setting) -> None:
    await setting.add_key(b"k1", 1)
    await setting.resolve(key(b"k1"), key(b"k2"))
    assert setting.identify.cached(key(b"k1")) is None
    assert setting.identify.cached(key(b"k2")) is None


@pytest.mark.parametrize(
    "sql", ["SELECT nonsense", "SELECT 'x' AS hash WHERE $1::text[] IS NOT NULL", "SELECT 1/0, $1::text[]"]
)
async def test_a_wrong_statement_answers_nobody_known_and_hangs_nobody(setting: Setting, sql: str) -> None:
    setting.identify._key_sql = sql
    assert await setting.resolve(key(b"k1"), key(b"k2")) == [None, None]
    assert setting.counted("error") == 2


@pytest.mark.parametrize("identity", [Identity.model_validate({"cache": {"stale_max": "10s"}})])
async def test_what_is_forgotten_since_nobody_can_be_asked_is_met_no_more(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    await setting.add_key(b"k1", 1)
    await setting.resolve(key(b"k1"))
    met = setting.identify.remember(b"Bearer k1", key(b"k1"))
    setting.clock.now += 31
    monkeypatch.setattr("gateway.identify._WAITING_MAX", 0)
    setting.identify.cached(key(b"k1"), met)
    assert setting.identify.cached(key(b"k1"), met) is None


async def test_a_request_that_fails_on_its_answer_does_not_fail_its_neighbours(setting: Setting) -> None:
    await setting.add_key(b"k1", 1)
    answers = []

    def fail(_: Account | None) -> None:
        raise ZeroDivisionError

    setting.identify.resolve(key(b"k1"), fail)
    setting.identify.resolve(key(b"k1"), answers.append)
    await setting.tasks.drain(5.0)
    assert ids(answers) == [ONE]


@pytest.mark.parametrize(
    "identity",
    [
        Identity.model_validate(
            {"session": {"hash": "none", "sql": "SELECT note, user_id FROM plain WHERE note = ANY($1::text[])"}}
        )
    ],
)
async def test_credentials_may_be_stored_as_they_are(setting: Setting) -> None:
    await setting.phase1.execute("CREATE TABLE plain (note text, user_id bigint)")
    await setting.phase1.execute("INSERT INTO plain VALUES ('täst', 42)")
    assert ids(await setting.resolve(session("täst".encode()), session(b"\xff"))) == ["42", None]
