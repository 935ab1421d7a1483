"""What the relay asks of identity, admission and the ledger."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from gateway.accounts import Account
    from gateway.admission_batch import Ask
    from gateway.credentials import Credentials
    from gateway.identify import Met, Unknown
    from gateway.ledger import UsageEvent
    from gateway.policy.verdicts import Hold


class Identifies(Protocol):
    """``gateway.identify.Identify``."""

    def met_with(self, authorization: bytes) -> "Met | None": ...

    def remember(self, authorization: bytes, credentials: "Credentials") -> "Met | None": ...

    def cached(self, credentials: "Credentials", met: "Met | None") -> "Account | Unknown | None": ...

    def resolve(self, credentials: "Credentials", done: "Callable[[Account | None], None]") -> None: ...

    def forget(self, credentials: "Credentials") -> None: ...

    def doubt_about(
        self, authorization: bytes | None, alternative: bytes | None, cookie: bytes | None
    ) -> str | None: ...

    def credentials_from(
        self, authorization: bytes | None, alternative: bytes | None, cookie: bytes | None
    ) -> "Credentials | None": ...


class Admits(Protocol):
    """``gateway.admission.Admission``."""

    def ask(self, ask: "Ask") -> None: ...

    @property
    def void(self) -> "Callable[[Hold], None]": ...

    @property
    def finished(self) -> Callable[..., None]: ...


class Charges(Protocol):
    """``gateway.ledger.Ledger``."""

    @property
    def refuses(self) -> bool: ...

    def append(self, event: "UsageEvent") -> None: ...
