"""``Stripe-Signature: t=…,v1=…[,v1=…],v0=…``. https://docs.stripe.com/webhooks#verify-manually

v1 is HMAC-SHA256 over ``{t}.{body}`` with the whole secret as it is, ``whsec_`` included; one for each secret while one
takes over from another. v0 is what Stripe adds in test mode; nobody should take it for a signature.
"""

import hashlib
import hmac
from collections.abc import Sequence


def signature_header(body: bytes, secrets: Sequence[str], timestamp_s: int) -> str:
    signed = b"%d.%b" % (timestamp_s, body)
    v1 = [hmac.digest(secret.encode(), signed, "sha256").hex() for secret in secrets]
    v0 = hashlib.sha256(signed).hexdigest()
    return ",".join([f"t={timestamp_s}", *(f"v1={value}" for value in v1), f"v0={v0}"])
