"""Signatures of messages that we send, by Standard Webhooks 1.0 (github.com/standard-webhooks, "Signature scheme")."""

import hmac
from base64 import b64decode, b64encode
from collections.abc import Iterable, Mapping

_PREFIX = "whsec_"


def signed_headers(secrets: Iterable[str], message_id: str, at_s: int, body: bytes) -> Mapping[str, str]:
    """The three fields; a signature by each of ``secrets``, so that a receiver may know the old one or the new."""
    signed = b"%b.%d.%b" % (message_id.encode(), at_s, body)
    signatures = (
        b64encode(hmac.digest(b64decode(secret.removeprefix(_PREFIX)), signed, "sha256")).decode() for secret in secrets
    )
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(at_s),
        "webhook-signature": " ".join(f"v1,{signature}" for signature in signatures),
    }
