"""Faults of the API on request: what a client of Stripe sees on a bad day.

hang      no answer until the fault is taken away, the client leaves or the stand-in stops
close     the connection is closed without a byte (and nothing is done)
html      502 and a page of HTML, as a proxy in front of Stripe answers
limited   429 ``rate_limit``
error     500 ``api_error`` (and nothing is done)
slow      the answer comes after `delay_s`; meanwhile its idempotency key is in use
drop      the request is carried out, then the connection is closed without a byte
"""

import asyncio
from dataclasses import asdict, dataclass
from typing import Any

from aiohttp import web

from stripe_stub.errors import ApiError, invalid

MODES = ("hang", "close", "html", "limited", "error", "slow", "drop")
HANG_MAX_S = 600.0
SLOW_MAX_S = 60.0

_PAGE = """<!doctype html>
<html><head><title>502 Bad Gateway</title></head>
<body><center><h1>502 Bad Gateway</h1></center><hr><center>nginx</center></body></html>
"""


@dataclass(kw_only=True, slots=True)
class Fault:
    mode: str
    times: int | None = None  # so many requests, then all is well again; None: until it is taken away
    path: str = "/v1/"  # of requests whose path begins so
    method: str | None = None
    delay_s: float = 1.0  # of `slow`

    @classmethod
    def parse(cls, values: Any) -> "Fault":
        """Raises a 400 for what is not a fault."""
        if isinstance(values, dict) and values.keys() <= {"mode", "times", "path", "method", "delay_s"}:
            times, delay_s = values.get("times"), values.get("delay_s", 1.0)
            if (
                values.get("mode") in MODES
                and (times is None or (isinstance(times, int) and times > 0))
                and isinstance(values.get("path", ""), str)
                and isinstance(delay_s, (int, float))
                and 0 <= delay_s <= SLOW_MAX_S
            ):
                return cls(**values)
        raise invalid(f"Not a fault: {values}; modes are {', '.join(MODES)}.")


class Faults:
    """The faults that are on; the first that fits a request is the one it gets."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []
        self._changed = asyncio.Event()

    def replace(self, faults: list[Fault]) -> None:
        self._faults = list(faults)
        self._changed.set()  # lets those go that hang
        self._changed = asyncio.Event()

    def take(self, method: str, path: str) -> Fault | None:
        """The fault that this request gets, counted."""
        for fault in self._faults:
            if path.startswith(fault.path) and fault.method in {None, method}:
                if fault.times is not None:
                    fault.times -= 1
                    if fault.times == 0:
                        self._faults.remove(fault)
                return fault
        return None

    async def before(self, request: web.Request, fault: Fault | None) -> web.StreamResponse | None:
        """What happens before the request is looked at; an answer, where the fault is one."""
        match fault.mode if fault else None:
            case "hang":
                try:
                    await asyncio.wait_for(self._changed.wait(), HANG_MAX_S)
                except TimeoutError:
                    pass
                return cut(request)
            case "close":
                return cut(request)
            case "html":
                return web.Response(status=502, text=_PAGE, content_type="text/html")
            case "limited":
                raise ApiError(
                    429,
                    "invalid_request_error",
                    "Request rate limit exceeded. Learn more about rate limits here https://stripe.com/docs/rate-limits.",
                    code="rate_limit",
                )
            case "error":
                raise ApiError(500, "api_error", "Sorry! There was an error while talking to one of our backends.")
            case _:
                return None

    def as_json(self) -> list[dict[str, Any]]:
        return [asdict(fault) for fault in self._faults]


class _Sent(web.StreamResponse):
    """Tells aiohttp that nothing more is to be written on this connection."""

    async def prepare(self, request: web.BaseRequest) -> None:
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        return None


def cut(request: web.Request) -> web.StreamResponse:
    if request.transport is not None:
        request.transport.close()
    sent = _Sent()
    sent.force_close()
    return sent
