"""A small HTTP/1 client that sends bytes as they are given and keeps what comes back as it came."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

ANSWER_TIMEOUT_S = 20.0
HEAD_BYTES_MAX = 256 * 1024

Fields = Sequence[tuple[bytes, bytes]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Head:
    version: bytes
    status: int
    reason: bytes
    fields: Fields

    def values(self, name: bytes) -> list[bytes]:
        return [value for other, value in self.fields if other.lower() == name.lower()]


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """`whole` is False where the connection ended before the body did; `interim` are the 1xx heads before `head`."""

    interim: Sequence[Head]
    head: Head
    body: bytes
    trailers: Fields
    whole: bool


class Connection:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def read_head(self) -> Head:
        lines = (await self.reader.readuntil(b"\r\n\r\n")).removesuffix(b"\r\n\r\n").split(b"\r\n")
        version, status, *reason = lines[0].split(b" ", 2)
        return Head(
            version=version, status=int(status), reason=b"".join(reason), fields=[_field(line) for line in lines[1:]]
        )

    async def read_answer(self, method: bytes) -> Answer:
        """One answer with its body, by the rules of RFC 9112 §6.3 (which needs the request's method)."""
        interim: list[Head] = []
        head = await self.read_head()
        while head.status < 200 and head.status != 101:
            interim.append(head)
            head = await self.read_head()
        body = bytearray()
        trailers: Fields = ()
        try:
            if method == b"HEAD" or head.status in (101, 204, 304):
                pass
            elif head.values(b"Transfer-Encoding"):
                trailers = await self._read_chunks(body)
            elif lengths := head.values(b"Content-Length"):
                await self._read_exactly(int(lengths[0]), body)
            else:
                body += await self.reader.read(-1)
            whole = True
        except (asyncio.IncompleteReadError, ConnectionError):
            whole = False
        return Answer(interim=interim, head=head, body=bytes(body), trailers=trailers, whole=whole)

    async def ends(self) -> bool:
        """Whether the other side has closed the connection, or does so now, without another byte."""
        try:
            return await self.reader.read(1) == b""
        except ConnectionResetError:
            return True

    async def _read_chunks(self, body: bytearray) -> Fields:
        while size := int((await self.reader.readuntil(b"\r\n")).split(b";")[0], 16):
            await self._read_exactly(size, body)
            await self.reader.readexactly(2)
        trailers = []
        while (line := await self.reader.readuntil(b"\r\n")) != b"\r\n":
            trailers.append(_field(line.removesuffix(b"\r\n")))
        return trailers

    async def _read_exactly(self, size: int, body: bytearray) -> None:
        try:
            body += await self.reader.readexactly(size)
        except asyncio.IncompleteReadError as cut:
            body += cut.partial
            raise


@asynccontextmanager
async def connect(base_url: str) -> AsyncIterator[Connection]:
    """A connection to the server at `base_url`, for no longer than ANSWER_TIMEOUT_S."""
    address = urlsplit(base_url)
    async with asyncio.timeout(ANSWER_TIMEOUT_S):
        reader, writer = await asyncio.open_connection(address.hostname, address.port, limit=HEAD_BYTES_MAX)
        try:
            yield Connection(reader, writer)
        finally:
            writer.close()
            try:
                await writer.wait_closed()
            except ConnectionError:
                pass


def _field(line: bytes) -> tuple[bytes, bytes]:
    name, _, value = line.partition(b":")
    return name, value.strip(b" \t")
