"""An exchange that is watched: when each stage was over, what was decided, what it cost. Made for a sample of requests.

It is the same exchange (``super()`` does all that there is to do), so that one that nobody watches pays nothing for
it: no test, no slot, no reading of the clock. What was seen is handed to the ``Observer`` when the exchange is over.
"""

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway.policy.answers import Answer
from gateway.policy.verdicts import BudgetExceeded, Denial, Hold, Pass, RateLimited, Verdict
from gateway.relay.call import ADMITTING, CONNECTING, DONE
from gateway.relay.exchange import Exchange
from gateway.relay.traceparent import TraceContext, forwarded

if TYPE_CHECKING:
    from gateway.accounts import Account
    from gateway.ledger import UsageEvent
    from gateway.observer import Observer
    from gateway.policy.rules import Policy
    from gateway.relay.client import ClientConnection
    from gateway.relay.relay import Relay
    from gateway.relay.request import Request
    from gateway.relay.upstream import UpstreamConnection

STAGES = ("identify", "admit", "connect", "first_byte", "answer")
SETTLE = "settle"  # from the call's end until the ledger has it: after its line is written


@dataclass(slots=True, kw_only=True)
class Observation:
    """What was seen of one request. Times are ``time.perf_counter``'s, as the loop's clock counts whole ms."""

    draw: float  # 0 to 1: below its policy's sample the request has a line in the log
    trace: TraceContext | None
    began_ns: int  # Unix time
    began_s: float
    method: str
    path: str  # without its query, which may hold anything
    client: str
    stages: dict[str, tuple[float, float]]  # stage -> (begin, end), in the order of STAGES
    kind: str = "refused"
    request_id: str = ""
    policy: str | None = None
    mode: str | None = None
    account: str | None = None
    verdict: str | None = None
    status: int = 0  # of the answer; 0: there was none
    answered_by: str = "upstream"
    charged_microcents: int | None = None
    ended: str = "answered"  # answered | refused | cut (in the middle of an answer) | client_gone
    duration_s: float = 0.0
    noteworthy: bool = False  # its policy wants a line in any case


