"""One request, in order: match, identify, admit, forward, answer, settle. Read ``Exchange`` from top to bottom.

Nothing here waits: each step either goes on to the next at once (known route, cached account, idle upstream
connection) or leaves, and the event it waits for calls the next. What it knows meanwhile, and its states, are in
``call.py``; the last step is ``settle.py``; what happens when it does not come to that is ``cut_short.py``.
"""

from time import monotonic
from typing import TYPE_CHECKING

from gateway.admission import Ask
from gateway.identify import UNKNOWN
from gateway.policy import answers, rate_limit_fields, rules
from gateway.policy.routes import Ambiguous
from gateway.policy.rules import Policy
from gateway.policy.thresholds import FIELD_NAMES
from gateway.policy.verdicts import Denial, Hold, Pass, Verdict
from gateway.relay import conformance, cut_short, heads, refusals
from gateway.relay.added import Added
from gateway.relay.call import ADMITTING, ANSWERING, CONNECTING, DONE, SENT, Call
from gateway.relay.first_met import is_call
from gateway.relay.idempotency import BadKeyError, idempotency_key
from gateway.relay.meter import Meter
from gateway.relay.rate_keys import call_weights
from gateway.relay.settle import leave_abandoned, settle, void

if TYPE_CHECKING:
    from gateway.accounts import Account
    from gateway.ledger import UsageEvent
    from gateway.relay.balancer import Balancer
    from gateway.relay.pool import Pool
    from gateway.relay.upstream import UpstreamConnection

# Above every time-out of the stores that identity and admission wait for, which give their own answers before.
_ADMIT_TIMEOUT_S = 10.0


