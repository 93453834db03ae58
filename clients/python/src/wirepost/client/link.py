"""One WebSocket connection to an edge: opening it, its frames, and whether it is still alive."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, InvalidURI, WebSocketException
from websockets.typing import Subprotocol

from ..tokens import retry_after
from .waits import Timing

if TYPE_CHECKING:
    from .outbox import Pending

SUBPROTOCOL = Subprotocol("wirepost.v1")
TOKEN_PROTOCOL = "wirepost.token."
MESSAGE_MAX = 8 * 1024 * 1024
"""Above the largest `pushBytes` that a business may declare. A larger frame ends the connection."""
WINDOW = 64
"""Messages without an answer, see the protocol."""
BROKEN = 1006
MARGIN = 0.8
"""Below what the edge admits: a network delivers in clusters what was sent evenly."""


class NotOpened(Exception):
    """A connection could not be opened."""

    def __init__(
        self,
        reason: str,
        *,
        code: int = BROKEN,
        slowly: bool = False,
        forget_token: bool = False,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(reason)
        self.code = code
        self.slowly = slowly
        self.forget_token = forget_token
        self.retry_after = retry_after


class Socket(ClientConnection):
    """Knows when any byte arrived last: a large message on a slow line is no silence."""

    heard = 0.0

    def data_received(self, data: bytes) -> None:
        self.heard = self.loop.time()
        super().data_received(data)


class Link:
    """A connection that has its `welcome`."""

    def __init__(self, socket: Socket, welcome: dict[str, Any], timing: Timing) -> None:
        self.welcome = welcome
        self.opened = asyncio.get_running_loop().time()
        self.unanswered: dict[str, Pending] = {}
        self.retired = False
        """Another link has taken over: only answers to what was sent here still count."""
        self.drain: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        """Done when the edge asks to leave: within so many seconds."""
        self.gap_told = False
        """The welcome said that something is missing; a `gap` that follows is its reason."""
        self.again = False
        """It began before the newest position, so that messages come again whose receipts have no answer."""
        self.awaited: list[str] = []
        """Receipts that waited for their messages when it began, if it began before those."""
        self.had_message = False
        self.silent_death = False
        limits = welcome.get("limits")
        limits = limits if isinstance(limits, dict) else {}
        self.message_bytes = _positive(limits.get("messageBytes"), math.inf)
        self._rate = _positive(limits.get("messagesPerSecond"), math.inf) * MARGIN
        self._burst = max(1.0, _positive(limits.get("burst"), math.inf) * MARGIN)
        self._tokens = self._burst
        self._refilled = self.opened
        self._socket = socket
        self._timing = timing
        self._stalled = False
        self._probe = asyncio.Event()

    # ---- opening ----

    @staticmethod
    async def open(url: str, token: str, cursor: str | None, timing: Timing, options: dict[str, Any]) -> Link:
        """Connects and waits for `welcome`; raises NotOpened."""
        if cursor:
            url += ("&" if "?" in url else "?") + "cursor=" + quote(cursor, safe="")
        try:
            socket = await asyncio.wait_for(_connect(url, token, options), timing.connect_within)
        except InvalidStatus as error:
            status = error.response.status_code
            raise NotOpened(
                f"the upgrade was answered with HTTP {status}",
                slowly=400 <= status < 500 and status not in (401, 408, 429),
                forget_token=status == 401,
                retry_after=retry_after(error.response.headers.get("Retry-After")),
            ) from error
        except InvalidURI as error:
            # Without the URL: its ticket is a secret.
            raise NotOpened("the token call gave no connection URL", slowly=True, forget_token=True) from error
        except (OSError, WebSocketException, EOFError, UnicodeError) as error:
            raise NotOpened(f"connecting failed: {error}") from error
        except asyncio.TimeoutError as error:
            raise NotOpened(f"not open within {timing.connect_within} s") from error
        try:
            welcome = await asyncio.wait_for(_welcome(socket), timing.connect_within)
        except ConnectionClosed as error:
            code = close_code(error)
            raise NotOpened(f"closed with {code} before welcome", code=code) from error
        except asyncio.TimeoutError as error:
            socket.transport.abort()
            raise NotOpened(f"no welcome within {timing.connect_within} s") from error
        except BaseException:
            socket.transport.abort()
            raise
        return Link(socket, welcome, timing)

    # ---- frames ----

    async def frames(self, handle: Callable[[dict[str, Any], int], Any]) -> int:
        """Reads until the connection ends; its close code. `handle` gets each frame and its size, and may be slow."""
        try:
            while True:
                text = await self._socket.recv()
                if not isinstance(text, str):
                    continue
                try:
                    frame = json.loads(text)
                except (ValueError, RecursionError):
                    continue
                if isinstance(frame, dict):
                    self._stalled = True
                    try:
                        await handle(frame, len(text))
                    finally:
                        self._stalled = False
        except ConnectionClosed as error:
            return BROKEN if self.silent_death else close_code(error)

    async def send(self, text: str) -> None:
        """Writes a text frame. That the connection has ended is seen by its reader."""
        with contextlib.suppress(ConnectionClosed):
            await self._socket.send(text)

    # ---- pace ----

    def pause(self) -> float:
        """Seconds until one more message is within the edge's rate; 0 uses up one."""
        now = asyncio.get_running_loop().time()
        if not math.isfinite(self._rate):
            return 0.0
        self._tokens = min(self._burst, self._tokens + (now - self._refilled) * self._rate)
        self._refilled = now
        if self._tokens >= 1:
            self._tokens -= 1
            return 0.0
        return (1 - self._tokens) / self._rate

    # ---- life ----

    def probe(self) -> None:
        """Tests it now: it is abandoned unless something arrives soon."""
        self._probe.set()

    async def watch(self, patience: Callable[[], float]) -> None:
        """Pings after silence, and abandons the connection when nothing comes. Ends then, or when cancelled."""
        loop = asyncio.get_running_loop()
        pinged, deadline = 0.0, math.inf
        ping: asyncio.Task[Any] | None = None
        try:
            while True:
                now = loop.time()
                if self._stalled:
                    self._socket.heard = now  # this side does not read: a handler is slow
                heard = self._socket.heard
                if heard > pinged:
                    deadline = math.inf
                probed = self._probe.is_set()
                self._probe.clear()
                if probed or (deadline == math.inf and now - heard >= self._timing.ping_after):
                    pinged = now
                    deadline = min(deadline, now + (self._timing.hint_pong_within if probed else patience()))
                    if ping is None or ping.done():
                        ping = asyncio.ensure_future(self._ping())
                if now >= deadline:
                    self.silent_death = True
                    self.abandon()
                    return
                due = heard + self._timing.ping_after if deadline == math.inf else deadline
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._probe.wait(), max(0.005, due - now))
        finally:
            if ping is not None:
                ping.cancel()

    async def _ping(self) -> None:
        with contextlib.suppress(ConnectionClosed):
            await self._socket.ping()

    def abandon(self) -> None:
        """Ends it without a farewell, which a dead network would not carry."""
        self._socket.transport.abort()

    async def close(self, within: float = 1.0) -> None:
        """Says goodbye (1000)."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._socket.close(1000), within)
        self.abandon()


async def _connect(url: str, token: str, options: dict[str, Any]) -> Socket:
    socket = await connect(
        url,
        # Not in the URL, which proxies log.
        subprotocols=[SUBPROTOCOL, Subprotocol(TOKEN_PROTOCOL + token)],
        create_connection=Socket,
        open_timeout=None,  # the caller's
        ping_interval=None,  # see `watch`
        max_size=MESSAGE_MAX,
        close_timeout=1,
        **{"compression": None, **options},
    )
    assert isinstance(socket, Socket)
    return socket


async def _welcome(socket: Socket) -> dict[str, Any]:
    while True:
        text = await socket.recv()
        with contextlib.suppress(ValueError, RecursionError):
            frame = json.loads(text)
            if isinstance(frame, dict) and frame.get("op") == "welcome":
                return frame


def close_code(error: ConnectionClosed) -> int:
    """The code that the edge sent; 1006 if none came."""
    return error.rcvd.code if error.rcvd is not None else BROKEN


def _positive(value: Any, default: float) -> float:
    return float(value) if isinstance(value, (int, float)) and value > 0 else default