class ObservedExchange(Exchange):
    """One request of the sample."""

    __slots__ = ("_observation", "_observer", "_reported", "_since_s")

    def __init__(
        self,
        relay: "Relay",
        client: "ClientConnection",
        request: "Request",
        observer: "Observer",
        *,
        draw: float,
        trace: TraceContext | None,
    ) -> None:
        super().__init__(relay, client, request)
        self._observer = observer
        self._reported = False
        self._since_s = time.perf_counter()
        self._observation = Observation(
            draw=draw,
            trace=trace,
            began_ns=time.time_ns(),
            began_s=self._since_s,
            method=request.method.decode("latin-1"),
            path=request.target.partition(b"?")[0].decode("latin-1"),
            client=client.address.decode("latin-1"),
            stages={},
        )

    def _passed(self, stage: str) -> None:
        now_s = time.perf_counter()
        self._observation.stages[stage] = (self._since_s, now_s)
        self._since_s = now_s

    def start(self) -> None:
        super().start()
        self._report_if_done()

    def identified(self, account: "Account | None") -> None:
        if self.state == ADMITTING:
            self._passed_identify(account)
        super().identified(account)
        self._report_if_done()

    def _admit(self, account: "Account | None", policy: "Policy") -> None:
        if "identify" not in self._observation.stages:  # the account was known
            self._passed_identify(account)
        super()._admit(account, policy)

    def _passed_identify(self, account: "Account | None") -> None:
        self._passed("identify")
        self._observation.account = account.account_id if account is not None else None
        self._observation.verdict = "unidentified" if account is None else None

    def admitted(self, verdict: Verdict) -> None:
        if self.state == ADMITTING:
            self._passed("admit")
            self._observation.verdict = _verdict_text(verdict)
        super().admitted(verdict)
        self._report_if_done()

    def connected(self, upstream: "UpstreamConnection") -> None:
        if self.state == CONNECTING:
            self._passed("connect")
        trace = self._observation.trace
        if trace is None:
            super().connected(upstream)
            return
        # The next request with the same head is this very object: it gets its own lines back.
        request = self.request
        lines, head = request.lines, request.forwarded_head
        request.lines, request.forwarded_head = forwarded(lines, trace), b""
        super().connected(upstream)
        request.lines, request.forwarded_head = lines, head

    def answer_arrived(self, upstream: "UpstreamConnection") -> None:
        if upstream.head_done and "first_byte" not in self._observation.stages:
            self._passed("first_byte")
        super().answer_arrived(upstream)
        self._report_if_done()

    def whole_answer_arrived(self, upstream: "UpstreamConnection", status: int, data: bytes) -> None:
        self._passed("first_byte")
        super().whole_answer_arrived(upstream, status, data)
        self._report_if_done()

    def switched_protocols(self, upstream: "UpstreamConnection", data: bytes) -> None:
        self._passed("first_byte")
        self._observation.status = 101
        super().switched_protocols(upstream, data)
        self._report_if_done()

    def upstream_failed(self, why: str) -> None:
        super().upstream_failed(why)
        self._report_if_done()

    def upstream_lost(self, upstream: "UpstreamConnection") -> None:
        super().upstream_lost(upstream)
        self._report_if_done()

    def connect_failed(self, error: BaseException) -> None:
        super().connect_failed(error)
        self._report_if_done()

    def timed_out(self) -> None:
        super().timed_out()
        self._report_if_done()

    def request_broken(self) -> None:
        super().request_broken()
        self._report_if_done()

    def client_lost(self) -> None:
        if self.state < DONE and not self.abandoned:
            self._observation.ended = "client_gone"
        super().client_lost()
        self._report_if_done()

    def fail_midway(self) -> None:
        self._observation.ended = "client_gone" if self.abandoned else "cut"
        super().fail_midway()

    def refuse(self, answer: Answer, *, keep_alive: bool = False) -> None:
        observation = self._observation
        observation.status = answer.status
        observation.answered_by = "gateway"
        if observation.ended == "answered":
            observation.ended = "refused"
        super().refuse(answer, keep_alive=keep_alive)

    def noteworthy(self, status: int, ended: str, denial: Denial | None = None) -> None:
        self._observation.noteworthy = True

    def charge(self, event: "UsageEvent") -> None:
        self._observation.charged_microcents = event.cost_microcents
        self._observer.charged(event.event_id)
        super().charge(event)

    def _report_if_done(self) -> None:
        if self.state != DONE or self._reported:
            return
        self._reported = True
        observation = self._observation
        if self.status > 0 and not observation.status:
            observation.status = self.status
        if "first_byte" in observation.stages and observation.status != 101:
            self._passed("answer")
        policy, pool = self.policy, self.pool
        if policy is not None:
            observation.kind, observation.policy, observation.mode = "policy", policy.name, policy.mode
        elif pool is not None:
            observation.kind = "hosted" if pool is self.relay.hosted_pool else "plain"
        observation.request_id = (self.request_id or self.request.request_id or b"").decode("latin-1")
        observation.duration_s = time.perf_counter() - observation.began_s
        self._observer.saw(observation)


def noted(exchange: Exchange, status: int, ended: str, denial: Denial | None) -> Observation:
    """What is known of a call that nobody has watched, just before its end."""
    request, policy, account = exchange.request, exchange.policy, exchange.account
    assert policy is not None
    duration_s = exchange.relay.now() - exchange.started_s
    charge = policy.cost.charge_microcents(status) if exchange.metered else None
    if charge is not None and exchange.meter is not None:
        charge = policy.cost.measured_microcents(exchange.meter.units(time.monotonic()))
    if denial is not None:
        verdict: str | None = _verdict_text(denial)
    elif exchange.state <= ADMITTING:
        verdict = None
    else:
        verdict = "admitted" if account is not None else "unidentified"
    return Observation(
        draw=1.0,
        trace=None,
        began_ns=time.time_ns() - round(duration_s * 1e9),
        began_s=time.perf_counter() - duration_s,
        method=request.method.decode("latin-1"),
        path=request.target.partition(b"?")[0].decode("latin-1"),
        client=exchange.client.address.decode("latin-1"),
        stages={},
        kind="policy",
        request_id=(exchange.request_id or request.request_id or b"").decode("latin-1"),
        policy=policy.name,
        mode=policy.mode,
        account=account.account_id if account is not None else None,
        verdict=verdict,
        status=status,
        answered_by="gateway" if ended == "refused" else "upstream",
        charged_microcents=charge,
        ended=ended,
        duration_s=duration_s,
        noteworthy=True,
    )


def _verdict_text(verdict: Verdict) -> str:
    if isinstance(verdict, Hold | Pass):
        return "admitted"
    if isinstance(verdict, BudgetExceeded):
        return f"budget_exceeded:{verdict.period}"
    if isinstance(verdict, RateLimited):
        return f"rate_limited:{verdict.limit_name}"
    return "store_unavailable"
