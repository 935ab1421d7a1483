"""One request, in order: match, identify, admit, forward, answer, settle. Read ``Exchange`` from top to bottom.

Nothing here waits: each step either goes on to the next at once (known route, cached account, idle upstream
connection) or leaves, and the event it waits for calls the next. The states, and what may happen in each:

    state       waits for                     client gone             deadline
    NEW         -                             -                       -
    ADMITTING   identity, admission           hold voided on arrival  503, hold voided on arrival
    CONNECTING  an upstream connection        void                    503 / 502, void
    SENT        the answer's head             on_client_abort         504, settled as never answered
    ANSWERING   the rest of the answer        on_client_abort         connection reset, settled by its status
    DONE        -                             -                       -

The hold is settled exactly once, by ``_settle``, whichever way the exchange ends.
"""

from collections.abc import Sequence
from fractions import Fraction
from time import monotonic
from typing import TYPE_CHECKING

from gateway.admission import Ask
from gateway.identify import Unknown
from gateway.ledger import UsageEvent
from gateway.policy import answers, rate_limit_fields, rules
from gateway.policy.routes import Ambiguous
from gateway.policy.rules import Policy
from gateway.policy.thresholds import FIELD_NAMES
from gateway.policy.verdicts import Denial, Hold, Pass, Verdict
from gateway.relay import conformance, heads, refusals
from gateway.relay.added import Added
from gateway.relay.capture import identifier_in
from gateway.relay.counters import wall_clock_ms
from gateway.relay.idempotency import BadKeyError, idempotency_key
from gateway.relay.meter import Meter
from gateway.relay.rate_keys import call_weights
from gateway.usage_events import terms_at

if TYPE_CHECKING:
    from gateway.accounts import Account
    from gateway.identify import Credentials
    from gateway.relay.balancer import Balancer
    from gateway.relay.client import ClientConnection
    from gateway.relay.pool import Pool
    from gateway.relay.relay import Relay
    from gateway.relay.request import Request
    from gateway.relay.upstream import UpstreamConnection

NEW, ADMITTING, CONNECTING, SENT, ANSWERING, DONE = range(6)
# Above every time-out of the stores that identity and admission wait for, which give their own answers before.
_ADMIT_TIMEOUT_S = 10.0
# While others wait for an upstream connection: so long may a client be slow to send, or take nothing of its answer.
_DAWDLING_SENDER_S = 1.0
_DAWDLING_READER_S = 5.0


