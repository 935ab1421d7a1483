"""The peers: each as its own documentation sets it up for speed, one worker on one core, connections kept open.

Bodies of 64 KiB fit into their buffers, so that nobody writes to a disk; nobody has an access log. What each is asked
to decide for a call is said at its configuration. Limits are never reached: what is measured is the asking.
"""

import hashlib
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from urllib.parse import urlsplit

import redis

# Tokens a second of Envoy's bucket, requests a minute of HAProxy's table: as many as their counters take.
_ENVOY_TOKENS = 4_000_000_000
_HAPROXY_REQUESTS = 1_000_000_000
_OWNERS_AT_ONCE = 1000  # in one trip to Redis
MODULE_FOLDERS = ("/usr/lib/nginx/modules", "/usr/lib64/nginx/modules", "/usr/share/nginx/modules")


def nginx_module(name: str) -> str | None:
    """Where a module of nginx is; None where it is not installed."""
    return next((path for folder in MODULE_FOLDERS if Path(path := f"{folder}/{name}").exists()), None)


_NGINX_BASE = """
daemon off; master_process on; worker_processes 1; pid {folder}/nginx.pid; error_log stderr;
user root;
events {{ worker_connections 8192; }}
http {{
  access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  keepalive_requests 1000000000; keepalive_timeout 1h; client_body_buffer_size 128k; client_max_body_size 0;
  {http}
}}
"""
_NGINX_PROXY = """
  upstream cast {{ server {upstream}; keepalive 1024; keepalive_requests 1000000000; keepalive_timeout 1h; }}
  proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffers 16 8k;
  server {{ listen 127.0.0.1:{port} backlog=4096; location / {{ {access} proxy_pass http://cast; }} }}
"""

# The service: a small answer, or, where the query asks for it, one of 64 KiB from a file that the kernel has cached.
_NGINX_UPSTREAM = """
  default_type application/json; sendfile on; root {folder};
  server {{
    listen 127.0.0.1:{port} backlog=4096; error_page 418 =200 /large.json;
    location / {{ if ($arg_answer) {{ return 418; }} return 200 '{answer}'; }}
    location = /large.json {{ internal; }}
  }}
"""

# One script call a request, as the usual gateway of this kind makes it: is there room in the account's budget and in
# its sliding window of a minute? If so, take from both. Time comes from Redis. There is no hold, no ledger, nothing to
# settle.
SCRIPT = """
local cost, limit, window = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local budget = redis.call('HMGET', KEYS[1], 'limit', 'used')
if tonumber(budget[2] or 0) + cost > tonumber(budget[1] or 0) then return 1 end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local start = now - now % window
local rate = redis.call('HMGET', KEYS[2], 'start', 'current', 'previous')
local current, previous = tonumber(rate[2] or 0), tonumber(rate[3] or 0)
local before = tonumber(rate[1] or 0)
if before ~= start then
  previous = before == start - window and current or 0
  current = 0
end
if previous * (start + window - now) / window + current + 1 > limit then return 2 end
redis.call('HINCRBY', KEYS[1], 'used', cost)
redis.call('HSET', KEYS[2], 'start', start, 'current', current + 1, 'previous', previous)
redis.call('PEXPIRE', KEYS[2], 2 * window)
return 0
"""
_SHA = hashlib.sha1(SCRIPT.encode(), usedforsecurity=False).hexdigest()
# Cosockets and RESP by hand: less work than any client library would do. The key's owner is kept for 30 s, as Castgate
# keeps it, in a table that all workers share.
_LUA_HTTP = """
  lua_shared_dict owners 64m; lua_socket_pool_size 1024;
  init_by_lua_block {{
    local new_socket, owners, concat = ngx.socket.tcp, ngx.shared.owners, table.concat
    local function bulk(text) return '$' .. #text .. '\\r\\n' .. text .. '\\r\\n' end
    local password = '{password}'
    local evalsha = '*8\\r\\n' .. bulk('EVALSHA') .. bulk('{sha}') .. bulk('2')
    local arguments = bulk('{cost}') .. bulk('{limit}') .. bulk('60000')
    local function fail(why) ngx.log(ngx.ERR, why); return ngx.exit(503) end
    function admit()
      local redis = new_socket()
      redis:settimeout(10000)  -- a thousand connect at once: Redis' backlog drops some, who try again after 1 s
      local ok, why = redis:connect({redis_address})
      if not ok then return fail(why) end
      if password ~= '' and redis:getreusedtimes() == 0 then
        redis:send('*2\\r\\n' .. bulk('AUTH') .. bulk(password))
        redis:receive('*l')
      end
      local key = ngx.var.http_authorization or ''
      local account = owners:get(key)
      if not account then
        redis:send('*2\\r\\n' .. bulk('GET') .. bulk('peer:key:' .. key))
        local length = redis:receive('*l')
        if not length then return fail('no owner') end
        if length == '$-1' then return end
        account, why = redis:receive('*l')
        if not account then return fail(why) end
        owners:set(key, account, 30)
      end
      redis:send(concat({{evalsha, bulk('peer:budget:' .. account), bulk('peer:rate:' .. account), arguments}}))
      local verdict, why = redis:receive('*l')
      if not verdict then return fail(why) end
      redis:setkeepalive(3600000)
      if verdict == ':0' then return end
      if verdict == ':1' then return ngx.exit(402) end
      if verdict == ':2' then return ngx.exit(429) end
      return fail(verdict)
    end
  }}
"""

