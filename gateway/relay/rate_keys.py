"""What rate limits count apart, and how much: the value of a limit's key for one call, and the call's weight."""

from collections.abc import Sequence
from hashlib import sha256
from typing import TYPE_CHECKING

from gateway.policy.rules import KEY_SEPARATOR, Policy
from gateway.policy.weights import weights_told
from gateway.relay import heads

if TYPE_CHECKING:
    from gateway.credentials import Credentials
    from gateway.relay.request import Request


def rate_key(
    key: str,
    policy: Policy,
    account_id: str,
    lines: Sequence[bytes],
    credentials: "Credentials | None",
    address: bytes,
) -> str:
    """``key`` is as in ``RateLimit.key``; ``lines`` are the request's field lines, ``address`` the client's."""
    if KEY_SEPARATOR in key:
        values = [rate_key(one, policy, account_id, lines, credentials, address) for one in key.split(KEY_SEPARATOR)]
        return "|".join(value.replace("%", "%25").replace("|", "%7C") for value in values)
    if key == "account":
        return account_id
    if key == "ip":
        return address.decode()
    if key == "route":
        return policy.name
    if key == "api_key":
        secret = next(filter(None, credentials), b"") if credentials is not None else b""
        return sha256(secret).hexdigest()[:32]
    name = key.removeprefix("header:").lower().encode()
    for line in lines:
        found, _, value = line.partition(b":")
        if found.lower() == name:
            return sha256(value.strip()).hexdigest()[:32]  # whatever a client sends, the key stays short
    return ""


def call_weights(policy: Policy, request: "Request", fields: heads.Fields) -> tuple[int, ...]:
    """What a call weighs in each of the policy's limits, by its own word: by what of it the service behind gets."""
    return weights_told([limit.weight for limit in policy.rate_limits], request.end_to_end_lines(fields))
