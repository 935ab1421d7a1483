"""The kind of value that a Redis URL is, for the configuration's models."""

from pydantic import BeforeValidator

from gateway.config.redis_address import EXAMPLES, read_redis_url
from gateway.config.scalars import expected, mistake


def redis_url() -> BeforeValidator:
    """A URL of one of redis_address' forms. What is refused is never shown where it may hold a password."""

    def read(value: object) -> str:
        text = value.strip() if isinstance(value, str) else ""
        try:
            read_redis_url(text)
        except ValueError as error:
            if str(error) in EXAMPLES.values():
                raise expected(str(error), value) from None
            raise mistake(str(error)) from None
        return text

    return BeforeValidator(read)
