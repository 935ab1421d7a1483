"""What the log looks like, and what it never shows."""

import io
import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from gateway import log


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    structlog.reset_defaults()
    root.handlers, root.level = handlers, level


def logged(**event: object) -> dict[str, object]:
    """One event through a JSON log, as a machine reads it."""
    out = io.StringIO()
    log.configure("info", "json", out)
    structlog.get_logger().info("event", **event)
    [line] = out.getvalue().splitlines()
    made: dict[str, object] = json.loads(line)
    return made


def test_an_event_is_one_line_of_json_with_time_and_level() -> None:
    event = logged(duration_ms=1.5, path="/v1/cast", text="two\nlines")
    assert event["event"] == "event"
    assert event["level"] == "info"
    assert str(event["timestamp"]).endswith("Z")
    assert (event["duration_ms"], event["path"], event["text"]) == (1.5, "/v1/cast", "two\nlines")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("key sk_live_51Habc and sk_test_9", "key sk_live_[redacted] and sk_test_[redacted]"),
        ("rk_live_1", "rk_live_[redacted]"),
        ("whsec_MfKQ9r8", "whsec_[redacted]"),
        ("ck_demo-123_x is unknown", "ck_[redacted] is unknown"),
        ("Bearer abc.def", "Bearer [redacted]"),
        ("postgresql://user:pa/ss@word@db:5432/x", "postgresql://user:[redacted]@db:5432/x"),
        ("redis://:hunter2@cache:6379/0", "redis://:[redacted]@cache:6379/0"),
        ("host=db password=hunter2 user=me", "host=db password=[redacted] user=me"),
        ("Cookie: session=abc; other=1\r\nHost: x", "Cookie: [redacted]\r\nHost: x"),
        ("http://127.0.0.1:8080/v1/cast", "http://127.0.0.1:8080/v1/cast"),
        ("back_track_ is no key", "back_track_ is no key"),
    ],
)
def test_what_looks_like_a_secret_is_taken_out_of_any_text(text: str, shown: str) -> None:
    assert logged(text=text)["text"] == shown
    assert logged(nested={"list": [text]})["nested"] == {"list": [shown]}


@pytest.mark.parametrize(
    "key", ["authorization", "Authorization", "Cookie", "x-api-key", "api_key", "password", "token"]
)
def test_what_stands_under_a_key_that_names_a_secret_is_taken_out(key: str) -> None:
    assert logged(**{key: "plain"})[key] == "[redacted]"
    assert logged(headers={key: b"plain"})["headers"] == {key: "[redacted]"}


def test_secrets_in_exceptions_and_in_what_libraries_log_are_taken_out() -> None:
    out = io.StringIO()
    log.configure("info", "json", out)
    try:
        raise ValueError("cannot reach postgresql://u:hunter2@db/x")
    except ValueError:
        structlog.get_logger().exception("failed")
    logging.getLogger("asyncio").warning("refused %s", "sk_live_abc")
    assert "hunter2" not in out.getvalue()
    assert "sk_live_abc" not in out.getvalue()
    failed, library = (json.loads(line) for line in out.getvalue().splitlines())
    assert "ValueError: cannot reach postgresql://u:[redacted]@db/x" in failed["exception"]
    assert (library["event"], library["logger"]) == ("refused sk_live_[redacted]", "asyncio")


def test_a_library_that_logs_at_info_is_not_heard() -> None:
    out = io.StringIO()
    log.configure("info", "json", out)
    logging.getLogger("aiohttp.access").info("GET /")
    assert out.getvalue() == ""


def test_events_below_the_level_are_not_written() -> None:
    out = io.StringIO()
    log.configure("warning", "json", out)
    structlog.get_logger().info("quiet")
    assert out.getvalue() == ""


def test_on_a_console_a_value_can_neither_begin_a_line_nor_colour_it() -> None:
    out = io.StringIO()
    log.configure("info", "console", out)
    structlog.get_logger().info("event", path="/a\n2026 [info] forged \x1b[31m")
    [line] = out.getvalue().splitlines()
    assert "\x1b" not in line
    assert "[info] forged" in line


def test_configuring_twice_writes_each_event_once() -> None:
    out = io.StringIO()
    log.configure("info", "json", out)
    log.configure("info", "json", out)
    logging.getLogger("x").warning("once")
    assert len(out.getvalue().splitlines()) == 1


def test_a_log_that_nobody_reads_any_more_takes_nobody_down() -> None:
    out = io.StringIO()
    log.configure("info", "json", out)
    out.close()
    structlog.get_logger().info("event")


def test_a_long_hostile_text_takes_no_long_time() -> None:
    assert len(log.redacted("://:" * 4000 + "@")) > 0
