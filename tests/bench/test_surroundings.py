"""What stands around the rows of many accounts."""

from pathlib import Path

from bench.many_accounts import key_of
from bench.processes import is_running, split_cores
from bench.surroundings import Surroundings, of_many_accounts
from bench.targets import ROWS

LUA = next(row for row in ROWS if row.name == "nginx-lua-many").target


def test_many_accounts_have_stores_that_no_other_row_has_as_far_as_they_need_some(tmp_path: Path) -> None:
    others = Surroundings(
        folder=tmp_path,
        cores=split_cores(),
        upstream_url="http://127.0.0.1:9",
        database_url="postgresql://127.0.0.1:9/others",
        redis_url="redis://127.0.0.1:9/0",
        pids={"upstream": 1, "Postgres": 2, "Redis": 3},
        account_id="other",
        api_key="other",
    )
    with of_many_accounts(others, LUA, 3, lambda _: None) as own:
        assert is_running(own.pids["Redis"])
        assert own.pids == {"upstream": 1, "Redis": own.pids["Redis"]}
        assert own.upstream_url == others.upstream_url
        assert own.redis_url not in ("", others.redis_url)
        assert (own.database_url, own.account_id, own.many_accounts) == ("", "", 3)
        assert own.keys_file is not None
        assert own.keys_file.read_text().split() == [key_of(1), key_of(2), key_of(3)]
    assert not is_running(own.pids["Redis"])
