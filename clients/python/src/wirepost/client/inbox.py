"""Messages on their way to the handlers: in order, each once, the cursor behind them."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

from ..message import Message
from ..patterns import matches
from .cursor import CursorStore
from .waits import Waits

Handler = Callable[[Message], "Awaitable[None] | None"]


@dataclass(frozen=True)
class Gap:
    """Messages may be missing before the next one: fetch your state again.

    `reason`: `retention`, `incarnation` or `unread`, see the protocol; `resume`: the edge could not continue from the
    cursor; `restart`: nothing tells what was pushed while there was no connection (delivery `Transient`).
    """

    reason: str


GapHandler = Callable[[Gap], "Awaitable[None] | None"]

BACKLOG = 1024
"""Messages that wait for a slow handler; more stay in the socket, and at last the edge waits too (4008)."""
BACKLOG_BYTES = 8 * 1024 * 1024

log = logging.getLogger("wirepost")


@dataclass
class Item:
    message: Message | None = None
    gap: Gap | None = None
    cursor: str | None = None
    size: int = 0


class Inbox:
    """Hands messages to the handlers, one after the other, and moves the stored cursor behind them."""

    def __init__(self, store: CursorStore, waits: Waits, remembered: int, attempts: int) -> None:
        self.handlers: list[tuple[str, Handler]] = []
        self.gap_handlers: list[GapHandler] = []
        self.on_error: Callable[[BaseException, Message | None], None] = _log_error
        self._store = store
        self._waits = waits
        self._remembered = remembered
        self._attempts = attempts
        self._seen: OrderedDict[tuple[str | None, str | None, str], None] = OrderedDict()
        self._items: deque[Item] = deque()
        self._bytes = 0
        self._changed = asyncio.Event()
        self._saved: str | None = None
        self._stopped = False

    def stop(self) -> None:
        """The handler that runs is the last one."""
        self._stopped = True

    def first_time(self, message: Message) -> bool:
        """Whether this id of its sender is new; remembers it.

        Ids belong to their sender: another client, or another business, could use the id of a message that is yet to
        come.
        """
        client = message.from_unique_id if message.send_type == "ClientToClient" else None
        key = (message.business_type, client, message.id)
        if key in self._seen:
            self._seen.move_to_end(key)
            return False
        self._seen[key] = None
        if len(self._seen) > self._remembered:
            self._seen.popitem(last=False)
        return True

    async def put(self, item: Item) -> None:
        """Waits while there is no room."""
        while len(self._items) >= BACKLOG or (self._items and self._bytes + item.size > BACKLOG_BYTES):
            self._changed.clear()
            await self._changed.wait()
        last = self._items[-1] if self._items else None
        if last is not None and item.message is None and item.gap is None:
            last.cursor = item.cursor or last.cursor  # a position alone needs no place of its own
        else:
            self._items.append(item)
            self._bytes += item.size
        self._changed.set()

    async def run(self) -> None:
        """Works until it is stopped or cancelled."""
        while not self._stopped:
            while not self._items:
                self._changed.clear()
                await self._changed.wait()
            # It keeps its place until it is done, so that a position that arrives meanwhile waits behind it.
            item = self._items[0]
            if item.gap is not None:
                for gap_handler in list(self.gap_handlers):
                    await self._call(partial(gap_handler, item.gap), None)
            if item.message is not None:
                for pattern, handler in list(self.handlers):
                    if matches(pattern, item.message.message_type):
                        await self._call(partial(handler, item.message), item.message)
            cursor = item.cursor
            self._items.popleft()
            self._bytes -= item.size
            self._changed.set()
            if cursor is not None and cursor != self._saved:
                await self._save(cursor)

    async def _call(self, handler: Callable[[], Awaitable[None] | None], message: Message | None) -> None:
        """Calls a handler until it succeeds, but not for ever: one message must not hold up all others."""
        for attempt in range(1, self._attempts + 1):
            try:
                result = handler()
                if inspect.isawaitable(result):
                    await result
                return
            except (Exception, asyncio.CancelledError) as error:
                # Cancelled with this client; else something that the handler waited for was.
                if isinstance(error, asyncio.CancelledError) and (self._stopped or _to_end()):
                    raise
                self.report(error, message)
            if attempt < self._attempts:
                await asyncio.sleep(self._waits.handler(attempt))

    async def _save(self, cursor: str) -> None:
        try:
            await self._store.save(cursor)
            self._saved = cursor
        except Exception as error:  # the next one may be saved; until then a restart repeats messages
            self.report(error, None)

    def report(self, error: BaseException, message: Message | None) -> None:
        """Tells the user; what `on_error` raises ends nothing."""
        try:
            self.on_error(error, message)
        except Exception:
            log.exception("wirepost: on_error failed")


def _to_end() -> bool:
    """Whether this task was told to end. Python 3.10 can't tell: there each cancellation counts as that."""
    task = asyncio.current_task()
    cancelling: Callable[[], int] = getattr(task, "cancelling", lambda: 1)
    return cancelling() > 0


def _log_error(error: BaseException, message: Message | None) -> None:
    about = f"a handler failed with {message.message_type} {message.id}" if message else "a callback failed"
    log.error("wirepost: %s: %s", about, error, exc_info=error)
