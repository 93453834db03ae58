"""The client: keeps a connection, sends, receives, and resumes where it was."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
import random
from collections.abc import Callable, Coroutine, Iterable
from types import TracebackType
from typing import Any, TypeVar

from ..errors import Rejected
from ..message import Message, dump, parse, write
from ..tokens import TokenSource
from .cursor import CursorStore, MemoryCursorStore
from .inbox import Gap, GapHandler, Handler, Inbox, Item
from .link import Link, NotOpened
from .outbox import Outbox, Pending
from .receipts import Receipts
from .session import Session
from .waits import PATIENCE_MAX, Timing, Waits

log = logging.getLogger("wirepost")

AnyHandler = TypeVar("AnyHandler", bound=Handler)
AnyGapHandler = TypeVar("AnyGapHandler", bound=GapHandler)
Result = TypeVar("Result")

SETTLE = 10.0
"""Seconds for the answers to what was sent on a connection that another one has replaced."""


class State(str, enum.Enum):
    """What a client does at the moment."""

    CONNECTING = "connecting"
    """It gets a token, or connects."""
    OPEN = "open"
    WAITING = "waiting"
    """There is no connection, and it returns on its own."""
    STOPPED = "stopped"
    """Replaced by a newer connection of the same identity (4009): it returns only by `reconnect()`."""
    CLOSED = "closed"


class WirepostClient:
    """A client of an edge.

        async with WirepostClient(HttpToken("https://shop.example/wirepost-token")) as client:

            @client.on("payment.completed")
            async def paid(message: Message) -> None:
                ...

            await client.send("qr.refresh", {"qrId": "q-1"})

    `token` gives a fresh connection URL each time that a session begins or is extended. Register handlers before the
    first `await` after the start, or before `start()`: what arrives without a handler is dropped.

    Handlers are called one at a time, in the order of the messages, each message once. One that raises is called again
    with the same message, `handler_attempts` times at most. The cursor is stored after the handlers have succeeded.
    """

    def __init__(
        self,
        token: TokenSource,
        *,
        cursor_store: CursorStore | None = None,
        queue_limit: int = 1000,
        remembered_ids: int = 1000,
        handler_attempts: int = 4,
        timing: Timing | None = None,
        on_state: Callable[[State], None] | None = None,
        on_error: Callable[[BaseException, Message | None], None] | None = None,
        connect_options: dict[str, Any] | None = None,
    ) -> None:
        """`queue_limit` bounds the messages that wait to be sent, mostly while there is no connection; further ones are
        rejected with `queue_full`. `remembered_ids` are those by which repeats are dropped. `connect_options` go
        to `websockets.connect`: `ssl`, `proxy`, `origin`, `additional_headers`, …
        """
        self._timing = timing or Timing()
        self._waits = Waits(self._timing)
        self._session = Session(token, self._timing.connect_within)
        self._store = cursor_store or MemoryCursorStore()
        self._inbox = Inbox(self._store, self._waits, remembered_ids, max(1, handler_attempts))
        if on_error is not None:
            self._inbox.on_error = on_error
        self._outbox = Outbox(self._waits, queue_limit)
        self._receipts = Receipts(remembered_ids, self._waits, self._spawn)
        self._kick = asyncio.Event()
        self._opened = asyncio.Event()
        self._on_state = on_state
        self._options = connect_options or {}
        self._state: State | None = None
        self._cursor: str | None = None
        self._was_open = False
        self._link: Link | None = None
        self._replacing = False
        self._closing = False
        self._patience = self._timing.pong_within
        self._deaths = 0
        self._heard = 0.0
        self._requests: dict[str, asyncio.Future[Message]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._runner: asyncio.Task[None] | None = None

    # ---- what users call ----

    def on(self, pattern: str = "#") -> Callable[[AnyHandler], AnyHandler]:
        """Registers a handler for message types: exact, or with `*` (one word) and `#` (any number of words)."""

        def register(handler: AnyHandler) -> AnyHandler:
            self._inbox.handlers.append((pattern, handler))
            return handler

        return register

    def on_gap(self, handler: AnyGapHandler) -> AnyGapHandler:
        """Registers what fetches the state again: messages may be missing before the next one."""
        self._inbox.gap_handlers.append(handler)
        return handler

    @property
    def state(self) -> State | None:
        """None before `start()`."""
        return self._state

    @property
    def last_event_age(self) -> float:
        """Seconds since the last frame of the edge; infinite before the first one."""
        return asyncio.get_running_loop().time() - self._heard if self._heard else float("inf")

    def start(self) -> None:
        """Begins to connect. `async with` does it."""
        if self._runner is not None:
            raise RuntimeError("a client can be started only once")
        self._runner = self._spawn(self._run(), "wirepost client")
        self._spawn(self._inbox.run(), "wirepost handlers")

    async def __aenter__(self) -> WirepostClient:
        self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def opened(self) -> None:
        """Waits until there is a connection."""
        await self._opened.wait()

    def submit(
        self,
        message_type: str,
        content: Any = None,
        *,
        to: str | None = None,
        tags: Iterable[str] | None = None,
        to_client_type: str | None = None,
        correlation_id: str | None = None,
        expires_at: int | None = None,
        message_id: str | None = None,
    ) -> Pending:
        """Like `send`, without waiting: awaiting the result does that, and its `cancel()` takes the message back."""
        message_id, text = write(
            message_type,
            content,
            message_id=message_id,
            to=to,
            tags=tags,
            to_client_type=to_client_type,
            correlation_id=correlation_id,
            expires_at=expires_at,
        )
        pending = Pending(message_id, text)
        if self._state is State.CLOSED:
            pending.reject("closed", "the client is closed")
        else:
            self._outbox.add(pending)
        return pending

    async def send(self, message_type: str, content: Any = None, **options: Any) -> str:
        """Sends a message, and returns its id when the edge has acknowledged it: the broker has it on disk.

        It waits for a connection and repeats, with the same id, until there is an answer. Raises `Rejected`. When the
        caller is cancelled, the message is not sent any more, or may arrive if it is on the wire already. The options
        are those of `submit`.
        """
        pending = self.submit(message_type, content, **options)
        try:
            return await pending
        except asyncio.CancelledError:
            pending.cancel()
            raise

    async def request(
        self, message_type: str, content: Any = None, *, timeout: float = 30.0, **options: Any
    ) -> Message:
        """Sends a message, and returns the one that answers it (whose `correlationId` is its id).

        Raises `Rejected`, with the code `no_answer` after `timeout` seconds. Handlers do not get the answer.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        answer: asyncio.Future[Message] = loop.create_future()
        pending = self.submit(message_type, content, **options)
        self._requests[pending.id] = answer
        try:
            futures: set[asyncio.Future[Any]] = {answer, pending.done}
            await asyncio.wait(futures, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done() and pending.done.done():
                pending.done.result()
                await asyncio.wait({answer}, timeout=max(0.0, deadline - loop.time()))
            if answer.done():
                return answer.result()
            raise Rejected("no_answer", f"none within {timeout} s", may_have_arrived=pending.may_have_arrived)
        finally:
            self._requests.pop(pending.id, None)
            answer.cancel()
            pending.cancel()

    async def received(self, *messages: Message | str) -> None:
        """Confirms to the business that these messages were stored or shown, on a route with `receipts`.

        It is told again until the edge has answered, also by the next connection. The last messages can be told of, as
        many as `remembered_ids`.
        """
        ids = [message if isinstance(message, str) else message.id for message in messages]
        await self._receipts.give(ids, self._link)

    def reconnect(self) -> None:
        """Connects now: ends a wait, and the stop after 4009. Without effect on an open connection."""
        if self._runner is not None:
            self._kick.set()

    def check(self) -> None:
        """Call it when the network may have changed: ends a wait, and tests an open connection."""
        self.reconnect()
        if self._link is not None:
            self._link.probe()

    async def close(self) -> None:
        """Says goodbye, and settles every send (`closed`). The client can't be started again."""
        if self._state is State.CLOSED or self._runner is None:
            return
        self._closing = True
        link, self._link = self._link, None
        self._outbox.close()
        self._inbox.stop()
        for answer in self._requests.values():
            if not answer.done():
                answer.set_exception(Rejected("closed", "the client was closed", may_have_arrived=True))
        tasks = [task for task in self._tasks if task is not asyncio.current_task()]
        self._runner.cancel()
        if link is not None:
            await link.close()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=1)
        self._to(State.CLOSED)

    # ---- the connection ----

    async def _run(self) -> None:
        self._cursor = await self._load()
        # Before Python 3.12 a cancellation can be swallowed (asyncio.wait_for), so `close` leaves a flag as well.
        while not self._closing:
            self._to(State.CONNECTING)
            try:
                link = await self._open()
            except NotOpened as error:
                code, slowly, after = error.code, error.slowly, error.retry_after
                log.info("wirepost: %s", error)
            else:
                self._to(State.OPEN)
                code, link = await self._stay(link)
                slowly, after = False, None
                self._waits.lasted(asyncio.get_running_loop().time() - link.opened)
            if code == 3000:
                self._session.forget()
            if code == 4009:
                self._to(State.STOPPED)
                await self._kicked(None)
            else:
                self._to(State.WAITING)
                await self._kicked(self._waits.next(slowly=slowly or code in (3003, 4010), retry_after=after))

    async def _load(self) -> str | None:
        try:
            return await self._store.load()
        except Exception as error:
            self._inbox.report(error, None)
            return None

    async def _kicked(self, within: float | None) -> None:
        self._kick.clear()
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._kick.wait(), within)

    async def _open(self) -> Link:
        """A new link, which is from now on the one that counts; raises NotOpened."""
        while True:
            link, given = await self._begin()
            if not (link.again and link.welcome.get("resumed") is False):
                break
            # The position before a message without a receipt can't be continued. The newest one perhaps can, so there
            # is no gap yet: the next link begins there, without the receipts that wait.
            self._receipts.gap()
            self._spawn(link.close(), "wirepost goodbye")
        try:
            await self._welcomed(link, given)
        except BaseException:
            link.abandon()
            raise
        return link

    async def _begin(self) -> tuple[Link, str | None]:
        """A new link, and the position with which it began; raises NotOpened."""
        url, token = await self._session.target()
        before = self._receipts.cursor
        given = before or self._cursor
        again = before is not None and before != self._cursor
        awaited = self._receipts.waiting if before is not None else []
        try:
            link = await Link.open(url, token, given, self._timing, self._options)
        except NotOpened as error:
            if error.forget_token:
                self._session.forget()
            raise
        if self._closing:
            link.abandon()
            raise asyncio.CancelledError
        self._heard = asyncio.get_running_loop().time()
        self._session.take(link.welcome)
        link.again, link.awaited = again, awaited
        return link, given

    async def _welcomed(self, link: Link, given: str | None) -> None:
        """What the welcome says about messages that were missed."""
        cursor = _cursor(link.welcome)
        gap: Gap | None = None
        if given is None:
            # Without a cursor nothing tells what came between two connections.
            gap = Gap("restart") if self._was_open else None
        elif link.welcome.get("resumed") is False:
            gap = Gap("resume")
            link.gap_told = True
            self._receipts.gap()
            self._cursor = None  # it is of no use any more
        self._was_open = True
        if link.again:
            return  # its position is behind what has come already
        self._cursor = cursor or self._cursor
        if gap is not None or cursor is not None:
            await self._inbox.put(Item(gap=gap, cursor=cursor))

    async def _stay(self, link: Link) -> tuple[int, Link]:
        """Lives on a link, and on those that replace it when their edges drain; the close code of the last one."""
        reader = self._attach(link)
        while True:
            either: set[asyncio.Future[Any]] = {reader, link.drain}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if reader.done():
                return reader.result(), link
            await asyncio.wait({reader}, timeout=random.uniform(0, link.drain.result()))
            if reader.done():
                return _left(reader), link
            self._replacing = True
            try:
                replacement = await self._open()
            except NotOpened as error:
                self._replacing = False
                log.info("wirepost: no replacement for a draining connection: %s", error)
                if error.code == 3000:
                    self._session.forget()
                wait = self._waits.next(slowly=error.slowly, retry_after=error.retry_after)
                await asyncio.wait({reader}, timeout=wait)
                if reader.done():
                    return _left(reader), link
                link.drain = asyncio.get_running_loop().create_future()
                link.drain.set_result(0.0)
                continue
            self._replacing = False
            link.retired = True
            self._outbox.wake()
            self._spawn(self._retire(link, reader), "wirepost drain")
            link, reader = replacement, self._attach(replacement)
            self._to(State.OPEN)

    def _attach(self, link: Link) -> asyncio.Task[int]:
        self._link = link
        self._opened.set()
        return self._spawn(self._live(link), "wirepost connection")

    async def _live(self, link: Link) -> int:
        """Reads, sends and watches until the link ends; its close code."""
        pump = self._spawn(self._outbox.pump(link, lambda: not link.retired), "wirepost sending")
        watch = self._spawn(link.watch(lambda: self._patience), "wirepost watch")
        code = 1006
        try:
            code = await link.frames(lambda frame, size: self._frame(link, frame, size))
        finally:
            link.retired = True
            link.abandon()
            pump.cancel()
            watch.cancel()
            if self._link is link:
                self._link = None
                self._opened.clear()
                if self._replacing:
                    self._to(State.CONNECTING)
            self._over(link, code)
        return code

    def _over(self, link: Link, code: int) -> None:
        if link.had_message:
            self._deaths = 0
        self._deaths = self._deaths + 1 if link.silent_death else 0
        if self._deaths >= 2:
            self._patience = min(PATIENCE_MAX, self._patience * 2)
        unanswered = self._outbox.lost(link)
        self._receipts.lost(link)
        if code == 1009 and unanswered:
            # One of them was too large for the edge or something before it: never again.
            largest = max(unanswered, key=lambda pending: pending.size)
            largest.reject("too_large", "the connection was closed with 1009", arrived=largest.lost_before)

    async def _retire(self, link: Link, reader: asyncio.Task[int]) -> None:
        """Leaves a link that was replaced, after the answers to what was sent on it."""
        deadline = asyncio.get_running_loop().time() + SETTLE
        while (
            (link.unanswered or self._receipts.owes(link))
            and asyncio.get_running_loop().time() < deadline
            and not reader.done()
        ):
            await asyncio.wait({reader}, timeout=0.05)
        await link.close()

    # ---- frames ----

    async def _frame(self, link: Link, frame: dict[str, Any], size: int) -> None:
        self._heard = asyncio.get_running_loop().time()
        operation = frame.get("op")
        if isinstance(operation, str) and operation:
            await self._control(link, operation, frame)
        elif not link.retired:
            await self._envelope(link, frame, size)

    async def _envelope(self, link: Link, frame: dict[str, Any], size: int) -> None:
        link.had_message, link.gap_told = True, False
        self._patience = self._timing.pong_within
        try:
            message = parse(frame)
        except ValueError:
            return  # no edge sends it
        # What comes again is behind the position already.
        link.again = self._receipts.delivered(message.id, self._cursor, link) and link.again
        cursor = None if link.again else message.cursor
        item = Item(cursor=cursor)
        if cursor is not None:
            self._cursor = cursor
        if self._inbox.first_time(message):
            answer = self._requests.get(message.correlation_id or "")
            if answer is not None and not answer.done():
                answer.set_result(message)
            else:
                item = Item(message=message, cursor=cursor, size=size)
        if item.message is not None or item.cursor is not None:
            await self._inbox.put(item)

    async def _control(self, link: Link, operation: str, frame: dict[str, Any]) -> None:
        if operation in ("ack", "nack"):
            link.had_message = True
            (self._outbox.ack if operation == "ack" else self._outbox.nack)(link, frame)
        elif operation in ("receipt", "error"):
            self._receipts.answer(link, frame)
        elif operation == "drain":
            within = frame.get("reconnectWithinMs")
            if not link.drain.done():
                link.drain.set_result(max(0.0, float(within) / 1000) if isinstance(within, (int, float)) else 0.0)
        elif operation == "expiring":
            self._spawn(self._extend(link, frame), "wirepost refresh")
        elif operation == "refreshed":
            self._session.take(frame)
        elif link.retired:
            pass
        elif operation == "position":
            self._session.take(frame)
            link.gap_told = link.again = False
            cursor = _cursor(frame)
            if cursor is not None:
                self._receipts.reached(link, cursor)
                self._cursor = cursor
                await self._inbox.put(Item(cursor=cursor))
        elif operation == "gap" and link.again:
            # As in `_open`. Nothing more that it brings counts: that would be behind what may be missing.
            self._receipts.gap()
            link.retired = True
            self._outbox.wake()
            if not link.drain.done():
                link.drain.set_result(0.0)
        elif operation == "gap":
            told, link.gap_told = link.gap_told, False
            if not told:  # else it is the reason for what the welcome said
                await self._inbox.put(Item(gap=Gap(str(frame.get("reason", "unknown")))))

    async def _extend(self, link: Link, frame: dict[str, Any]) -> None:
        """Extends the session in time, if a ticket can be had; else it ends with 3000, and a new one begins."""
        left = frame.get("inSeconds")
        loop = asyncio.get_running_loop()
        deadline = loop.time() + (float(left) if isinstance(left, (int, float)) else 60.0)
        waits = Waits(self._timing)
        while not link.retired:
            try:
                ticket = await self._session.ticket()
            except NotOpened as error:
                log.info("wirepost: the session is not extended: %s", error)
                wait = waits.next(slowly=error.slowly, retry_after=error.retry_after)
                if loop.time() + wait >= deadline:
                    return
                await asyncio.sleep(wait)
            else:
                await link.send(dump({"op": "refresh", "token": ticket}))
                return

    # ---- small things ----

    def _to(self, state: State) -> None:
        if state is self._state:
            return
        self._state = state
        if self._on_state is not None:
            try:
                self._on_state(state)
            except Exception as error:
                self._inbox.report(error, None)

    def _spawn(self, work: Coroutine[Any, Any, Result], name: str) -> asyncio.Task[Result]:
        """A task of this client: ended with it, and its failure is never silent."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("wirepost: %s failed, please report it", task.get_name(), exc_info=task.exception())


def _left(reader: asyncio.Task[int]) -> int:
    """The close code of a connection that was told to leave: 4009 does not mean "stay away" there."""
    code = reader.result()
    return 1012 if code == 4009 else code


def _cursor(frame: dict[str, Any]) -> str | None:
    cursor = frame.get("cursor")
    return cursor if isinstance(cursor, str) and cursor else None