_HAPROXY = """
global
  maxconn 4000
  nbthread 1
defaults
  mode http
  option http-no-delay
  timeout connect 5s
  timeout client 60s
  timeout server 60s
  timeout http-keep-alive 1h
frontend clients
  bind 127.0.0.1:{port} backlog 4096
  stick-table type string len 128 size 1m expire 60s store http_req_rate(60s)
  http-request track-sc0 req.hdr(authorization)
  http-request deny deny_status 429 if {{ sc_http_req_rate(0) gt {requests} }}
  default_backend cast
backend cast
  http-reuse always
  server cast {upstream}
"""

_ENVOY = """
static_resources:
  listeners:
  - address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
    tcp_backlog_size: 4096
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: cast
          http_filters:
          - name: envoy.filters.http.local_ratelimit
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit
              stat_prefix: limit
              token_bucket: {{max_tokens: {tokens}, tokens_per_fill: {tokens}, fill_interval: 1s}}
              filter_enabled: {{default_value: {{numerator: 100}}}}
              filter_enforced: {{default_value: {{numerator: 100}}}}
          - name: envoy.filters.http.router
            typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
          route_config:
            virtual_hosts:
            - {{name: all, domains: ["*"], routes: [{{match: {{prefix: ""}}, route: {{cluster: cast, timeout: 0s}}}}]}}
  clusters:
  - name: cast
    type: STATIC
    circuit_breakers: {{thresholds: [{{max_connections: 20000, max_pending_requests: 20000, max_requests: 20000}}]}}
    load_assignment:
      cluster_name: cast
      endpoints:
      - lb_endpoints:
        - endpoint: {{address: {{socket_address: {{address: {upstream_host}, port_value: {upstream_port}}}}}}}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerPlace:
    """What a configuration is filled in with."""

    folder: Path
    port: int
    upstream: str  # host:port


def nginx_upstream(folder: Path, port: int, answer: str, large_answer: str) -> Path:
    """The fast service behind all proxies; its configuration."""
    (folder / "large.json").write_text(large_answer)
    return _nginx(folder, _NGINX_UPSTREAM.format(folder=folder, port=port, answer=answer))


def nginx_bare(place: PeerPlace) -> Path:
    """It decides nothing."""
    return _nginx(place.folder, _NGINX_PROXY.format(port=place.port, upstream=place.upstream, access=""))


def nginx_lua(place: PeerPlace, *, redis_url: str, cost: int, limit: int) -> Path:
    """A key's owner from Redis, cached; then budget and rate of a minute in one script call."""
    modules = [nginx_module(name) for name in ("ndk_http_module.so", "ngx_http_lua_module.so")]
    parts = urlsplit(redis_url)
    if parts.scheme == "unix":
        address = f"'unix:{parts.path}'"
    else:
        address = f"'{parts.hostname}', {parts.port or 6379}"
    proxy = _NGINX_PROXY.format(port=place.port, upstream=place.upstream, access="access_by_lua_block { admit() }")
    lua = _LUA_HTTP.format(sha=_SHA, cost=cost, limit=limit, redis_address=address, password=parts.password or "")
    return _nginx(place.folder, lua + proxy, head="".join(f"load_module {module};\n" for module in modules))


def haproxy(place: PeerPlace) -> Path:
    """Requests a minute of each credential, in a stick table."""
    file = place.folder / "haproxy.cfg"
    file.write_text(_HAPROXY.format(port=place.port, upstream=place.upstream, requests=_HAPROXY_REQUESTS))
    return file


def envoy(place: PeerPlace) -> Path:
    """One token bucket for all requests, in its own memory."""
    file = place.folder / "envoy.yaml"
    host, _, port = place.upstream.rpartition(":")
    file.write_text(_ENVOY.format(port=place.port, upstream_host=host, upstream_port=port, tokens=_ENVOY_TOKENS))
    return file


def prepare_redis(redis_url: str, owners: Iterable[tuple[str, str]], limit: int) -> None:
    """What ``nginx_lua`` finds in Redis: the script, and of each API key its owner, and the owner's budget."""
    with redis.Redis.from_url(redis_url) as client:
        client.script_load(SCRIPT)
        left = iter(owners)
        while some := list(islice(left, _OWNERS_AT_ONCE)):
            with client.pipeline(transaction=False) as pipeline:
                for api_key, account_id in some:
                    pipeline.set(f"peer:key:Bearer {api_key}", account_id)
                    pipeline.hset(f"peer:budget:{account_id}", "limit", str(limit))
                pipeline.execute()


def beside_python(name: str) -> str | None:
    """A program that came in a wheel."""
    path = Path(sys.executable).parent / name
    return str(path) if path.exists() else None


def _nginx(folder: Path, http: str, *, head: str = "") -> Path:
    file = folder / "nginx.conf"
    file.write_text(head + _NGINX_BASE.format(folder=folder, http=http))
    return file
