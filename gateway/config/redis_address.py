"""Where Redis is: one server, a Redis Cluster, or Sentinels that know the primary; read from one URL.

    redis://[user:password@]host[:6379][/database]             one server; rediss:// is the same over TLS
    unix://[user:password@]/path[?db=database]                 one server on this machine
    redis+cluster://[user:password@]host[:6379],host…          some nodes of a cluster; rediss+cluster:// over TLS
    redis+sentinel://[user:password@]host[:26379],host…/service[/database]         rediss+sentinel:// over TLS

User and password are those of the servers that keep data; the Sentinels' own are options, named as redis-py names
them, as those of TLS are. Parts are percent-encoded where they have characters that mean something in a URL.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from gateway.config.errors import found, near_miss

Node = tuple[str, int]  # host, port
Form = Literal["single", "cluster", "sentinel"]

# The first nodes to ask; a cluster tells the others. More are a list that nobody keeps up to date.
NODES_MAX = 64
_FORMS: dict[str, Form] = {
    "redis": "single",
    "rediss": "single",
    "unix": "single",
    "redis+cluster": "cluster",
    "rediss+cluster": "cluster",
    "redis+sentinel": "sentinel",
    "rediss+sentinel": "sentinel",
}
EXAMPLES = {
    "single": "a URL such as redis://host:6379/0",
    "unix": "a URL such as unix:///run/redis.sock?db=0",
    "cluster": "a URL such as redis+cluster://host:6379,host:6379",
    "sentinel": "a URL such as redis+sentinel://host:26379,host:26379/service",
}
_PORTS = {"single": 6379, "cluster": 6379, "sentinel": 26379}
_LOGIN_OPTIONS = ("username", "password")
_SENTINEL_OPTIONS = ("sentinel_username", "sentinel_password")
_TLS_OPTIONS = {
    "ssl_ca_certs": (),
    "ssl_ca_path": (),
    "ssl_certfile": (),
    "ssl_keyfile": (),
    "ssl_password": (),
    "ssl_cert_reqs": ("required", "optional", "none"),
    "ssl_check_hostname": ("true", "false"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisAddress:
    """A URL's parts. ``nodes`` are servers, of a cluster some, or the Sentinels; with ``path`` there are none.

    A login is a password, or a user and a password, or empty.
    """

    form: Form
    nodes: tuple[Node, ...] = ()
    path: str = ""
    login: tuple[str, ...] = field(default=(), repr=False)
    sentinel_login: tuple[str, ...] = field(default=(), repr=False)
    db: int = 0
    service: str = ""
    # None without TLS, else the options that begin with ssl_.
    tls: Mapping[str, str] | None = field(default=None, repr=False)


def read_redis_url(text: str) -> RedisAddress:
    """Raises ValueError: an example of what was expected, or a sentence, neither with anything of a login in it."""
    scheme, there, rest = text.partition("://")
    form = _FORMS.get(scheme)
    if not there or "#" in rest:
        raise ValueError(EXAMPLES[form or "single"])
    if form is None:
        raise ValueError(f"expected a URL that begins with {_listed(_FORMS)}, found {found(scheme)}")
    place, _, query = rest.partition("?")
    options = _options_of(query, form, scheme)
    tls = {name: value for name, value in options.items() if name in _TLS_OPTIONS}
    authority, _, path = place.partition("/")
    login_text, at, hosts = authority.rpartition("@")
    if scheme == "unix":
        if hosts or not path:
            raise ValueError(EXAMPLES["unix"])
        login = _login_of(_split(f"//{authority}", form), options)
        return RedisAddress(form=form, path=f"/{unquote(path)}", login=login, db=_database(options.get("db", "0")))
    names = hosts.split(",")
    if form == "single" and len(names) > 1:
        raise ValueError("expected one host, or redis+cluster:// or redis+sentinel:// before several")
    if len(names) > NODES_MAX:
        raise ValueError(f"expected at most {NODES_MAX} hosts in a Redis URL, found {len(names)}")
    nodes: list[Node] = []
    for name in names:
        parts = _split(f"//{login_text}{at}{name}", form)
        if not parts.hostname or parts.port == 0:
            raise ValueError(EXAMPLES[form])
        node = unquote(parts.hostname), parts.port or _PORTS[form]
        if node in nodes:
            raise ValueError(f"expected each host once in a Redis URL, found {found(name)} twice")
        nodes.append(node)
    service, database = "", path.strip("/")
    if form == "sentinel":
        service, _, database = database.partition("/")
        service = unquote(service)
        if not service:
            raise ValueError("expected the name of the service behind the Sentinels' addresses, as in /mymaster")
    database = database or options.get("db", "0")
    if form == "cluster" and database != "0":
        raise ValueError(f"expected no database, of which a Redis Cluster has only number 0, found {found(database)}")
    return RedisAddress(
        form=form,
        nodes=tuple(nodes),
        login=_login_of(_split(f"//{login_text}{at}", form), options),
        sentinel_login=_login(options.get("sentinel_username"), options.get("sentinel_password")),
        db=_database(database),
        service=service,
        tls=tls if scheme.startswith("rediss") else None,
    )


def _options_of(query: str, form: Form, scheme: str) -> dict[str, str]:
    known = ["db", *_LOGIN_OPTIONS, *_TLS_OPTIONS, *(_SENTINEL_OPTIONS if form == "sentinel" else ())]
    options: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in known:
            raise ValueError(f"unknown option {found(name)} in a Redis URL{near_miss(name, known)}")
        if name in options:
            raise ValueError(f"expected the option {name} once, found it twice")
        if name in _TLS_OPTIONS and not scheme.startswith("rediss"):
            secure = scheme.replace("redis", "rediss", 1) if scheme != "unix" else "rediss"
            raise ValueError(f"expected {secure}:// where {name} is given, found {scheme}://")
        words = _TLS_OPTIONS.get(name, ())
        if words and value.lower() not in words:
            raise ValueError(f"expected {name} to be {_listed(words, '')}, found {found(value)}")
        options[name] = value
    return options


def _split(authority: str, form: Form) -> SplitResult:
    try:
        parts = urlsplit(authority)
        _ = parts.port  # read when asked for
    except ValueError:
        raise ValueError(EXAMPLES[form]) from None
    return parts


def _login_of(parts: SplitResult, options: Mapping[str, str]) -> tuple[str, ...]:
    """What stands before the hosts counts; the options are for who cannot write it there."""
    user, password = parts.username and unquote(parts.username), parts.password and unquote(parts.password)
    return _login(user or options.get("username"), password or options.get("password"))


def _login(user: str | None, password: str | None) -> tuple[str, ...]:
    if not password:
        return ()
    return (user, password) if user else (password,)


def _database(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 4):
        raise ValueError(f"expected a database number such as /0 in a Redis URL, found {found(text)}")
    return int(text)


def _listed(words: "Mapping[str, object] | tuple[str, ...]", after: str = "://") -> str:
    *most, last = (f"{word}{after}" for word in words)
    return f"{', '.join(most)} or {last}"
