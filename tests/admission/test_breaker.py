import structlog

from gateway.breaker import CLOSED, HALF_OPEN, OPEN, Breaker, announcer
from gateway.metrics import Metrics


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def opened(clock: Clock, **options: float) -> Breaker:
    breaker = Breaker(clock=clock, pause_s=1.0, pause_max_s=3.0, **options)  # type: ignore[arg-type]
    breaker.failed()
    return breaker


def test_lets_everybody_through_while_the_store_answers() -> None:
    breaker = Breaker(clock=Clock())
    assert breaker.allows()
    breaker.succeeded()
    assert (breaker.state, breaker.allows(), breaker.wait_s()) == (CLOSED, True, 0.0)


def test_one_failure_opens_it_unless_more_are_asked_for() -> None:
    assert opened(Clock()).state == OPEN
    patient = Breaker(clock=Clock(), failures_max=3)
    for failed in (True, True, False, True, True):
        if failed:
            patient.failed()
        else:
            patient.succeeded()
    assert patient.state == CLOSED
    patient.failed()
    assert patient.state == OPEN


def test_refuses_at_once_until_the_pause_is_over_and_then_lets_one_try() -> None:
    clock = Clock()
    breaker = opened(clock)
    clock.now_s += 0.75
    assert not breaker.allows()
    assert breaker.wait_s() == 0.25
    clock.now_s += 0.25
    assert breaker.allows()
    assert breaker.state == HALF_OPEN
    assert not breaker.allows()


def test_a_probe_that_succeeds_closes_it() -> None:
    clock = Clock()
    breaker = opened(clock)
    clock.now_s += 1
    assert breaker.allows()
    breaker.succeeded()
    assert breaker.state == CLOSED
    assert breaker.allows()


def test_each_failed_probe_doubles_the_pause_up_to_its_bound_and_success_forgets_it() -> None:
    clock = Clock()
    breaker = opened(clock)
    for pause_s in (1, 2, 3, 3):
        assert breaker.wait_s() == pause_s
        clock.now_s += pause_s
        assert breaker.allows()
        breaker.failed()
    clock.now_s += 3
    assert breaker.allows()
    breaker.succeeded()
    breaker.failed()
    assert breaker.wait_s() == 1


def test_calls_of_before_it_opened_change_nothing() -> None:
    breaker = opened(Clock())
    breaker.succeeded()
    breaker.failed()
    assert breaker.state == OPEN
    assert breaker.wait_s() == 1.0


def test_a_probe_that_is_never_heard_of_is_replaced() -> None:
    clock = Clock()
    breaker = opened(clock)
    clock.now_s += 1
    assert breaker.allows()
    clock.now_s += 1
    assert breaker.allows()
    assert breaker.state == HALF_OPEN


def test_losing_and_finding_a_store_is_logged_once_each_and_shown_by_the_metric() -> None:
    metrics, clock = Metrics(), Clock()
    up = metrics.gauge("castgate_store_up", store="redis")
    with structlog.testing.capture_logs() as logs:
        breaker = Breaker(clock=clock, changed=announcer("redis", metrics), pause_s=1.0)
        assert up.value == 1
        breaker.failed("refused")
        assert up.value == 0
        clock.now_s += 1
        breaker.allows()
        breaker.failed("refused again")
        clock.now_s += 2
        breaker.allows()
        breaker.succeeded()
    assert up.value == 1
    told = [(log["event"], log.get("reason")) for log in logs if log["log_level"] == "warning"]
    assert told == [("store_lost", "refused"), ("store_back", None)]
    metrics.close()


def test_a_store_of_several_parts_is_up_when_all_of_them_are_and_is_lost_and_back_once() -> None:
    metrics, clock = Metrics(), Clock()
    changed = announcer("redis", metrics)
    one, two = (Breaker(clock=clock, changed=changed, pause_s=1.0) for _ in range(2))
    with structlog.testing.capture_logs() as logs:
        one.failed("the first")
        two.failed("the second")
        clock.now_s += 1
        for breaker, up in ((one, 0), (two, 1)):
            assert breaker.allows()
            breaker.succeeded()
            assert metrics.gauge("castgate_store_up", store="redis").value == up
    told = [(log["event"], log.get("reason")) for log in logs if log["log_level"] == "warning"]
    assert told == [("store_lost", "the first"), ("store_back", None)]
    metrics.close()
