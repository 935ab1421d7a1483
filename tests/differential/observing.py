"""Sends a case to a proxy, and says what became of it.

After a whole request a last one follows on the same connection, the *sentinel*: its answer says that the connection
went on, and its end is the connection's end, so that nobody need wait to see whether more comes. A sentinel that
arrives as part of something else is a desync, and shows as one.
"""

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass

from tests.differential.corpus import Case
from tests.differential.recording import Recorder, Seen

# More than every proxy's own time-outs (proxies.py): whoever is silent for longer hangs.
HANGS_S = 15.0
_STATUS = re.compile(rb"HTTP/1\.[01] ([2-9][0-9][0-9])")
# Proxies that refuse write and close in one go; this is for those that write twice.
_SETTLE_S = 0.003
_SHOWN_BYTES_MAX = 24
_REFUSED = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Final statuses that the client got; whether the connection ended; what the upstream understood.

    As text: ``200 < GET /x`` or ``400 closed``. The sentinel is left out where it was answered.
    """

    statuses: tuple[int, ...]
    ended: str  # "" (it goes on), "closed" or "hangs"
    seen: tuple[str, ...]

    @classmethod
    def of(cls, text: str) -> "Outcome":
        """The outcome that is written so."""
        said, _, seen = text.partition(" < ")
        *statuses, last = said.split(" ")
        ended = last if last in ("closed", "hangs") else ""
        codes = [word for word in (*statuses, "" if ended else last) if word.isdigit()]
        return cls(statuses=tuple(map(int, codes)), ended=ended, seen=tuple(seen.split(", ")) if seen else ())

    @property
    def meaning(self) -> tuple[object, ...]:
        """What two proxies must agree on to have understood the same; how they word a refusal is their own."""
        refused = any(status >= _REFUSED for status in self.statuses)
        said = tuple("refused" if status >= _REFUSED else status for status in self.statuses)
        return said, "" if refused and self.ended == "closed" else self.ended, self.seen

    def __str__(self) -> str:
        said = " ".join(map(str, self.statuses)) or "nothing"
        if self.ended:
            said += f" {self.ended}"
        return said + (" < " + ", ".join(self.seen) if self.seen else "")


def sentinel_of(case: Case) -> bytes:
    return b"GET /sentinel HTTP/1.1\r\nHost: %b\r\nConnection: close\r\n\r\n" % case.host


async def observe(case: Case, port: int, recorder: Recorder) -> Outcome:
    """One case at a time for each recorder: what has come meanwhile is this case's, whatever it says."""
    before = len(recorder.seen)
    data, hangs = await _exchange(case, port)
    return _outcome(data, hangs=hangs, seen=recorder.seen[before:])


async def observe_together(cases: Sequence[Case], port: int, recorder: Recorder) -> list[Outcome]:
    """Cases that wait, all at once: told apart by their hosts."""
    answers = await asyncio.gather(*[_exchange(case, port) for case in cases])
    return [
        _outcome(data, hangs=hangs, seen=[seen for seen in recorder.seen if seen.host == case.host])
        for case, (data, hangs) in zip(cases, answers, strict=True)
    ]


def _outcome(data: bytes, *, hangs: bool, seen: Sequence[Seen]) -> Outcome:
    statuses = [int(status) for status in _STATUS.findall(data)]
    described = [_described(each) for each in seen]
    ended = "hangs" if hangs else "closed"
    if not hangs and described and statuses and described[-1] == "GET /sentinel" and statuses[-1] == 200:
        described.pop()
        statuses.pop()
        ended = ""
    return Outcome(statuses=tuple(statuses), ended=ended, seen=tuple(described))


def _described(seen: Seen) -> str:
    text = f"{seen.method.decode()} {_shown(seen.target)}"
    return f"{text} {_shown(seen.body)}" if seen.body else text


def _shown(data: bytes) -> str:
    if len(data) > _SHOWN_BYTES_MAX:
        return f"({len(data)} bytes)"
    return re.sub(r"\bc[0-9]{3}", "c000", repr(data)[2:-1], flags=re.IGNORECASE)


async def _exchange(case: Case, port: int) -> tuple[bytes, bool]:
    """All that came back, and whether the proxy would wait for ever."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    data = b""
    try:
        async with asyncio.timeout(HANGS_S):
            writer.write(case.raw)
            data += await reader.read(65536)
            if data and not case.partial:
                await asyncio.sleep(_SETTLE_S)
                writer.write(sentinel_of(case))
            while more := await reader.read(65536):
                data += more
    except TimeoutError:
        return data, True
    except ConnectionError:
        pass
    finally:
        writer.close()
    return data, False
