"""Stripe's signature of a webhook. https://docs.stripe.com/webhooks#verify-manually

``Stripe-Signature: t=<seconds>,v1=<hex>[,v1=<hex>…]``: v1 is HMAC-SHA256 over ``<t>.<raw body>`` with the endpoint's
whole secret, ``whsec_`` included. While a secret is being replaced there is one v1 for each, and any that matches
will do. Other schemes (v0) are no signatures.
"""

import hashlib
import hmac
import re
from collections.abc import Sequence

# Against replays; Stripe signs anew for each attempt. To both sides, because either clock may be the one that is wrong.
TOLERANCE_S = 300
# Stripe sends one signature for each secret that is in force, two while one takes over.
SIGNATURES_MAX = 16
HEADER_LENGTH_MAX = 4096
_SECONDS = re.compile(r"[0-9]{1,12}")
_HEX = re.compile(r"[0-9a-f]{64}")


class SignatureError(Exception):
    """The body is not shown to come from Stripe. ``expected`` says what was; what was found is never repeated."""

    def __init__(self, expected: str) -> None:
        super().__init__(expected)
        self.expected = expected


def verify(header: str, body: bytes, secrets: Sequence[str], now_s: float) -> None:
    """Raises SignatureError unless ``header`` signs ``body`` with one of ``secrets``, within TOLERANCE_S of now."""
    if len(header) > HEADER_LENGTH_MAX:
        raise SignatureError(f"at most {HEADER_LENGTH_MAX} characters")
    times: list[str] = []
    signatures: list[bytes] = []
    for part in header.split(","):
        name, _, value = part.strip().partition("=")
        if name == "t":
            times.append(value)
        elif name == "v1" and _HEX.fullmatch(value):
            signatures.append(value.encode())
    if len(times) != 1 or _SECONDS.fullmatch(times[0]) is None:
        raise SignatureError("one time, t=<seconds>")
    if not 0 < len(signatures) <= SIGNATURES_MAX:
        raise SignatureError(f"1 to {SIGNATURES_MAX} signatures, v1=<64 hex digits>")
    signed = times[0].encode() + b"." + body
    matches = False
    # All are compared, and each in constant time: how long this takes tells nothing of how nearly one matched.
    for secret in secrets:
        wanted = hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest().encode()
        for signature in signatures:
            matches |= hmac.compare_digest(wanted, signature)
    if not matches:
        raise SignatureError("a signature of this body by the endpoint's secret")
    if abs(now_s - int(times[0])) > TOLERANCE_S:
        raise SignatureError(f"a time within {TOLERANCE_S} seconds of now")