class Exchange(Call):
    """A call between one client connection and at most one upstream connection: the steps of its way."""

    __slots__ = ()

    # --- match

    def start(self) -> None:
        relay, request = self.relay, self.request
        if relay.in_flight > relay.limits.in_flight_max and request.refusal is None:
            relay.counters.request("refused")
            self.refuse(refusals.too_many_in_flight(), keep_alive=True)
            return
        is_new = request.matched_by is not relay.routes
        if is_new and not is_call(self):
            return
        policy = request.policy
        if policy is None:
            relay.counters.plain_requests.add()
            if not (is_new and self.refuse_large_body()):  # one with the same head is no larger
                self.forward(relay.upstream_pool)
        else:
            relay.counters.policy_requests.add()
            self.policy = self.asked = policy
            if not (is_new and self.refuse_large_body()):
                self._identify(policy)

    def refuse_large_body(self) -> bool:
        """Refuses a body that is known to be too large, whether its length says so or what has come of it."""
        request, policy = self.request, self.policy
        own = None if policy is None else policy.body_bytes_max
        body_bytes_max = self.relay.limits.body_bytes_max if own is None else own
        body_bytes = request.content_length or self.body_bytes + request.body_bytes
        if body_bytes <= body_bytes_max:
            return False
        request.refusal = refusals.body_too_large(body_bytes, body_bytes_max, is_whole=not request.chunked)
        request.keep_alive = False
        self.request_broken()
        return True

    # --- identify

    def _identify(self, policy: Policy) -> None:
        relay, credentials = self.relay, self.request.credentials
        self.state = ADMITTING
        self.client.deadline = relay.clock_s + _ADMIT_TIMEOUT_S
        found = UNKNOWN if credentials is None else relay.identify.cached(credentials, self.request.met)
        if found is UNKNOWN:
            self.identified(None)
        elif found is not None:
            self.account = found
            self._admit(found, policy)
        elif credentials is not None:
            relay.identify.resolve(credentials, self.identified)

    def identified(self, account: "Account | None") -> None:
        """The account behind the credentials; None where nobody is known by them, and Phase 1 decides."""
        if self.state == DONE:
            return
        policy = self.asked
        if policy is None:
            self._match_again(account)
        elif account is not None:
            self.account = account
            self._admit(account, policy)
        elif policy.unidentified is not None:
            self._admit(None, policy.unidentified)
        else:
            self.forward(self.relay.upstream_pool)  # nobody we know: Phase 1 says 401, not we

    def rules_changed(self) -> None:
        """New rules are in force. A call that is not admitted yet is theirs: its policy and plan are to be of one
        version. Any other keeps those that it has."""
        if self.state == ADMITTING:
            self.asked = None

    def _match_again(self, account: "Account | None") -> None:
        match = conformance.match(self.request, self.relay.routes)
        if isinstance(match, Ambiguous):
            self.policy = None
            self.refuse(refusals.ambiguous_target(self.request, match), keep_alive=True)
        else:
            self.policy = self.asked = match
            self.key = ""
            if self.refuse_large_body():
                return
            if match is None:
                self.forward(self.relay.upstream_pool)
            else:
                self.identified(account)

    # --- admit

    def _admit(self, account: "Account | None", policy: Policy) -> None:
        """Asks for what ``policy`` wants: the request's own, or what limits in shadow have left of it."""
        relay = self.relay
        hold_microcents = policy.cost.hold_microcents
        if hold_microcents and relay.ledger.refuses:
            self.refuse(refusals.not_written_down(), keep_alive=True)
            return
        self.asked = policy
        if policy.asks_for_account and account is not None:  # nearly always
            relay.admission.ask(Ask(account, hold_microcents, policy, (account.account_id,), self.admitted))
            return
        request = self.request
        if policy.idempotency is not None:
            try:
                self.key = idempotency_key(policy.idempotency.header, request, relay.request_fields)
            except BadKeyError as error:
                if policy.mode != rules.SHADOW:  # which lets every call pass
                    self.refuse(refusals.bad_idempotency_key(str(error)), keep_alive=True)
                    return
        keys = relay.rate_keys(policy, account, request, self.client)
        weights = call_weights(policy, request, relay.request_fields) if policy.is_weighed_by_call else None
        relay.admission.ask(Ask(account, hold_microcents, policy, keys, self.admitted, weights, self.key))

    def admitted(self, verdict: Verdict) -> None:
        """Admission's answer: a hold, a pass, or a denial."""
        policy = self.policy
        assert policy is not None
        if self.asked is None and self.state != DONE:  # perhaps by the old policy and the new plan
            if isinstance(verdict, Hold):
                self.relay.admission.void(verdict)
            self._match_again(self.account)
            return
        if isinstance(verdict, Hold):
            self.hold = verdict
            left = verdict.limits_left
        elif isinstance(verdict, Pass):
            left = verdict.limits_left
        elif self._is_let_pass(verdict, policy):
            left = ()
        else:
            return
        if left:
            self.added += (Added(*rate_limit_fields.added(left, policy.rate_limit_headers)),)
        if self.state == DONE:  # it was told that nothing is charged, or left: "always" begins with an admitted call
            void(self)
            return
        if self.account is None:  # under limits alone: nothing is charged to nobody
            self.forward(self.relay.upstream_pool)
            return
        self.metered = True
        if policy.budget_headers != "none" and policy.mode != rules.SHADOW:
            use = self.relay.budget_use(self.account)
            if use is not None:
                self.added += (Added(FIELD_NAMES, use.lines),)
        if policy.cost.parts:
            self.meter = Meter(policy.cost.parts, self.relay.limits.captured_bytes_max)
        if policy.cast_id_pointer is not None:
            self.captured = []
        self.forward(self.relay.upstream_pool)

    def _is_let_pass(self, denial: Denial, policy: Policy) -> bool:
        """Whether the call goes on all the same: its policy is in shadow. If not it is refused; or decided anew, where
        it was a limit in shadow that denied it."""
        account, shadow = self.account, self.relay.shadow
        account_id = "" if account is None else account.account_id
        if policy.mode == rules.SHADOW:
            shadow.passed(policy, denial, account_id)
            return True
        rest = None if self.asked is None else shadow.rest_of(self.asked, denial)
        if rest is not None:
            shadow.passed(policy, denial, account_id)
            if self.state != DONE:
                self._admit(account, rest)
            return False
        self.relay.counters.denial(policy, denial)
        if self.state != DONE:
            answer = answers.denial(denial, policy.rate_limit_headers)
            if policy.log.denials:
                self.noteworthy(answer.status, "refused", denial)
            self.refuse(answer, keep_alive=True)
        return False

    # --- forward

    def forward(self, pool: "Pool | Balancer") -> None:
        self.state = CONNECTING
        self.pool = pool
        pool.acquire(self)
        if self.state == CONNECTING:  # no connection was idle
            self.connecting_again()

    def connecting_again(self) -> None:
        """Nothing was sent yet, and an upstream connection is waited for from now on."""
        self.client.deadline = self.relay.clock_s + self.relay.limits.connect_timeout_s

    def connected(self, upstream: "UpstreamConnection") -> None:
        """Sends the head, and what has arrived of the body, in one write."""
        relay, request, client = self.relay, self.request, self.client
        self.state = SENT
        self.upstream = upstream
        if not request.forwarded_head:
            self._write_head()
        request_id = request.request_id
        if request_id is not None:
            head = request.forwarded_head + request.forwarded_end
        else:
            # The id of the call's ledger event, where there is one: one name for the call in every log and table.
            hold = self.hold
            request_id = relay.new_request_id() if hold is None else hold.hold_id.encode()
            head = b"%bX-Request-Id: %b\r\n%b" % (request.forwarded_head, request_id, request.forwarded_end)
        self.request_id = request_id
        if self.meter is not None:
            self.meter.sent(monotonic())  # the loop's own clock counts whole milliseconds
        upstream.start(self, head + self._taken_body())
        if not client.writable:
            upstream.pause_reading()
        if request.complete:
            client.deadline = relay.clock_s + relay.limits.first_byte_timeout_s
            if client.reading_paused:
                client.update_reading()
        else:
            client.deadline = relay.clock_s + relay.limits.body_stall_timeout_s
            client.update_reading()

    def _write_head(self) -> None:
        """What the upstream gets before and behind the request's id; the next request with the same head has it too."""
        request, pool = self.request, self.pool
        assert pool is not None
        fields = self.relay.request_fields
        request.forwarded_head = self.relay.forwarding.head(request, fields, self.client, pool.host_line)
        end = b"Transfer-Encoding: chunked\r\n" if request.chunked else b""
        if request.upgrade is not None or request.wants_trailers:
            end += heads.hop_lines(request.upgrade, wants_trailers=request.wants_trailers)
        request.forwarded_end = end + b"\r\n"

    def _taken_body(self) -> bytes:
        """What has arrived of the body and was not passed on, in the request's own framing."""
        request = self.request
        pieces = request.body
        if self.meter is not None:
            self.meter.asked(pieces)
        if request.chunked:
            pieces = [b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces]
            if request.complete and not self.writing_body:
                self.writing_body = True  # the last chunk is written once
                pieces += (b"0\r\n", *request.trailers, b"\r\n")
        request.body = []
        if not request.complete:  # or else nobody counts on
            self.body_bytes += request.body_bytes
        request.body_bytes = 0
        return b"".join(pieces)

    def body_arrived(self) -> None:
        """More of the request's body: passed on, or kept (and the client paused) while the upstream cannot take it."""
        upstream, request = self.upstream, self.request
        if request.chunked and self.refuse_large_body():
            return
        if upstream is not None and upstream.writable and self.state < DONE:
            data = self._taken_body()
            if data:
                upstream.write(data)
                if self.state == SENT:
                    self.client.deadline = self.relay.clock_s + (
                        self.relay.limits.first_byte_timeout_s
                        if request.complete
                        else self.relay.limits.body_stall_timeout_s
                    )
        self.client.update_reading()

    def upstream_writable(self) -> None:
        """The upstream takes bytes again."""
        self.body_arrived()

    # --- answer

    def wants_interim(self, status: int) -> bool:
        """Whether an interim answer (1xx) is passed on: 100 to whoever asked for it, others to whoever knows them."""
        if self.request.http_1_0 or self.abandoned:
            return False
        return self.request.expects_continue if status == 100 else True

    def answer_framing(self, *, bodiless: bool, has_length: bool) -> bytes:
        """The hop-by-hop lines of the answer to the client."""
        request, relay = self.request, self.relay
        via = relay.forwarding.via_line
        if has_length and self.keep_alive and request.complete and not (request.http_1_0 or relay.draining):
            return via  # nearly always
        framing = b"" if bodiless or has_length or request.http_1_0 else b"Transfer-Encoding: chunked\r\n"
        if request.http_1_0:
            self.ends_with_connection = not has_length and not bodiless
        if self.ends_with_connection or relay.draining or not request.complete:
            self.keep_alive = False
        framing = via + framing
        if not self.keep_alive:
            return framing + b"Connection: close\r\n"
        return framing + b"Connection: keep-alive\r\n" if request.http_1_0 else framing

    def capture(self, body: bytes) -> None:
        """Keeps the answer for what it tells about the call, up to a bound: its end is where a stream tells it."""
        if self.meter is not None:
            self.meter.body(body)
        captured = self.captured
        if captured is not None:
            captured.append(body)
            self.captured_bytes += len(body)
            while self.captured_bytes - len(captured[0]) > self.relay.limits.captured_bytes_max:
                self.captured_bytes -= len(captured.pop(0))

    def answer_arrived(self, upstream: "UpstreamConnection") -> None:
        """Bytes for the client; and the end of the answer, where it is complete."""
        client = self.client
        if upstream.head_done:
            self.state = ANSWERING
            self.status = upstream.status
        client.deadline = self.relay.clock_s + self.relay.limits.idle_timeout_s
        data = upstream.take()
        if data and not self.abandoned:
            client.write(data)
        if upstream.complete:
            self._answered(upstream)

    def whole_answer_arrived(self, upstream: "UpstreamConnection", status: int, data: bytes) -> None:
        """An answer from its first byte to its last, as ``data`` for the client: all of ``answer_arrived`` at once."""
        self.status = status
        if not self.abandoned:
            self.client.write(data)
        self._answered(upstream)

    def _answered(self, upstream: "UpstreamConnection") -> None:
        settle(self, self.status)
        self.upstream = None
        self.state = DONE
        request = self.request
        # Only where the upstream was given the whole request its connection is at a message's end.
        is_sent = request.complete and not request.body and (self.writing_body or not request.chunked)
        upstream.done(reusable=is_sent)
        self.client.exchange_done(keep_alive=request.complete and self.keep_alive)

    def switched_protocols(self, upstream: "UpstreamConnection", data: bytes) -> None:
        """101: the call is over as far as HTTP goes, and is settled; from here bytes pass both ways."""
        client = self.client
        settle(self, 101)
        self.state = DONE
        self.upstream = None
        if self.abandoned:
            upstream.exchange = None
            upstream.close()
            return
        upstream.become_tunnel(client)
        client.write(data)
        early = client.become_tunnel(upstream)
        if early:
            upstream.write(early)

    # --- cut short

    def connect_failed(self, error: BaseException) -> None:
        cut_short.connect_failed(self)

    def overloaded(self) -> None:
        cut_short.overloaded(self)

    def upstream_lost(self, upstream: "UpstreamConnection") -> None:
        cut_short.upstream_lost(self, upstream)

    def upstream_failed(self, why: str) -> None:
        cut_short.upstream_failed(self, why)

    def request_broken(self) -> None:
        cut_short.request_broken(self)

    def client_lost(self) -> None:
        cut_short.client_lost(self)

    def timed_out(self) -> None:
        cut_short.timed_out(self)

    def refuse(self, answer: answers.Answer, *, keep_alive: bool = False) -> None:
        """The gateway's own answer instead of the upstream's."""
        policy = self.policy
        if policy is not None and answer.status >= policy.log.status_min:
            self.noteworthy(answer.status, "refused")
        self.state = DONE
        request = self.request
        keep = keep_alive and request.complete and request.keep_alive and not self.relay.draining
        if keep:
            connection = b"Connection: keep-alive\r\n" if request.http_1_0 else b""
        else:
            connection = b"Connection: close\r\n"
        body = b"" if request.method == b"HEAD" else answer.body
        for group in self.added:
            connection += group.lines
        self.client.write(answer.head(connection) + body)
        self.relay.counters.own_answer(answer.status)
        leave_abandoned(self)
        self.client.exchange_done(keep_alive=keep)

    def fail_midway(self) -> None:
        """The rest of an answer that has begun will not come."""
        if self.policy is not None and not self.abandoned and self.policy.log.status_min < rules.NO_STATUS:
            self.noteworthy(self.status, "cut")
        settle(self, self.status)
        self.state = DONE
        # Cut short, a framed answer is seen to be incomplete. One that ends with its connection is not: a reset tells.
        self.client.cut_off(reset=self.ends_with_connection)
        leave_abandoned(self)

    def noteworthy(self, status: int, ended: str, denial: Denial | None = None) -> None:
        """The policy wants a line in the log of this call, whatever the sample says; of several the first counts."""
        self.relay.noteworthy(self, status, ended, denial)

    def charge(self, event: "UsageEvent") -> None:
        self.relay.ledger.append(event)
