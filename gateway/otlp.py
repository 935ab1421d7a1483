"""Spans to an OpenTelemetry collector: OTLP over HTTP in its JSON form (opentelemetry-proto, OTLP specification 1.x).

Written here and not with the SDK: we make two spans of a known shape for a sampled request, and the SDK would bring
threads, a context for every request and twelve packages. A collector that is away costs spans, never a request.
"""

import asyncio
import contextlib
from collections import deque
from typing import TYPE_CHECKING, Any

import structlog

from gateway.build import build_version
from gateway.policy.money import cents_text
from gateway.relay.observed import Observation

if TYPE_CHECKING:
    from gateway.config.settings import Traces
    from gateway.metrics import Metrics

SEND_INTERVAL_S = 1.0
SEND_TIMEOUT_S = 5.0
CLOSE_TIMEOUT_S = 2.0
# Requests whose spans wait for the next sending, and those of one sending (some 700 KiB of JSON).
WAITING_MAX = 4096
BATCH_MAX = 512
_SERVER, _INTERNAL, _CLIENT = 2, 1, 3
_ERROR = 2

_log = structlog.get_logger()


class Spans:
    """The spans of one worker, on their way."""

    def __init__(self, settings: "Traces", metrics: "Metrics") -> None:
        import httpx  # noqa: PLC0415  3 MiB, for workers that send spans

        assert settings.endpoint is not None
        self._failure = httpx.HTTPError
        self._url = f"{settings.endpoint.rstrip('/')}/v1/traces"
        self._waiting: deque[Observation] = deque()
        self._client = httpx.AsyncClient(timeout=SEND_TIMEOUT_S, headers=settings.header_fields)
        self._failing = False
        self._under_way = 0  # of those that were taken to be sent, what has not come to an end
        self._counters = {
            result: metrics.counter("castgate_traces_total", result=result) for result in ("sent", "dropped", "failed")
        }

    @classmethod
    def of(cls, settings: "Traces", metrics: "Metrics") -> "Spans | None":
        """None where no collector is named."""
        return cls(settings, metrics) if settings.endpoint is not None else None

    def add(self, observation: Observation) -> None:
        """Takes a request's spans on, or drops them where too many wait."""
        if len(self._waiting) >= WAITING_MAX:
            self._counters["dropped"].add()
        else:
            self._waiting.append(observation)

    async def send_forever(self) -> None:
        """Sends once a second, until it is cancelled; ``close`` sends the rest."""
        while True:
            await asyncio.sleep(SEND_INTERVAL_S)
            while self._waiting:
                await self._send()

    async def close(self) -> None:
        """Sends what still waits, for a short time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                while self._waiting:
                    await self._send()
        self._counters["dropped"].add(self._under_way + len(self._waiting))
        await self._client.aclose()

    async def _send(self) -> None:
        batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), BATCH_MAX))]
        error = ""
        self._under_way = len(batch)
        try:
            answer = await self._client.post(self._url, json=document(batch))
            if answer.status_code >= 300:
                error = f"the collector answers {answer.status_code}"
        except self._failure as failure:
            error = str(failure) or type(failure).__name__
        self._counters["failed" if error else "sent"].add(len(batch))
        self._under_way = 0
        if bool(error) != self._failing:
            self._failing = bool(error)
            if error:
                _log.warning("traces_failing", error=error)
            else:
                _log.info("traces_recovered")


def document(batch: list[Observation]) -> dict[str, Any]:
    """An ExportTraceServiceRequest."""
    spans = [span for seen in batch for span in _spans_of(seen)]
    resource = _attributes({"service.name": "castgate", "service.version": build_version()})
    scope = {"name": "castgate"}
    return {"resourceSpans": [{"resource": {"attributes": resource}, "scopeSpans": [{"scope": scope, "spans": spans}]}]}


def _spans_of(seen: Observation) -> list[dict[str, Any]]:
    """A server span for the request, and a client span below it for the call to the upstream, if there was one."""
    trace = seen.trace
    assert trace is not None

    def at(reading_s: float) -> str:
        return str(seen.began_ns + round((reading_s - seen.began_s) * 1e9))

    facts: dict[str, object | None] = {
        "http.request.method": seen.method,
        "url.path": seen.path,
        "http.response.status_code": seen.status or None,
        "client.address": seen.client,
        "castgate.request_id": seen.request_id or None,
        "castgate.kind": seen.kind,
        "castgate.policy": seen.policy,
        "castgate.account": seen.account,
        "castgate.verdict": seen.verdict,
        "castgate.ended": seen.ended,
        "castgate.cost_cents": None if seen.charged_microcents is None else cents_text(seen.charged_microcents),
    }
    spans = [
        {
            "traceId": trace.trace_id,
            "spanId": trace.span_id,
            **({"parentSpanId": trace.parent_id} if trace.parent_id else {}),
            "name": f"{seen.method} {seen.policy or seen.kind}",
            "kind": _SERVER,
            "startTimeUnixNano": str(seen.began_ns),
            "endTimeUnixNano": at(seen.began_s + seen.duration_s),
            "attributes": _attributes(facts),
            "events": [
                {"timeUnixNano": at(end_s), "name": f"{stage} done"}
                for stage, (_, end_s) in seen.stages.items()
                if stage in ("identify", "admit")
            ],
            "status": {"code": _ERROR} if seen.status >= 500 or seen.ended == "cut" else {},
        }
    ]
    if "connect" in seen.stages:
        end_s = max(end for _, end in seen.stages.values())
        spans.append(
            {
                "traceId": trace.trace_id,
                "spanId": trace.upstream_span_id,
                "parentSpanId": trace.span_id,
                "name": seen.method,
                "kind": _CLIENT if seen.kind != "hosted" else _INTERNAL,
                "startTimeUnixNano": at(seen.stages["connect"][0]),
                "endTimeUnixNano": at(end_s),
                "attributes": _attributes({"http.request.method": seen.method, "url.path": seen.path}),
                "events": [],
                "status": {},
            }
        )
    return spans


def _attributes(facts: dict[str, object | None]) -> list[dict[str, Any]]:
    """KeyValue messages; in OTLP's JSON a 64-bit integer is a text."""
    return [
        {"key": key, "value": {"intValue": str(value)} if isinstance(value, int) else {"stringValue": str(value)}}
        for key, value in facts.items()
        if value is not None
    ]
