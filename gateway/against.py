"""``castgate check --against``: what the files would change in a gateway that runs."""

import json
import urllib.error
import urllib.request
from decimal import Decimal
from typing import Any
from urllib.parse import urlsplit

from gateway.hosted.answers import json_text
from gateway.policy.effective import changes, effective
from gateway.policy.rules import Rules

_TIMEOUT_S = 10.0
# 5,000 policies are about 3 MB.
_ANSWER_BYTES_MAX = 64 * 1024 * 1024


class NoAnswerError(Exception):
    """The gateway could not be asked, or is none; one line for the person at the terminal."""


def differences(rules: Rules, url: str, token: str | None) -> list[str]:
    """A line for each key in which ``rules`` differ from those of the gateway whose admin listener is at ``url`` and
    asks for ``token``, if it asks.

    Raises NoAnswerError.
    """
    running = _running(url, token)
    head = f"{url} runs {running['version']}, loaded {running['loaded_at']} by {running['loaded_by']}"
    if running["version"] == rules.version:
        return [f"{head}: the same as the files"]
    mine = _read(json_text(effective(rules)))
    changed = changes({key: running[key] for key in mine}, mine)
    count = f"{len(changed)} difference{'' if len(changed) == 1 else 's'}"
    return [f"{head}; the files are {rules.version}: {count}", *map(str, changed)]


def _running(url: str, token: str | None) -> dict[str, Any]:
    if urlsplit(url).scheme not in ("http", "https"):
        raise NoAnswerError(
            f"--against: expected an admin listener's address such as http://127.0.0.1:9090, found {url}"
        )
    address = f"{url.rstrip('/')}/policies"
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    request = urllib.request.Request(address, headers=headers)  # noqa: S310  http or https, see above
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:  # noqa: S310
            body = _read(answer.read(_ANSWER_BYTES_MAX))
    except urllib.error.HTTPError as error:
        code = error.code
        error.close()
        why = "it asks for ADMIN_TOKEN" if code == 401 else "is it a gateway's admin listener?"
        raise NoAnswerError(f"{address} answers {code}: {why}") from None
    except (OSError, ValueError) as error:
        raise NoAnswerError(f"{address} cannot be read: {getattr(error, 'reason', error)}") from None
    wanted = {"version", "loaded_at", "loaded_by", "policies", "plans", "default_plan"}
    if not isinstance(body, dict) or not wanted <= body.keys():
        raise NoAnswerError(f"{address} does not answer as a gateway's admin listener does")
    return body


def _read(text: str | bytes) -> Any:
    """JSON whose amounts stay exact."""
    return json.loads(text, parse_float=Decimal)
