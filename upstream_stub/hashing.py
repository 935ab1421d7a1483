"""Secrets at rest: passwords by scrypt (slow on purpose), tokens and keys by SHA-256 (they are random already)."""

import hashlib
import hmac
import secrets

# RFC 7914's interactive parameters: 16 MiB and a few tens of milliseconds.
SCRYPT_N, SCRYPT_R, SCRYPT_P = 2**14, 8, 1

API_KEY_PREFIX = "ck_"


def new_api_key() -> str:
    return API_KEY_PREFIX + secrets.token_hex(24)


def new_session_token() -> str:
    return secrets.token_urlsafe(32)


def sha256_hex(secret: str) -> str:
    # A header may carry any bytes; what came in by surrogates goes out the same way.
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def hash_password(password: str) -> str:
    """Blocks for tens of milliseconds: not on the event loop."""
    salt = secrets.token_bytes(16)
    digest = hashlib.scrypt(_bytes(password), salt=salt, n=SCRYPT_N, r=SCRYPT_R, p=SCRYPT_P)
    return f"scrypt${SCRYPT_N}${SCRYPT_R}${SCRYPT_P}${salt.hex()}${digest.hex()}"


def password_matches(password: str, stored: str) -> bool:
    """Blocks for tens of milliseconds: not on the event loop."""
    _, n, r, p, salt, digest = stored.split("$")
    tried = hashlib.scrypt(_bytes(password), salt=bytes.fromhex(salt), n=int(n), r=int(r), p=int(p))
    return hmac.compare_digest(tried, bytes.fromhex(digest))


def _bytes(password: str) -> bytes:
    # JSON can spell lone surrogates, which strict UTF-8 cannot.
    return password.encode("utf-8", "surrogatepass")
