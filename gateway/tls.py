"""TLS on both sides: contexts from files, with one clear line where a file is not what it should be.

A listener keeps one context for its whole life and changes what stands behind it: each handshake takes the newest
certificate, and connections that are open keep what they began with.
"""

import ssl
from pathlib import Path


class TlsError(Exception):
    """A certificate, key or authority that cannot be used; one line for the person at the terminal."""


def server_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """What clients are shown: the PEM chain of ``certificate``, proved with ``key``. Raises TlsError."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    _readable(certificate)
    _readable(key)
    try:
        # A key with a passphrase would have us ask for it at a terminal that nobody sits at.
        context.load_cert_chain(certificate, key, password=_no_passphrase)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise TlsError(f"{certificate} and {key} are no certificate and its key: {_reason(error)}") from None
    return context


def client_context(authorities: Path | None) -> ssl.SSLContext:
    """How the upstream is verified: by name, and by the system's authorities, or by those of a PEM file alone.

    Raises TlsError.
    """
    if authorities is not None:
        _readable(authorities)
    try:
        context = ssl.create_default_context(cafile=None if authorities is None else str(authorities))
    except (OSError, ValueError) as error:
        raise TlsError(f"{authorities} holds no certificates: {_reason(error)}") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    return context


class ListenerTls:
    """The context that a listener keeps, and the certificate behind it, which ``reload`` changes."""

    def __init__(self, certificate: Path, key: Path) -> None:
        """Raises TlsError."""
        self._current = server_context(certificate, key)
        self.context = server_context(certificate, key)
        # Called in every handshake, with or without a name (SSL_CTX_set_tlsext_servername_callback(3)).
        self.context.sni_callback = self._use_current

    def reload(self, certificate: Path, key: Path) -> None:
        """Reads the files, for handshakes from now on. Raises TlsError, and then nothing has changed."""
        self._current = server_context(certificate, key)

    def _use_current(self, connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        connection.context = self._current


def _readable(path: Path) -> None:
    try:
        with path.open("rb"):
            return
    except OSError as error:
        raise TlsError(f"{path} cannot be read: {error.strerror}") from None


def _no_passphrase() -> str:
    raise ValueError("the key has a passphrase, which nobody is there to give")


def _reason(error: Exception) -> str:
    return getattr(error, "reason", None) or str(error) or type(error).__name__
