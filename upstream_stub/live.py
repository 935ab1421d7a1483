"""The WebSocket at ``/v1/live``: every text and binary message comes back as it was sent."""

import weakref

from aiohttp import WSCloseCode, WSMsgType, web

MESSAGE_BYTES_MAX = 16 * 1024 * 1024  # a text of a few MiB must pass; more is no conversation


class Live:
    def __init__(self) -> None:
        self._open: weakref.WeakSet[web.WebSocketResponse] = weakref.WeakSet()

    async def echo(self, request: web.Request) -> web.WebSocketResponse:
        # Without compression what is sent is what is on the wire, frame by frame.
        socket = web.WebSocketResponse(max_msg_size=MESSAGE_BYTES_MAX, compress=False)
        await socket.prepare(request)
        self._open.add(socket)
        async for message in socket:
            if message.type is WSMsgType.TEXT:
                await socket.send_str(message.data)
            elif message.type is WSMsgType.BINARY:
                await socket.send_bytes(message.data)
        return socket

    async def close(self, app: web.Application) -> None:
        """Say goodbye to whoever is connected: a WebSocket would hold up the stub's end."""
        for socket in list(self._open):
            await socket.close(code=WSCloseCode.GOING_AWAY, message=b"The service stops.")
