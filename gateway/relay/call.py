"""What is known of a call under way, and the states it passes through. ``exchange.py`` has the steps.

What may happen in each state:

    state       waits for                     client gone             deadline
    NEW         -                             -                       -
    ADMITTING   identity, admission           hold voided on arrival  503, hold voided on arrival
    CONNECTING  an upstream connection        void                    503 / 502, void
    SENT        the answer's head             on_client_abort         504, settled as never answered
    ANSWERING   the rest of the answer        on_client_abort         connection reset, settled by its status
    DONE        -                             -                       -

The hold is settled exactly once, by ``settle.py``, whichever way the call ends.
"""

from typing import TYPE_CHECKING

from gateway.policy.rules import NEVER_ANSWERED

if TYPE_CHECKING:
    from gateway.accounts import Account
    from gateway.policy.rules import Policy
    from gateway.policy.verdicts import Hold
    from gateway.relay.added import Added
    from gateway.relay.balancer import Balancer
    from gateway.relay.client import ClientConnection
    from gateway.relay.meter import Meter
    from gateway.relay.pool import Pool
    from gateway.relay.relay import Relay
    from gateway.relay.request import Request
    from gateway.relay.upstream import UpstreamConnection

NEW, ADMITTING, CONNECTING, SENT, ANSWERING, DONE = range(6)
# While others wait for an upstream connection: so long may a client be slow to send, or take nothing of its answer.
_DAWDLING_SENDER_S = 1.0
_DAWDLING_READER_S = 5.0


class Call:
    """A request, what was decided of it, and how far its answer is."""

    __slots__ = (
        "abandoned",
        "account",
        "added",
        "asked",
        "body_bytes",
        "captured",
        "captured_bytes",
        "client",
        "ends_with_connection",
        "hold",
        "keep_alive",
        "key",
        "meter",
        "metered",
        "policy",
        "pool",
        "relay",
        "request",
        "request_id",
        "retried",
        "started_s",
        "state",
        "status",
        "upstream",
        "writing_body",
    )

    def __init__(self, relay: "Relay", client: "ClientConnection", request: "Request") -> None:
        self.relay = relay
        self.client = client
        self.request = request
        self.upstream: UpstreamConnection | None = None
        self.state = NEW
        self.policy: Policy | None = None
        self.asked: Policy | None = None  # what admission is asked by; None again once that is out of date
        self.account: Account | None = None
        self.hold: Hold | None = None
        self.key = ""  # a digest of the idempotency key, where the policy has one
        self.metered = False  # admitted under a policy and not settled yet
        self.pool: Pool | Balancer | None = None
        self.request_id = b""
        self.keep_alive = request.keep_alive
        self.abandoned = False  # the client left; the answer is read for what it costs, and thrown away
        self.retried = False
        self.started_s = relay.now()
        self.captured: list[bytes] | None = None
        self.captured_bytes = 0
        self.meter: Meter | None = None  # there where the policy's cost is measured
        self.added: tuple[Added, ...] = ()  # to the answer's head, whoever answers
        self.writing_body = False
        self.body_bytes = 0  # of the request, passed on
        self.status = NEVER_ANSWERED
        self.ends_with_connection = False

    @property
    def finished(self) -> bool:
        """Whether nothing more can happen to it."""
        return self.state == DONE

    @property
    def deadline(self) -> float:
        """Loop time by which the next thing must have happened."""
        return self.client.deadline

    def is_full(self, bytes_max: int) -> bool:
        """Whether no more of the request's body should be read now."""
        upstream = self.upstream
        return self.request.body_bytes > bytes_max or (upstream is not None and not upstream.writable)

    def is_dawdling(self) -> bool:
        """Whether the client hardly sends its request, or takes nothing of its answer: asked while others wait."""
        relay, client = self.relay, self.client
        if self.state == SENT and not self.request.complete:
            elapsed_s = relay.now() - self.started_s
            return elapsed_s > _DAWDLING_SENDER_S and self.body_bytes < elapsed_s * relay.limits.body_bytes_per_s_min
        unread_s = relay.now() - (client.deadline - relay.limits.idle_timeout_s)
        return self.state == ANSWERING and not client.writable and unread_s > _DAWDLING_READER_S
