"""An edge that a test plays: it answers as the test says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any
from urllib.parse import parse_qs, urlsplit

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

Frame = dict[str, Any]


class FakeEdge:
    """Every connection gets a `welcome`; every message an `ack`, unless `answer` says otherwise."""

    def __init__(self) -> None:
        self.url = ""
        self.connections: list[ServerConnection] = []
        self.paths: list[str] = []
        self.frames: list[tuple[int, Frame]] = []
        """The number of the connection, and what came on it."""
        self.token_calls = 0
        self.welcome: Frame = {
            "op": "welcome",
            "cursor": "c0",
            "resumed": False,
            "resumeToken": "resume",
            "limits": {"messageBytes": 1000, "messagesPerSecond": 1000, "burst": 1000},
        }
        self.welcomes: dict[int, Frame] = {}
        """Fields of the `welcome` of a connection; None leaves one out."""
        self.answer: Callable[[Frame], Frame | None] = lambda frame: {"op": "ack", "id": frame["id"]}
        self.on_connect: Callable[[int], Awaitable[None]] | None = None

    async def token(self) -> str:
        self.token_calls += 1
        return f"{self.url}/socket/ticket-{self.token_calls}"

    async def serve(self, connection: ServerConnection) -> None:
        number = len(self.connections)
        self.connections.append(connection)
        assert connection.request is not None
        self.paths.append(connection.request.path)
        if self.on_connect is not None:
            await self.on_connect(number)
        resumed = {"resumed": True, "cursor": self.cursor(number)} if number else {}
        welcome = {**self.welcome, **resumed, **self.welcomes.get(number, {})}
        await self.say({name: value for name, value in welcome.items() if value is not None}, number)
        with suppress(ConnectionClosed):
            async for text in connection:
                frame = json.loads(text)
                self.frames.append((number, frame))
                answer = self.answer(frame) if "op" not in frame else None
                if answer is not None:
                    await self.say(answer, number)

    def cursor(self, number: int) -> str | None:
        """What a connection asked to continue from."""
        return parse_qs(urlsplit(self.paths[number]).query).get("cursor", [None])[0]

    async def say(self, frame: Frame, number: int = -1) -> None:
        with suppress(ConnectionClosed):
            await self.connections[number].send(json.dumps(frame))

    async def push(self, n: int, number: int = -1, **fields: Any) -> None:
        push = {"id": f"p{n}", "messageType": "payment.completed", "content": {"n": n}, "cursor": f"c{n}", **fields}
        await self.say(push, number)

    def messages(self, number: int | None = None) -> list[Frame]:
        return [frame for n, frame in self.frames if "op" not in frame and number in (None, n)]


@asynccontextmanager
async def fake_edge() -> AsyncIterator[FakeEdge]:
    edge = FakeEdge()
    async with serve(edge.serve, "127.0.0.1", 0, subprotocols=["wirepost.v1"], close_timeout=0.5) as server:  # type: ignore[list-item]
        port = next(iter(server.sockets)).getsockname()[1]
        edge.url = f"ws://127.0.0.1:{port}"
        yield edge


async def until(what: str, check: Callable[[], Any], within: float = 20.0) -> Any:
    """Waits for a condition."""
    deadline = asyncio.get_running_loop().time() + within
    while not (found := check()):
        assert asyncio.get_running_loop().time() < deadline, f"not within {within} s: {what}"
        await asyncio.sleep(0.01)
    return found
