"""Where Redis is: every form of address, and each mistake in one with the message that says what was expected."""

import pytest

from gateway.config.redis_address import RedisAddress, read_redis_url
from tests.config.good_files import CONFIG, LoadIt, Refusal

FORMS = "redis://, rediss://, unix://, redis+cluster://, rediss+cluster://, redis+sentinel:// or rediss+sentinel://"


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://h", RedisAddress(form="single", nodes=(("h", 6379),))),
        ("redis://h:1/3", RedisAddress(form="single", nodes=(("h", 1),), db=3)),
        ("redis://h?db=4", RedisAddress(form="single", nodes=(("h", 6379),), db=4)),
        ("redis://u:p%40%2F@[::1]:7/", RedisAddress(form="single", nodes=(("::1", 7),), login=("u", "p@/"))),
        ("redis://u@h", RedisAddress(form="single", nodes=(("h", 6379),))),
        ("redis://h?password=p&username=u", RedisAddress(form="single", nodes=(("h", 6379),), login=("u", "p"))),
        ("rediss://:p@h", RedisAddress(form="single", nodes=(("h", 6379),), login=("p",), tls={})),
        (
            "rediss://h?ssl_ca_certs=/ca.pem&ssl_check_hostname=false",
            RedisAddress(
                form="single", nodes=(("h", 6379),), tls={"ssl_ca_certs": "/ca.pem", "ssl_check_hostname": "false"}
            ),
        ),
        ("unix:///run/re%20dis?db=2", RedisAddress(form="single", path="/run/re dis", db=2)),
        ("unix://:p@/run/redis", RedisAddress(form="single", path="/run/redis", login=("p",))),
        ("redis+cluster://a", RedisAddress(form="cluster", nodes=(("a", 6379),))),
        (
            "redis+cluster://u:p@a:1,b,[::1]:7/0",
            RedisAddress(form="cluster", nodes=(("a", 1), ("b", 6379), ("::1", 7)), login=("u", "p")),
        ),
        (
            "rediss+cluster://a,b?ssl_cert_reqs=none",
            RedisAddress(form="cluster", nodes=(("a", 6379), ("b", 6379)), tls={"ssl_cert_reqs": "none"}),
        ),
        (
            "redis+sentinel://:p@a,b:1/my%20master/2?sentinel_username=s&sentinel_password=q",
            RedisAddress(
                form="sentinel",
                nodes=(("a", 26379), ("b", 1)),
                login=("p",),
                sentinel_login=("s", "q"),
                db=2,
                service="my master",
            ),
        ),
        ("rediss+sentinel://a/m", RedisAddress(form="sentinel", nodes=(("a", 26379),), service="m", tls={})),
    ],
)
def test_an_address_says_where_redis_is(url: str, address: RedisAddress) -> None:
    assert read_redis_url(url) == address


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", 'expected a URL such as redis://host:6379/0, found ""'),
        ("redis://", 'expected a URL such as redis://host:6379/0, found "redis://" (from ${REDIS_URL})'),
        ("redis://h:0", 'expected a URL such as redis://host:6379/0, found "redis://h:0" (from ${REDIS_URL})'),
        ("redis://h:x", 'expected a URL such as redis://host:6379/0, found "redis://h:x" (from ${REDIS_URL})'),
        ("redis://h#1", 'expected a URL such as redis://host:6379/0, found "redis://h#1" (from ${REDIS_URL})'),
        ("redis-cluster://h", f'expected a URL that begins with {FORMS}, found "redis-cluster"'),
        ("redis://a,b", "expected one host, or redis+cluster:// or redis+sentinel:// before several"),
        ("redis://h/one", 'expected a database number such as /0 in a Redis URL, found "one"'),
        ("unix://run/redis", 'expected a URL such as unix:///run/redis.sock?db=0, found "unix://run/redis"'),
        (
            "redis+cluster://a:1,",
            'expected a URL such as redis+cluster://host:6379,host:6379, found "redis+cluster://a:1," '
            "(from ${REDIS_URL})",
        ),
        ("redis+cluster://a,a:6379", 'expected each host once in a Redis URL, found "a:6379" twice'),
        (
            "redis+cluster://" + ",".join(f"h{n}" for n in range(65)),
            "expected at most 64 hosts in a Redis URL, found 65",
        ),
        ("redis+cluster://a/2", "expected no database, of which a Redis Cluster has only number 0, found 2"),
        (
            "redis+sentinel://a:1,b:1",
            "expected the name of the service behind the Sentinels' addresses, as in /mymaster",
        ),
        ("redis+sentinel://a/m/x", 'expected a database number such as /0 in a Redis URL, found "x"'),
        ("redis://h?socket_timout=1", 'unknown option "socket_timout" in a Redis URL'),
        (
            "rediss://h?ssl_ca_cert=/ca.pem",
            'unknown option "ssl_ca_cert" in a Redis URL, did you mean "ssl_ca_certs"?',
        ),
        ("redis+cluster://a?sentinel_password=p", 'unknown option "sentinel_password" in a Redis URL'),
        ("redis://h?db=1&db=2", "expected the option db once, found it twice"),
        (
            "redis+sentinel://a/m?ssl_ca_certs=/ca.pem",
            "expected rediss+sentinel:// where ssl_ca_certs is given, found redis+sentinel://",
        ),
        ("rediss://h?ssl_cert_reqs=no", 'expected ssl_cert_reqs to be required, optional or none, found "no"'),
    ],
)
def test_a_mistake_in_an_address_says_what_was_expected(url: str, message: str, refusal: Refusal) -> None:
    (line,) = refusal(REDIS_URL=url)
    assert line.startswith("config.yaml:3:")
    assert line.partition("redis.url: ")[2].startswith(message)


