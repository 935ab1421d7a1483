"""The log: one event a line on standard error, JSON for machines or plain text for people, and never a secret.

Events are named (``worker_ended``), facts are keys with their unit in the name (``duration_ms``, ``body_bytes``). What
libraries log through the standard library takes the same way.

Secrets are taken out twice: whatever stands under a key that names one, and in every other text whatever looks like
one (Stripe and Castgate keys, bearer tokens, passwords in URLs). Both, as an exception's text has no keys.
"""

import contextlib
import logging
import re
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any, TextIO, cast

import structlog

REDACTED = "[redacted]"
LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
# Deeper values are shown as their repr, which ends recursion in what refers to itself.
DEPTH_MAX = 4

_SECRET_KEYS = frozenset(
    (
        *("api_key", "x-api-key", "authorization", "proxy-authorization", "cookie", "set-cookie", "session_token"),
        *(
            "credential",
            "password",
            "secret",
            "token",
            "stripe-signature",
            "stripe_secret_key",
            "stripe_webhook_secret",
        ),
    )
)
# The bound on a URL's password keeps the search linear in texts that clients chose.
_SECRET_TEXTS = re.compile(
    r"""
      (?P<key>\b(?:[sr]k_(?:live|test)|whsec|ck)_)[A-Za-z0-9_-]+        # Stripe's keys and signing secrets, API keys
    | (?P<scheme>\b(?:Bearer|Basic)\s+)[^\s"',;]+
    | (?P<url>://[^\s:/@"']*:)[^\s"']{1,1024}(?=@)                            # postgres://user:password@host
    | (?P<option>\bpassword\s*=\s*)[^\s&"']+
    | (?P<header>\b(?:authorization|cookie|set-cookie|x-api-key)\s*:\s*)[^\r\n"']+
    """,
    re.IGNORECASE | re.VERBOSE,
)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def redacted(text: str) -> str:
    """``text`` without what looks like a secret."""
    return _SECRET_TEXTS.sub(lambda match: (match[match.lastgroup] if match.lastgroup else "") + REDACTED, text)


def configure(level: str = "info", log_format: str = "json", stream: TextIO | None = None) -> None:
    """Set the log up for this process; may be called again. ``level`` is one of LEVELS, ``log_format`` json or console.

    Without ``stream`` the log goes to whatever ``sys.stderr`` is at the time of each event.
    """
    out = _Stream(stream)
    console = log_format == "console"
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        _redact_and_escape if console else _redact,
    ]
    renderer: Any = (
        structlog.dev.ConsoleRenderer(colors=out.isatty(), exception_formatter=structlog.dev.plain_traceback)
        if console
        else structlog.processors.JSONRenderer(default=repr, ensure_ascii=False)
    )
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=structlog.WriteLoggerFactory(file=cast(TextIO, out)),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[_name_logger, *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers = [one for one in root.handlers if not isinstance(one.formatter, structlog.stdlib.ProcessorFormatter)]
    root.addHandler(handler)
    # Libraries tell at INFO what is news to their authors alone.
    root.setLevel(max(LEVELS[level], logging.WARNING) if level != "debug" else logging.DEBUG)


class _Stream:
    """Standard error as it is now (tests replace it); one that nobody reads any more takes nobody down."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):
            return (self._stream or sys.stderr).write(text)
        return 0

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            (self._stream or sys.stderr).flush()

    def isatty(self) -> bool:
        return (self._stream or sys.stderr).isatty()


def _name_logger(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    record = event.get("_record")
    if record is not None:
        event["logger"] = record.name
    return event


def _redact(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for key, value in event.items():
        if key not in ("_record", "_from_structlog"):
            event[key] = _clean(key, value, 0)
    return event


def _redact_and_escape(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """As ``_redact``; a value cannot begin a line of its own or colour the terminal. Tracebacks keep their lines."""
    _redact(_, __, event)
    for key, value in event.items():
        if isinstance(value, str) and key != "exception":
            event[key] = _CONTROL.sub(lambda match: repr(match[0])[1:-1], value)
    return event


def _clean(key: object, value: object, depth: int) -> object:
    if isinstance(key, str) and key.lower() in _SECRET_KEYS and value:
        return REDACTED
    if value is None or isinstance(value, int | float):
        return value
    if isinstance(value, str):
        return redacted(value)
    if depth < DEPTH_MAX and isinstance(value, Mapping):
        return {str(name): _clean(name, item, depth + 1) for name, item in value.items()}
    if depth < DEPTH_MAX and isinstance(value, list | tuple | set | frozenset):
        return [_clean(None, item, depth + 1) for item in value]
    return redacted(value.decode("latin-1") if isinstance(value, bytes) else repr(value))
