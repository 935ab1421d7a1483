"""Why a write of the ledger failed, as far as it makes a difference to what follows (ledger.py)."""

from gateway.database import StoreError

# SQLSTATE classes of rows that no retry helps: data exception, constraint violation, program limit exceeded.
_POISON = frozenset({"22", "23", "54"})
_CHECK_VIOLATION = "23514"
_CONFLICTS = frozenset({"40P01", "40001", "55P03"})  # deadlock, serialization failure, lock not available


def reason_of(error: Exception) -> str:
    """away, conflict, poison or error."""
    if isinstance(error, StoreError):
        return "away"
    code: str = getattr(error, "sqlstate", None) or ""
    if code in _CONFLICTS:
        return "conflict"
    if code == _CHECK_VIOLATION and not getattr(error, "constraint_name", None):
        return "error"  # no fault of the row: there is no partition for it, and no default one
    return "poison" if code[:2] in _POISON else "error"
