"""What makes the load, as a process on its own core: wrk where it is installed, ``bench.load`` where it is not.

wrk costs a fraction of what Python does, so on a small machine more is left for what stands behind the proxy. It hangs
up on the calls under way when its time is over (``Sample.abandoned_max``), and it corrects its latencies for the
requests that a stall kept it from sending; ``bench.load`` does neither. A figure always names its generator.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from bench.processes import BenchError, pinned, run_program

REPLY_TIMEOUT_S = 10
# Beyond its seconds a generator may wait for answers and start up for this long.
GRACE_S = 30.0
INSTALL_WRK = "apt-get install wrk"

# Statuses of 400 and more are counted by wrk itself; a hook for each answer would cost more than the answer.
_WRK_REPORT = """
done = function(summary, latency, requests)
  io.stderr:write(string.format(
    '{"requests":%d,"refused":%d,"errors":%d,"elapsed_s":%.6f,"p50_ms":%.4f,"p99_ms":%.4f,"p99_9_ms":%.4f}',
    summary.requests, summary.errors.status,
    summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout,
    summary.duration / 1e6,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3, latency:percentile(99.9) / 1e3))
end
"""

# One request is made, and the next key written into it each time. LuaJIT interns strings by a hash of a few of their
# bytes (lj_str_new): requests that differ elsewhere would be one chain, which each new one walks. Nobody looks the
# written string up, so it does no harm that its hash no longer fits; wrk copies it before it asks again.
_WRK_KEYS = """
local ffi = require("ffi")
local copy, keys, request_text, target, source, width, place, count = ffi.copy
init = function()
  local file = assert(io.open(%s, "rb"))
  keys = file:read("*a")
  file:close()
  width, count, place = %d, %d, %d
  source = ffi.cast("const char *", keys)
  wrk.headers["Authorization"] = "Bearer " .. keys:sub(1, width)
  request_text = wrk.format()
  local before = request_text:find("\\nAuthorization: Bearer ", 1, true) + #"Authorization: Bearer "
  target = ffi.cast("char *", request_text) + before
end
request = function()
  copy(target, source + place * (width + 1), width)
  place = place + 1
  if place == count then place = 0 end
  return request_text
end
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is asked, again and again."""

    path: str
    method: str = "GET"
    headers: dict[str, str] = field(default_factory=dict)
    body: str = ""
    # API keys of one length, one a line: each request has the next one of them, in Authorization.
    keys_file: Path | None = None
    first_key: int = 0  # the place of the one to begin with


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What a generator saw in one run."""

    generator: str
    requests: int  # with a whole answer, of whatever status
    refused: int  # of these, with a status of 400 and more
    errors: int
    abandoned_max: int  # calls at most that were under way, and perhaps done, when the generator hung up
    elapsed_s: float
    p50_ms: float
    p99_ms: float
    p99_9_ms: float

    @property
    def requests_per_s(self) -> float:
        """Answers a second."""
        return self.requests / self.elapsed_s

    def as_json(self) -> dict[str, object]:
        """The figures as JSON holds them."""
        return {**asdict(self), "requests_per_s": self.requests_per_s}


# Told the base URL, the request, the number of connections and the seconds.
Generator = Callable[[str, Request, int, float], Sample]


def generator_named(name: str, *, folder: Path, cores: Sequence[int]) -> Generator:
    """``wrk``, ``python``, or ``auto`` for wrk where it is on the path. Raises BenchError where it is missing."""
    program = shutil.which("wrk")
    if name == "wrk" and program is None:
        raise BenchError(f"wrk is not installed ({INSTALL_WRK})")

    def with_wrk(base_url: str, request: Request, connections: int, seconds: float) -> Sample:
        assert program is not None
        return _wrk(program, folder, cores, base_url, request, connections, seconds)

    def with_python(base_url: str, request: Request, connections: int, seconds: float) -> Sample:
        return _python(cores, base_url, request, connections, seconds)

    return with_python if name == "python" or program is None else with_wrk


def wrk_script(request: Request) -> str:
    """Lua that has wrk send the request. Raises BenchError for keys that it cannot write over each other."""
    lines = [f"wrk.method = {_lua(request.method)}", f"wrk.body = {_lua(request.body) if request.body else 'nil'}"]
    lines += [f"wrk.headers[{_lua(name)}] = {_lua(value)}" for name, value in request.headers.items()]
    if request.keys_file is not None:
        keys = request.keys_file.read_text().splitlines()
        lengths = {len(key) for key in keys}
        if len(lengths) != 1:
            raise BenchError(f"{request.keys_file}: expected keys of one length, found {len(lengths)} lengths")
        place = (request.first_key - 1) % len(keys)  # wrk asks once beforehand, to see that it is a request
        lines.append(_WRK_KEYS % (_lua(str(request.keys_file)), lengths.pop(), len(keys), place))
    return "\n".join(lines) + _WRK_REPORT


def _wrk(
    program: str, folder: Path, cores: Sequence[int], base_url: str, request: Request, connections: int, seconds: float
) -> Sample:
    script = folder / "wrk.lua"
    script.touch(mode=0o600)  # it holds a key
    script.write_text(wrk_script(request))
    whole_s = max(1, round(seconds))  # wrk knows no fractions
    ended = _run(
        [
            *(program, "--threads", "1", "--connections", str(connections), "--duration", f"{whole_s}s"),
            *("--timeout", f"{REPLY_TIMEOUT_S}s", "--script", str(script), base_url + request.path),
        ],
        cores,
        whole_s + GRACE_S,
    )
    try:
        figures = json.loads(ended.stderr)
    except ValueError:
        raise BenchError(f"wrk failed: {(ended.stdout + ended.stderr).strip()}") from None
    return Sample(generator="wrk", abandoned_max=connections, **figures)


def _python(cores: Sequence[int], base_url: str, request: Request, connections: int, seconds: float) -> Sample:
    words = [sys.executable, "-m", "bench.load", base_url + request.path, "--method", request.method, "--json"]
    words += ["--connections", str(connections), "--seconds", str(seconds), "--body", request.body]
    for name, value in request.headers.items():
        words += ["--header", f"{name}: {value}"]
    if request.keys_file is not None:
        words += ["--keys", str(request.keys_file), "--first-key", str(request.first_key)]
    ended = _run(words, cores, seconds + GRACE_S)
    try:
        figures = json.loads(ended.stdout)
    except ValueError:
        raise BenchError(f"bench.load failed: {(ended.stdout + ended.stderr).strip()}") from None
    statuses = {int(status): int(count) for status, count in figures["statuses"].items()}
    return Sample(
        generator="python",
        requests=figures["requests"],
        refused=sum(count for status, count in statuses.items() if status >= 400),
        errors=sum(figures["errors"].values()),
        abandoned_max=0,
        elapsed_s=figures["elapsed_s"],
        p50_ms=figures["p50_ms"],
        p99_ms=figures["p99_ms"],
        p99_9_ms=figures["p99_9_ms"],
    )


def _run(words: list[str], cores: Sequence[int], timeout_s: float) -> "subprocess.CompletedProcess[str]":
    with pinned(cores):
        return run_program(words, timeout_s=timeout_s)


def _lua(text: str) -> str:
    """A Lua string of the text; bytes in decimal escapes, so nothing needs thought."""
    return '"' + "".join(f"\\{byte:03d}" for byte in text.encode()) + '"'
