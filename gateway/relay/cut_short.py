"""The ways a call ends before its answer is complete: what becomes of its hold, and what its client gets to see."""

from typing import TYPE_CHECKING

from gateway.policy import rules
from gateway.relay import refusals
from gateway.relay.call import ADMITTING, ANSWERING, CONNECTING, DONE, SENT
from gateway.relay.settle import settle, void

if TYPE_CHECKING:
    from gateway.relay.exchange import Exchange
    from gateway.relay.upstream import UpstreamConnection


def connect_failed(exchange: "Exchange") -> None:
    """No connection to the upstream could be made."""
    if exchange.state == DONE:
        return
    settle(exchange, rules.NEVER_SENT)
    exchange.relay.counters.upstream_error("unreachable")
    exchange.refuse(refusals.upstream_unreachable(), keep_alive=True)


def overloaded(exchange: "Exchange") -> None:
    """Too many wait for a connection to the upstream."""
    settle(exchange, rules.NEVER_SENT)
    exchange.refuse(refusals.too_many_waiting(), keep_alive=True)


def upstream_lost(exchange: "Exchange", upstream: "UpstreamConnection") -> None:
    """The connection closed before the answer was complete."""
    is_stale = exchange.state == SENT and upstream.used and upstream.is_silent
    if is_stale and not exchange.retried and _is_safe_to_repeat(exchange):
        # A reused connection that closed before any byte of the answer: the upstream had ended it when we sent.
        exchange.retried = True
        exchange.upstream = None
        assert exchange.pool is not None
        exchange.forward(exchange.pool)
        return
    upstream_failed(exchange, "the upstream closed the connection before it had answered in full")


def upstream_failed(exchange: "Exchange", why: str) -> None:
    """The upstream's fault. Before the head is out this is a 502; after it, only a reset is honest."""
    if exchange.state == DONE:
        return
    _drop_upstream(exchange)
    if exchange.state == ANSWERING:
        exchange.fail_midway()
        return
    settle(exchange, rules.NEVER_ANSWERED)
    exchange.relay.counters.upstream_error("failed")
    exchange.refuse(refusals.upstream_failed(why))


def request_broken(exchange: "Exchange") -> None:
    """The client's body turned out not to be HTTP: what was forwarded of it is cut off."""
    refusal = exchange.request.refusal
    assert refusal is not None
    was, exchange.state = exchange.state, DONE
    _drop_upstream(exchange)
    settle(exchange, rules.NEVER_ANSWERED if was >= SENT else rules.NEVER_SENT)
    exchange.state = was
    if was == ANSWERING:
        exchange.fail_midway()
    else:
        exchange.refuse(refusal)


def client_lost(exchange: "Exchange") -> None:
    """The client hung up. What that means for a call that was sent is the policy's choice."""
    if exchange.state == DONE or exchange.abandoned:
        return
    choice = exchange.policy.on_client_abort if exchange.metered and exchange.policy is not None else "void"
    if exchange.state >= SENT and choice == "finish" and exchange.request.complete:
        exchange.abandoned = True
        exchange.relay.abandoned.add(exchange)
        exchange.relay.in_flight += 1
        if exchange.upstream is not None:
            exchange.upstream.resume_reading()
        return
    was, exchange.state = exchange.state, DONE
    if exchange.pool is not None:
        exchange.pool.give_up(exchange)
    _drop_upstream(exchange)
    if was < SENT:
        settle(exchange, rules.NEVER_SENT)
    elif choice == "void" or (choice == "finish" and was == SENT):
        void(exchange)  # to finish: the upstream never had the whole call
    else:
        settle(exchange, exchange.status or 200)


def timed_out(exchange: "Exchange") -> None:
    """``Relay.tick`` found the client's deadline passed while this exchange was under way."""
    if exchange.state == ADMITTING:  # a verdict that comes yet finds the call done, and is given back
        exchange.refuse(refusals.not_checked_in_time(), keep_alive=True)
    elif exchange.state == CONNECTING:
        if exchange.pool is not None:
            exchange.pool.give_up(exchange)
        settle(exchange, rules.NEVER_SENT)
        exchange.relay.counters.upstream_error("timeout")
        exchange.refuse(refusals.upstream_timeout("no connection to the upstream came free"), keep_alive=True)
    elif exchange.state == SENT:
        if exchange.request.complete and exchange.upstream is not None:
            exchange.upstream.pool.failed()
        _drop_upstream(exchange)
        settle(exchange, rules.NEVER_ANSWERED)
        if exchange.request.complete:
            exchange.relay.counters.upstream_error("timeout")
            exchange.refuse(refusals.upstream_timeout("the upstream did not begin to answer"))
        else:
            exchange.refuse(refusals.late_body())
    elif exchange.state == ANSWERING:
        _drop_upstream(exchange)
        exchange.fail_midway()


def _is_safe_to_repeat(exchange: "Exchange") -> bool:
    request = exchange.request
    return request.method in (b"GET", b"HEAD", b"OPTIONS") and not (request.has_length or request.chunked)


def _drop_upstream(exchange: "Exchange") -> None:
    upstream, exchange.upstream = exchange.upstream, None
    if upstream is not None:
        upstream.exchange = None
        upstream.close()
