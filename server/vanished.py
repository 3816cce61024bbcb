"""Clients of the 2025 protocol that leave in the middle of a call.

That protocol lets a client come back to its session for the result of a call whose connection broke, so the
SDK lets the call go on. Without an event store there is nothing to come back for, and the call would keep
others waiting: it is cancelled, by the message with which the client itself would cancel it.
"""

import json
from typing import Final

import anyio
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SESSION_HEADER: Final = "mcp-session-id"


class CancelWhenVanished:
    """ASGI middleware: when a client of a session goes before its request is answered, the session is told
    that the request is cancelled.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and watch its connection."""
        if scope["type"] != "http" or scope["method"] != "POST" or SESSION_HEADER not in Headers(scope=scope):
            await self._app(scope, receive, send)
            return
        body = bytearray()
        answered = False

        async def watched_receive() -> Message:
            nonlocal answered
            message = await receive()
            if message["type"] == "http.request":
                body.extend(message.get("body", b""))
            elif message["type"] == "http.disconnect" and not answered:
                answered = True  # nobody is left to answer, and one cancellation is enough
                with anyio.CancelScope(shield=True):
                    await self._cancel(scope, bytes(body))
            return message

        async def watched_send(message: Message) -> None:
            nonlocal answered
            answered |= message["type"] == "http.response.body" and not message.get("more_body", False)
            await send(message)

        await self._app(scope, watched_receive, watched_send)

    async def _cancel(self, scope: Scope, body: bytes) -> None:
        try:
            request = json.loads(body)
        except ValueError:  # it left before it had sent its request
            return
        if not isinstance(request, dict) or "id" not in request or "method" not in request:
            return
        notification = {
            "jsonrpc": "2.0",
            "method": "notifications/cancelled",
            "params": {"requestId": request["id"], "reason": "The connection of the request was closed."},
        }
        content = json.dumps(notification).encode()
        sent: Scope = {**scope, "headers": list(scope["headers"])}
        MutableHeaders(scope=sent)["content-length"] = str(len(content))
        given = False

        async def receive() -> Message:
            nonlocal given
            if given:
                return {"type": "http.disconnect"}
            given = True
            return {"type": "http.request", "body": content, "more_body": False}

        async def send(message: Message) -> None:
            """Nobody reads the answer."""

        await self._app(sent, receive, send)