@pytest.mark.parametrize(
    "url",
    [
        "redis:hunter2@h",
        "redis://:hunter2/@h",
        "redis://u:1/hunter2@h",
        "redis://u:1?hunter2@h",
        "redis+cluster://:hunter2@a:x",
        "redis+sentinel://:hunter2@a",
        "redis+sentinel://a?sentinel_password=hunter2",
        "redis+cluster://:hunter2#@a",
    ],
)
def test_no_password_is_in_a_message(url: str, refusal: Refusal) -> None:
    (line,) = refusal(REDIS_URL=url)
    assert "redis.url: " in line
    assert "hunter2" not in line


def test_a_login_is_in_no_text_of_an_address() -> None:
    address = read_redis_url("rediss+sentinel://u:hunter2@a/m?sentinel_password=hunter2&ssl_password=hunter2")
    assert "hunter2" not in repr(address)


@pytest.mark.parametrize(
    ("url", "wanted", "partitions"),
    [
        ("redis://h", None, 1),
        ("redis+sentinel://h/m", "auto", 1),
        ("redis+cluster://h", None, 16),
        ("rediss+cluster://h", "auto", 16),
        ("redis+cluster://h", "64", 64),
        ("redis://h", "4", 4),
    ],
)
def test_a_cluster_has_more_partitions_unless_told_otherwise(
    url: str, wanted: str | None, partitions: int, load_it: LoadIt
) -> None:
    config = CONFIG
    if wanted is not None:
        config = CONFIG.replace("redis: {url:", f"redis: {{partitions: {wanted}, url:")
        assert config != CONFIG
    assert load_it({"config.yaml": config}, REDIS_URL=url).settings.redis.partitions == partitions


@pytest.mark.parametrize(("wanted", "found"), [("many", '"many"'), ("0", "0"), ("-1", "-1")])
def test_a_number_of_partitions_is_one(wanted: str, found: str, refusal: Refusal) -> None:
    (line,) = refusal({"config.yaml": CONFIG.replace("redis: {url:", f"redis: {{partitions: {wanted}, url:")})
    assert line.endswith(f"found {found}")
