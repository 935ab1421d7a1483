"""``python -m gateway.health``: whether the gateway on this machine says that it is healthy; for containers.

Exit code 0 if ``/healthz`` of the admin listener answers 200, else 1. Standard library only: it is started every few
seconds, and must cost next to nothing. The listener's address and token are read where the gateway reads them.
"""

import http.client
import os
import sys

TIMEOUT_S = 2.0
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - where we ask, not where we listen


def main() -> int:
    """The exit code."""
    host = os.environ.get("ADMIN_HOST", "").strip() or "127.0.0.1"
    port = os.environ.get("ADMIN_PORT", "").strip() or "9090"
    token = os.environ.get("ADMIN_TOKEN", "").strip()
    try:
        connection = http.client.HTTPConnection(_EVERYWHERE.get(host, host), int(port), timeout=TIMEOUT_S)
        connection.request("GET", "/healthz", headers={"Authorization": f"Bearer {token}"} if token else {})
        status = connection.getresponse().status
    except (OSError, ValueError, http.client.HTTPException) as error:
        sys.stderr.write(f"castgate: {host}:{port} does not answer: {error}\n")
        return 1
    if status != http.client.OK:
        sys.stderr.write(f"castgate: /healthz answers {status}\n")
    return 0 if status == http.client.OK else 1


if __name__ == "__main__":
    sys.exit(main())