class Exchange:
    """A request and its answer, between one client connection and at most one upstream connection."""

    __slots__ = (
        "_abandoned",
        "_account",
        "_asked",
        "_body_bytes",
        "_body_bytes_max",
        "_captured",
        "_captured_bytes",
        "_client",
        "_credentials",
        "_ends_with_connection",
        "_hold",
        "_keep_alive",
        "_key",
        "_metered",
        "_policy",
        "_pool",
        "_relay",
        "_request_id",
        "_retried",
        "_started",
        "_state",
        "_status",
        "_writing_body",
        "added",
        "meter",
        "request",
        "upstream",
    )

    def __init__(self, relay: "Relay", client: "ClientConnection", request: "Request") -> None:
        self._relay = relay
        self._client = client
        self.request = request
        self.upstream: UpstreamConnection | None = None
        self._state = NEW
        self._policy: Policy | None = None
        self._asked: Policy | None = None  # what admission is asked by; None again once that is out of date
        self._account: Account | None = None
        self._credentials: Credentials | None = None
        self._hold: Hold | None = None
        self._key = ""  # a digest of the idempotency key, where the policy has one
        self._metered = False  # admitted under a policy and not settled yet
        self._pool: Pool | Balancer | None = None
        self._request_id = b""
        self._keep_alive = request.keep_alive
        self._abandoned = False  # the client left; the answer is read for what it costs, and thrown away
        self._retried = False
        self._started = relay.now()
        self._captured: list[bytes] | None = None
        self._captured_bytes = 0
        self.meter: Meter | None = None  # there where the policy's cost is measured
        self.added: tuple[Added, ...] = ()  # to the answer's head, whoever answers
        self._writing_body = False
        self._body_bytes = 0  # of the request, passed on
        self._body_bytes_max = relay.limits.body_bytes_max
        self._status = rules.NEVER_ANSWERED
        self._ends_with_connection = False

    # --- match

    def start(self) -> None:
        relay, request = self._relay, self.request
        if relay.in_flight > relay.limits.in_flight_max and request.refusal is None:
            relay.counters.request("refused")
            self._refuse(refusals.too_many_in_flight(), keep_alive=True)
            return
        if request.matched_by is not relay.routes:
            refusal = request.refusal or refusals.of_head(request, relay.limits)
            if refusal is not None:
                relay.counters.request("refused")
                self._refuse(refusal)
                return
            if request.target.partition(b"?")[0] in relay.hosted_paths:
                relay.counters.request("hosted")
                if not self._refuse_large_body():
                    self._forward(relay.hosted_pool)
                return
            request.match = conformance.match(request, relay.routes)
            request.matched_by = relay.routes
            if isinstance(request.match, Policy):
                shown = request.authorization, request.api_key, request.cookie
                request.doubt = relay.identify.doubt_about(*shown)
                request.credentials = relay.identify.credentials_from(*shown)
        match = request.match
        if match is None:
            relay.counters.request("plain")
            if not self._refuse_large_body():
                self._forward(relay.upstream_pool)
        elif isinstance(match, Ambiguous):
            relay.counters.request("refused")
            self._refuse(refusals.ambiguous_target(request, match))
        elif request.has_two_credentials:
            relay.counters.request("refused")
            self._refuse(refusals.two_credentials(match))
        elif request.doubt is not None:
            relay.counters.request("refused")
            self._refuse(refusals.doubtful_credentials(request.doubt))
        else:
            relay.counters.request("policy")
            self._policy = self._asked = match
            if match.body_bytes_max is not None:
                self._body_bytes_max = match.body_bytes_max
            if not self._refuse_large_body():
                self._identify()

    def _refuse_large_body(self) -> bool:
        """Refuses a body that is known to be too large, whether its length says so or what has come of it."""
        request = self.request
        body_bytes = request.content_length or self._body_bytes + request.body_bytes
        if body_bytes <= self._body_bytes_max:
            return False
        request.refusal = refusals.body_too_large(body_bytes, self._body_bytes_max, is_whole=not request.chunked)
        request.keep_alive = False
        self.request_broken()
        return True

    # --- identify

    def _identify(self) -> None:
        identify = self._relay.identify
        self._state = ADMITTING
        self._client.deadline = self._relay.clock_s + _ADMIT_TIMEOUT_S
        self._credentials = credentials = self.request.credentials
        if credentials is None:
            self.identified(None)
            return
        found = identify.cached(credentials)
        if found is None:
            identify.resolve(credentials, self.identified)
        else:
            self.identified(None if isinstance(found, Unknown) else found)

    def identified(self, account: "Account | None") -> None:
        """The account behind the credentials; None where nobody is known by them, and Phase 1 decides."""
        if self._state == DONE:
            return
        if self._asked is None:
            self._match_again(account)
            return
        policy = self._policy
        if account is None:
            if policy is None or policy.unidentified is None:
                self._forward(self._relay.upstream_pool)  # nobody we know: Phase 1 says 401, not we
            else:
                self._admit(None, policy.unidentified)
            return
        assert policy is not None
        self._account = account
        self._admit(account, policy)

    def rules_changed(self) -> None:
        """New rules are in force. A call that is not admitted yet is theirs: its policy and plan are to be of one
        version. Any other keeps those that it has."""
        if self._state == ADMITTING:
            self._asked = None

    def _match_again(self, account: "Account | None") -> None:
        match = conformance.match(self.request, self._relay.routes)
        if isinstance(match, Ambiguous):
            self._policy = None
            self._refuse(refusals.ambiguous_target(self.request, match), keep_alive=True)
        else:
            self._policy = self._asked = match
            own = None if match is None else match.body_bytes_max
            self._body_bytes_max = self._relay.limits.body_bytes_max if own is None else own
            if self._refuse_large_body():
                return
            if match is None:
                self._forward(self._relay.upstream_pool)
            else:
                self.identified(account)

    # --- admit

    def _admit(self, account: "Account | None", policy: Policy) -> None:
        """Asks for what ``policy`` wants: the request's own, or what limits in shadow have left of it."""
        if self._relay.ledger.refuses and policy.cost.hold_microcents:
            self._refuse(refusals.not_written_down(), keep_alive=True)
            return
        self._asked = policy
        key = ""
        if policy.idempotency is not None:
            try:
                key = idempotency_key(policy.idempotency.header, self.request, self._relay.request_fields)
            except BadKeyError as error:
                if policy.mode != rules.SHADOW:  # which lets every call pass
                    self._refuse(refusals.bad_idempotency_key(str(error)), keep_alive=True)
                    return
        self._key = key
        keys = self._relay.rate_keys(policy, account, self.request, self._credentials, self._client)
        weights = None
        if policy.is_weighed_by_call:
            weights = call_weights(policy, self.request, self._relay.request_fields)
        self._relay.admission.ask(Ask(account, policy.cost.hold_microcents, policy, keys, self.admitted, weights, key))

    def admitted(self, verdict: Verdict) -> None:
        """Admission's answer: a hold, a pass, or a denial."""
        policy = self._policy
        assert policy is not None
        if self._asked is None and self._state != DONE:  # perhaps by the old policy and the new plan
            if isinstance(verdict, Hold):
                self._relay.admission.void(verdict)
            self._match_again(self._account)
            return
        if isinstance(verdict, Hold):
            self._hold = verdict
            left = verdict.limits_left
        elif isinstance(verdict, Pass):
            left = verdict.limits_left
        elif self._is_let_pass(verdict, policy):
            left = ()
        else:
            return
        if left:
            self.added += (Added(*rate_limit_fields.added(left, policy.rate_limit_headers)),)
        if self._state == DONE:  # it was told that nothing is charged, or left: "always" begins with an admitted call
            self._void()
            return
        if self._account is None:  # under limits alone: nothing is charged to nobody
            self._forward(self._relay.upstream_pool)
            return
        self._metered = True
        if policy.budget_headers != "none" and policy.mode != rules.SHADOW:
            use = self._relay.budget_use(self._account)
            if use is not None:
                self.added += (Added(FIELD_NAMES, use.lines),)
        if policy.cost.parts:
            self.meter = Meter(policy.cost.parts, self._relay.limits.captured_bytes_max)
        if policy.cast_id_pointer is not None:
            self._captured = []
        self._forward(self._relay.upstream_pool)

    def _is_let_pass(self, denial: Denial, policy: Policy) -> bool:
        """Whether the call goes on all the same: its policy is in shadow. If not it is refused; or decided anew, where
        it was a limit in shadow that denied it."""
        account, shadow = self._account, self._relay.shadow
        account_id = "" if account is None else account.account_id
        if policy.mode == rules.SHADOW:
            shadow.passed(policy, denial, account_id)
            return True
        rest = None if self._asked is None else shadow.rest_of(self._asked, denial)
        if rest is not None:
            shadow.passed(policy, denial, account_id)
            if self._state != DONE:
                self._admit(account, rest)
            return False
        self._relay.counters.denial(policy, denial)
        if self._state != DONE:
            answer = answers.denial(denial, policy.rate_limit_headers)
            if policy.log.denials:
                self._noteworthy(answer.status, "refused", denial)
            self._refuse(answer, keep_alive=True)
        return False

    # --- forward

    def _forward(self, pool: "Pool | Balancer") -> None:
        self._state = CONNECTING
        self._pool = pool
        self.connecting_again()
        pool.acquire(self)

    def connecting_again(self) -> None:
        """Nothing was sent yet, and an upstream connection is waited for from now on."""
        self._client.deadline = self._relay.clock_s + self._relay.limits.connect_timeout_s

    def connected(self, upstream: "UpstreamConnection") -> None:
        """Sends the head, and what has arrived of the body, in one write."""
        request, client, pool = self.request, self._client, self._pool
        assert pool is not None
        self._state = SENT
        self.upstream = upstream
        limits = self._relay.limits
        client.deadline = self._relay.clock_s + (
            limits.first_byte_timeout_s if request.complete else limits.body_stall_timeout_s
        )
        upstream.start(self)
        if not client.writable:
            upstream.pause_reading()
        if not request.forwarded_head:
            request.forwarded_head = self._forwarded_head(pool)
        parts = [request.forwarded_head]
        if request.request_id is not None:
            self._request_id = request.request_id
        else:
            # The id of the call's ledger event, where there is one: one name for the call in every log and table.
            hold = self._hold
            self._request_id = self._relay.new_request_id() if hold is None else hold.hold_id.encode()
            parts.append(b"X-Request-Id: %b\r\n" % self._request_id)
        if request.chunked:
            parts.append(b"Transfer-Encoding: chunked\r\n")
        if request.upgrade is not None or request.wants_trailers:
            parts.append(heads.hop_lines(request.upgrade, wants_trailers=request.wants_trailers))
        parts.append(b"\r\n")
        if self.meter is not None:
            self.meter.sent(monotonic())  # the loop's own clock counts whole milliseconds
        self._take_body(parts)
        upstream.write(b"".join(parts))
        if client.reading_paused or not request.complete:
            client.update_reading()

    def _forwarded_head(self, pool: "Pool | Balancer") -> bytes:
        """The head's lines that are the same for every request with the same head on this connection."""
        request = self.request
        lines = request.end_to_end_lines(self._relay.request_fields)
        parts = [request.method, b" ", request.target, b" HTTP/1.1\r\n", *lines]
        if request.host is None:  # HTTP/1.0
            parts.append(pool.host_line)
        self._relay.forwarding.tell(parts, request, self._client)
        return b"".join(parts)

    def _take_body(self, parts: list[bytes]) -> None:
        """Moves the body that has arrived, in the request's own framing, to ``parts``."""
        request = self.request
        if self.meter is not None:
            self.meter.asked(request.body)
        if request.chunked:
            parts += [b"%x\r\n%b\r\n" % (len(piece), piece) for piece in request.body]
            if request.complete and not self._writing_body:
                self._writing_body = True  # the last chunk is written once
                parts += (b"0\r\n", *request.trailers, b"\r\n")
        else:
            parts += request.body
        request.body.clear()
        self._body_bytes += request.body_bytes
        request.body_bytes = 0

    def body_arrived(self) -> None:
        """More of the request's body: passed on, or kept (and the client paused) while the upstream cannot take it."""
        upstream, request = self.upstream, self.request
        if request.chunked and self._refuse_large_body():
            return
        if upstream is not None and upstream.writable and self._state < DONE:
            parts: list[bytes] = []
            self._take_body(parts)
            if parts:
                upstream.write(b"".join(parts))
                if self._state == SENT:
                    self._client.deadline = self._relay.clock_s + (
                        self._relay.limits.first_byte_timeout_s
                        if request.complete
                        else self._relay.limits.body_stall_timeout_s
                    )
        self._client.update_reading()

    def upstream_writable(self) -> None:
        """The upstream takes bytes again."""
        self.body_arrived()

    def is_full(self, bytes_max: int) -> bool:
        """Whether no more of the request's body should be read now."""
        upstream = self.upstream
        return self.request.body_bytes > bytes_max or (upstream is not None and not upstream.writable)

    def is_dawdling(self) -> bool:
        """Whether the client hardly sends its request, or takes nothing of its answer: asked while others wait."""
        relay, client = self._relay, self._client
        if self._state == SENT and not self.request.complete:
            elapsed_s = relay.now() - self._started
            return elapsed_s > _DAWDLING_SENDER_S and self._body_bytes < elapsed_s * relay.limits.body_bytes_per_s_min
        unread_s = relay.now() - (client.deadline - relay.limits.idle_timeout_s)
        return self._state == ANSWERING and not client.writable and unread_s > _DAWDLING_READER_S

    def _is_sent(self) -> bool:
        """Whether the upstream was given the whole request: only then its connection is at a message's end."""
        request = self.request
        return request.complete and not request.body and (self._writing_body or not request.chunked)

    # --- answer

    def wants_interim(self, status: int) -> bool:
        """Whether an interim answer (1xx) is passed on: 100 to whoever asked for it, others to whoever knows them."""
        if self.request.http_1_0 or self._abandoned:
            return False
        return self.request.expects_continue if status == 100 else True

    def answer_framing(self, *, bodiless: bool, has_length: bool) -> bytes:
        """The hop-by-hop lines of the answer to the client."""
        request = self.request
        self._ends_with_connection = request.http_1_0 and not has_length and not bodiless
        if self._ends_with_connection or self._relay.draining or not request.complete:
            self._keep_alive = False
        framing = b"" if bodiless or has_length or request.http_1_0 else b"Transfer-Encoding: chunked\r\n"
        via = self._relay.forwarding.via
        if via:
            framing = b"Via: 1.1 %b\r\n%b" % (via, framing)
        if not self._keep_alive:
            return framing + b"Connection: close\r\n"
        return framing + b"Connection: keep-alive\r\n" if request.http_1_0 else framing

    def capture(self, body: bytes) -> None:
        """Keeps the answer for what it tells about the call, up to a bound: its end is where a stream tells it."""
        if self.meter is not None:
            self.meter.body(body)
        captured = self._captured
        if captured is not None:
            captured.append(body)
            self._captured_bytes += len(body)
            while self._captured_bytes - len(captured[0]) > self._relay.limits.captured_bytes_max:
                self._captured_bytes -= len(captured.pop(0))

    def answer_arrived(self, upstream: "UpstreamConnection") -> None:
        """Bytes for the client; and the end of the answer, where it is complete."""
        client = self._client
        if upstream.head_done:
            self._state = ANSWERING
            self._status = upstream.status
        client.deadline = self._relay.clock_s + self._relay.limits.idle_timeout_s
        data = upstream.take()
        if data and not self._abandoned:
            client.write(data)
        if upstream.complete:
            self._answered(upstream)

    def _answered(self, upstream: "UpstreamConnection") -> None:
        self._settle(upstream.status)
        self.upstream = None
        self._state = DONE
        upstream.done(reusable=self._is_sent())
        self._client.exchange_done(keep_alive=self._keep_alive and self.request.complete)

    def switched_protocols(self, upstream: "UpstreamConnection", data: bytes) -> None:
        """101: the call is over as far as HTTP goes, and is settled; from here bytes pass both ways."""
        client = self._client
        self._settle(101)
        self._state = DONE
        self.upstream = None
        if self._abandoned:
            upstream.exchange = None
            upstream.close()
            return
        upstream.become_tunnel(client)
        client.write(data)
        early = client.become_tunnel(upstream)
        if early:
            upstream.write(early)

    # --- the ways it goes wrong

    def connect_failed(self, error: BaseException) -> None:
        if self._state == DONE:
            return
        self._settle(rules.NEVER_SENT)
        self._relay.counters.upstream_error("unreachable")
        self._refuse(refusals.upstream_unreachable(), keep_alive=True)

    def overloaded(self) -> None:
        self._settle(rules.NEVER_SENT)
        self._refuse(refusals.too_many_waiting(), keep_alive=True)

    def upstream_lost(self, upstream: "UpstreamConnection") -> None:
        """The connection closed before the answer was complete."""
        is_stale = self._state == SENT and upstream.used and upstream.is_silent
        if is_stale and not self._retried and self._is_safe_to_repeat():
            # A reused connection that closed before any byte of the answer: the upstream had ended it when we sent.
            self._retried = True
            self.upstream = None
            assert self._pool is not None
            self._forward(self._pool)
            return
        self.upstream_failed("the upstream closed the connection before it had answered in full")

    def _is_safe_to_repeat(self) -> bool:
        request = self.request
        return request.method in (b"GET", b"HEAD", b"OPTIONS") and not (request.has_length or request.chunked)

    def upstream_failed(self, why: str) -> None:
        """The upstream's fault. Before the head is out this is a 502; after it, only a reset is honest."""
        if self._state == DONE:
            return
        self._drop_upstream()
        if self._state == ANSWERING:
            self._fail_midway()
            return
        self._settle(rules.NEVER_ANSWERED)
        self._relay.counters.upstream_error("failed")
        self._refuse(refusals.upstream_failed(why))

    def request_broken(self) -> None:
        """The client's body turned out not to be HTTP: what was forwarded of it is cut off."""
        refusal = self.request.refusal
        assert refusal is not None
        was, self._state = self._state, DONE
        self._drop_upstream()
        self._settle(rules.NEVER_ANSWERED if was >= SENT else rules.NEVER_SENT)
        self._state = was
        if was == ANSWERING:
            self._fail_midway()
        else:
            self._refuse(refusal)

    def client_lost(self) -> None:
        """The client hung up. What that means for a call that was sent is the policy's choice."""
        if self._state == DONE or self._abandoned:
            return
        choice = self._policy.on_client_abort if self._metered and self._policy is not None else "void"
        if self._state >= SENT and choice == "finish" and self.request.complete:
            self._abandoned = True
            self._relay.abandoned.add(self)
            self._relay.in_flight += 1
            if self.upstream is not None:
                self.upstream.resume_reading()
            return
        was, self._state = self._state, DONE
        if self._pool is not None:
            self._pool.give_up(self)
        self._drop_upstream()
        if was < SENT:
            self._settle(rules.NEVER_SENT)
        elif choice == "void" or (choice == "finish" and was == SENT):
            self._void()  # to finish: the upstream never had the whole call
        else:
            self._settle(self._status or 200)

    def timed_out(self) -> None:
        """``Relay.tick`` found the client's deadline passed while this exchange was under way."""
        if self._state == ADMITTING:  # a verdict that comes yet finds the call done, and is given back
            self._refuse(refusals.not_checked_in_time(), keep_alive=True)
        elif self._state == CONNECTING:
            if self._pool is not None:
                self._pool.give_up(self)
            self._settle(rules.NEVER_SENT)
            self._relay.counters.upstream_error("timeout")
            self._refuse(refusals.upstream_timeout("no connection to the upstream came free"), keep_alive=True)
        elif self._state == SENT:
            if self.request.complete and self.upstream is not None:
                self.upstream.pool.failed()
            self._drop_upstream()
            self._settle(rules.NEVER_ANSWERED)
            if self.request.complete:
                self._relay.counters.upstream_error("timeout")
                self._refuse(refusals.upstream_timeout("the upstream did not begin to answer"))
            else:
                self._refuse(refusals.late_body())
        elif self._state == ANSWERING:
            self._drop_upstream()
            self._fail_midway()

    def _fail_midway(self) -> None:
        if self._policy is not None and not self._abandoned and self._policy.log.status_min < rules.NO_STATUS:
            self._noteworthy(self._status, "cut")
        self._settle(self._status)
        self._state = DONE
        # Cut short, a framed answer is seen to be incomplete. One that ends with its connection is not: a reset tells.
        self._client.cut_off(reset=self._ends_with_connection)
        self._leave_abandoned()

    def _drop_upstream(self) -> None:
        upstream, self.upstream = self.upstream, None
        if upstream is not None:
            upstream.exchange = None
            upstream.close()

    def _refuse(self, answer: answers.Answer, *, keep_alive: bool = False) -> None:
        """The gateway's own answer instead of the upstream's."""
        policy = self._policy
        if policy is not None and answer.status >= policy.log.status_min:
            self._noteworthy(answer.status, "refused")
        self._state = DONE
        request = self.request
        keep = keep_alive and request.complete and request.keep_alive and not self._relay.draining
        if keep:
            connection = b"Connection: keep-alive\r\n" if request.http_1_0 else b""
        else:
            connection = b"Connection: close\r\n"
        body = b"" if request.method == b"HEAD" else answer.body
        for group in self.added:
            connection += group.lines
        self._client.write(answer.head(connection) + body)
        self._relay.counters.own_answer(answer.status)
        self._leave_abandoned()
        self._client.exchange_done(keep_alive=keep)

    def _leave_abandoned(self) -> None:
        if self._abandoned and self in self._relay.abandoned:
            self._relay.abandoned.remove(self)
            self._relay.in_flight -= 1

    @property
    def finished(self) -> bool:
        """Whether nothing more can happen to it."""
        return self._state == DONE

    @property
    def deadline(self) -> float:
        """Loop time by which the next thing must have happened."""
        return self._client.deadline

    # --- settle

    def _void(self) -> None:
        hold, self._hold = self._hold, None
        self._metered = False
        if hold is not None:
            self._relay.admission.void(hold)

    def _settle(self, status: int) -> None:
        """Posts or voids the call's hold, once. ``status`` is the upstream's, or one of rules.NEVER_…"""
        self._leave_abandoned()
        policy = self._policy
        if policy is None:
            return
        if status > 0:
            duration_s = self._relay.now() - self._started
            self._relay.counters.cast(policy.name, status, duration_s)
            if status >= policy.log.status_min or duration_s >= policy.log.slow_s:
                self._noteworthy(status, "client_gone" if self._abandoned or self._state == DONE else "answered")
            if self._account is None:
                self._unidentified_answered(status)
        if not self._metered:
            return
        charge = policy.cost.charge_microcents(status)
        if charge is None:
            self._void()
            return
        units: list[Fraction | int | None] = []
        if self.meter is not None:
            units = self.meter.units(monotonic())
            charge = self._measured(units, policy)
        free = policy.cost.free
        free_units = 0 if free is None else policy.cost.free_units(free, units, charge)
        hold, self._hold = self._hold, None
        self._metered = False
        account = self._account
        assert account is not None
        if hold is None:
            # When it began: whether an idempotency key still counted, and which window it is in, was asked then.
            event_id = self._relay.new_event_id()
            occurred_ms = wall_clock_ms() - round((self._relay.now() - self._started) * 1000)
        else:
            event_id, occurred_ms = hold.hold_id, hold.admitted_ms
            self._relay.admission.finished(hold, charge, free_units)
        cast_id = None
        if self._captured and policy.cast_id_pointer is not None:
            cast_id = identifier_in(self._captured, policy.cast_id_pointer)
        self._charge(
            UsageEvent(
                event_id,
                account.account_id,
                policy.name,
                occurred_ms,
                charge,
                max(status, rules.NEVER_ANSWERED),
                "posted",
                cast_id,
                self._request_id.decode("latin-1"),
                None if free is None and not self._key else terms_at(policy, occurred_ms, free_units, self._key),
            )
        )

    def _noteworthy(self, status: int, ended: str, denial: Denial | None = None) -> None:
        """The policy wants a line in the log of this call, whatever the sample says; of several the first counts."""
        self._relay.noteworthy(self, status, ended, denial)

    def _charge(self, event: UsageEvent) -> None:
        self._relay.ledger.append(event)

    def _measured(self, units: Sequence[Fraction | int | None], policy: Policy) -> int:
        """What was seen of the call comes to; more than was held is charged all the same, and counted."""
        charge = policy.cost.measured_microcents(units)
        self._relay.counters.measured(
            policy.name, is_missing=None in units, is_over_hold=charge > policy.cost.hold_microcents
        )
        return charge

    def _unidentified_answered(self, status: int) -> None:
        """Phase 1 let somebody in whom we do not know: what the cache believes of these credentials is wrong."""
        if 200 <= status < 300 and self._credentials is not None:
            self._relay.identify.forget(self._credentials)
            self._relay.counters.unidentified_success.add()
