"""WebSockets byte by byte: frames are written by hand, so that the wire is compared and not a library's idea of it."""

from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from tests.transparency.conftest import Sides
from tests.transparency.sameness import HOP_BY_HOP
from tests.transparency.wire import Head, connect

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
MASK = b"\x11\x22\x33\x44"
UPGRADE = (
    b"Host: cast.example",
    b"Upgrade: websocket",
    b"Connection: Upgrade",
    b"Sec-WebSocket-Version: 13",
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)
GOODBYE = b"\x03\xe8bye"  # 1000 and a reason


@dataclass(frozen=True, kw_only=True, slots=True)
class Talk:
    """`frames` follow the handshake; what comes back is read until the server closes the connection."""

    name: str
    fields: Sequence[bytes] = UPGRADE
    frames: Sequence[bytes] = ()
    status: int = 101


def frame(kind: int, payload: bytes, *, last: bool = True) -> bytes:
    """A client's frame, masked (RFC 6455 §5.2)."""
    size = len(payload)
    if size < 126:
        length = bytes([0x80 | size])
    elif size < 65_536:
        length = bytes([0x80 | 126]) + size.to_bytes(2, "big")
    else:
        length = bytes([0x80 | 127]) + size.to_bytes(8, "big")
    masked = bytes(byte ^ MASK[place % 4] for place, byte in enumerate(payload))
    return bytes([(0x80 if last else 0) | kind]) + length + MASK + masked


BYE = frame(CLOSE, GOODBYE)

TALKS = [
    Talk(name="nothing but goodbye", frames=[BYE]),
    Talk(name="texts", frames=[frame(TEXT, b"hello"), frame(TEXT, "naïve ☃".encode()), frame(TEXT, b""), BYE]),
    Talk(name="bytes of every length code", frames=[frame(BINARY, b"\0\xff" * n) for n in (1, 62, 63, 40_000)] + [BYE]),
    Talk(
        name="a message in fragments around a ping",
        frames=[
            frame(TEXT, b"one ", last=False),
            frame(PING, b"there?"),
            frame(0, b"two ", last=False),
            frame(0, b"three"),
            BYE,
        ],
    ),
    Talk(
        name="pings and a pong nobody asked for", frames=[frame(PING, b""), frame(PONG, b"x"), frame(PING, b"2"), BYE]
    ),
    Talk(name="goodbye without a reason", frames=[frame(CLOSE, b"")]),
    Talk(name="goodbye with a code of our own", frames=[frame(CLOSE, b"\x0f\xa0private")]),
    Talk(name="a text that is no text", frames=[frame(TEXT, b"\xff\xfe")]),
    Talk(name="a frame of no kind", frames=[frame(5, b"?")]),
    Talk(name="many small messages", frames=[*[frame(TEXT, b"%d" % n) for n in range(2000)], BYE]),
    Talk(name="protocols to choose from", fields=[*UPGRADE, b"Sec-WebSocket-Protocol: chat, cast"], frames=[BYE]),
    Talk(name="compression offered", fields=[*UPGRADE, b"Sec-WebSocket-Extensions: permessage-deflate"], frames=[BYE]),
    Talk(
        name="upgrade in other case",
        fields=[
            b"host: cast.example",
            b"UPGRADE: WebSocket",
            b"connection: keep-alive, UPGRADE",
            *UPGRADE[3:],
        ],
        frames=[frame(TEXT, b"x"), BYE],
    ),
    Talk(name="no key", fields=[*UPGRADE[:-1], b"Connection: close"], status=400),
    Talk(
        name="a version nobody speaks",
        fields=[*UPGRADE[:3], b"Sec-WebSocket-Version: 99", UPGRADE[4], b"Connection: close"],
        status=400,
    ),
    Talk(name="no upgrade at all", fields=[UPGRADE[0], b"Connection: close"], status=400),
]


@pytest.mark.parametrize("talk", TALKS, ids=lambda talk: talk.name)
async def test_a_websocket_is_the_same_with_and_without_the_gateway(sides: Sides, talk: Talk) -> None:
    direct_head, direct_rest = await have(talk, sides.direct_url)
    assert direct_head.status == talk.status
    through_head, through_rest = await have(talk, sides.through_url)
    assert (through_head.version, through_head.status, through_head.reason) == (
        direct_head.version,
        direct_head.status,
        direct_head.reason,
    )
    assert visible(through_head) == visible(direct_head)
    assert through_rest == direct_rest


async def test_messages_pass_one_by_one(sides: Sides) -> None:
    async with connect(sides.through_url) as connection:
        await connection.send(b"\r\n".join((b"GET /v1/live HTTP/1.1", *UPGRADE, b"", b"")))
        assert (await connection.read_head()).status == 101
        for word in (b"one", b"two", b"three"):
            await connection.send(frame(TEXT, word))
            assert await connection.reader.readexactly(2 + len(word)) == bytes([0x81, len(word)]) + word


async def have(talk: Talk, base_url: str) -> tuple[Head, bytes]:
    async with connect(base_url) as connection:
        await connection.send(b"\r\n".join((b"GET /v1/live HTTP/1.1", *talk.fields, b"", b"")))
        head = await connection.read_head()
        if head.status == 101:
            await connection.send(b"".join(talk.frames))
        return head, await connection.reader.read(-1)


def visible(head: Head) -> list[tuple[bytes, bytes]]:
    """All fields but ``Date`` and, where nothing was upgraded, the hop-by-hop ones: in a 101 those are the point."""
    dropped = {b"date"} if head.status == 101 else {b"date", *HOP_BY_HOP}
    return [each for each in head.fields if each[0].lower() not in dropped]
