"""One queue: deliveries to handlers, and what becomes of them."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import inspect
import json
import logging
import random
from collections.abc import Awaitable, Callable
from typing import Any

from aio_pika.abc import AbstractChannel, AbstractIncomingMessage

from ..message import Message, parse
from ..patterns import matches
from . import trace
from .broker import Broker, Session, wait
from .dedupe import Once

log = logging.getLogger("wirepost")

Handler = Callable[[Message], "Awaitable[Any] | Any"]

RETRY_FIRST, RETRY_MAX = 0.2, 30.0
CHECK_SECONDS = 2.0


class Reject(Exception):
    """Raise it in a handler for a message that can never work: it moves to the dead letters immediately."""


class Outcome(enum.Enum):
    DONE = "acknowledged"
    FAILED = "failed; it is delivered again, and after `deliveryLimit` failures it moves to the dead letters"
    DEAD = "moved to the dead letters"
    UNTOUCHED = "given back"


class Consumer:
    """At most `concurrency` handlers run at a time, and at most `prefetch` messages are with this process."""

    def __init__(
        self,
        broker: Broker,
        queue: str,
        handlers: list[tuple[str, Handler]],
        once: Once,
        concurrency: int,
        prefetch: int,
    ) -> None:
        self.queue = queue
        self.consuming = False
        self._broker = broker
        self._handlers = handlers
        self._once = once
        self._prefetch = prefetch
        self._slots = asyncio.Semaphore(concurrency)
        self._running: set[asyncio.Task[None]] = set()
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Consumes until `stop` or cancelled; subscribes again whenever the channel or the subscription ends."""
        failures = 0
        while not self._stopping.is_set():
            session = await self._broker.session()
            try:
                channel, tag, cancel = await session.during(self._subscribe(session))
                try:
                    await self._consume(session, channel, tag, cancel)
                    failures = 0
                finally:
                    self.consuming = False
                    if not session.ended.is_set() and not channel.is_closed and not self._stopping.is_set():
                        await channel.close()
            except Exception as error:  # of the library: its kind depends on its version
                log.warning("wirepost: consuming %s: %r", self.queue, error)
            if not self._stopping.is_set():
                await self._pause(wait(failures))
                failures += 1

    async def _subscribe(self, session: Session) -> tuple[AbstractChannel, str, Callable[[], Awaitable[Any]]]:
        channel = await session.connection.channel(publisher_confirms=False)
        await channel.set_qos(prefetch_count=self._prefetch)
        queue = await channel.get_queue(self.queue, ensure=False)
        tag = await queue.consume(self._take)
        return channel, tag, lambda: queue.cancel(tag)

    async def _consume(
        self, session: Session, channel: AbstractChannel, tag: str, cancel: Callable[[], Awaitable[Any]]
    ) -> None:
        self.consuming = True
        underlay: Any = await channel.get_underlay_channel()
        while not channel.is_closed:
            stopping, ended = asyncio.ensure_future(self._stopping.wait()), asyncio.ensure_future(session.ended.wait())
            try:
                await asyncio.wait({stopping, ended}, timeout=CHECK_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            finally:
                stopping.cancel()
                ended.cancel()
            if session.ended.is_set():
                return
            if self._stopping.is_set():
                with contextlib.suppress(Exception):
                    await cancel()
                return
            # The broker cancels a subscription when its queue is deleted, or moves to another node.
            if tag not in underlay.consumers:
                log.warning("wirepost: the broker ended the subscription of %s", self.queue)
                return

    def stop(self) -> None:
        """No new messages; what was fetched and has not begun is given back."""
        self._stopping.set()

    async def drained(self, grace: float) -> None:
        """After `stop`: waits for the handlers that run, and cancels those that take longer."""
        if self._running:
            await asyncio.wait(self._running, timeout=grace)
        for task in self._running:
            task.cancel()
        if self._running:
            await asyncio.wait(self._running, timeout=1)

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)

    # ---- one delivery ----

    async def _take(self, delivery: AbstractIncomingMessage) -> None:
        # In a task of its own: the library cancels those of a channel that ends, and work that has begun is finished.
        task = asyncio.get_running_loop().create_task(self._handle(delivery), name=f"wirepost {self.queue}")
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _handle(self, delivery: AbstractIncomingMessage) -> None:
        outcome = await self._outcome(delivery)
        if outcome is Outcome.FAILED:
            count = delivery.headers.get("x-delivery-count")
            failures = count if isinstance(count, int) else 0
            await self._pause(random.uniform(0.5, 1) * min(RETRY_MAX, RETRY_FIRST * 2.0 ** min(failures, 30)))
        try:
            if outcome is Outcome.DONE:
                await delivery.ack()
            elif outcome is Outcome.UNTOUCHED:
                await delivery.nack(requeue=True)  # this one does not count as a failure
            else:
                await delivery.reject(requeue=outcome is Outcome.FAILED)
        except Exception as error:
            log.info(
                "wirepost: %s: %s, but the channel ended before: it comes again (%s)", self.queue, outcome.value, error
            )

    async def _outcome(self, delivery: AbstractIncomingMessage) -> Outcome:
        try:
            message = parse(_object(delivery.body))
        except (ValueError, RecursionError) as error:
            log.error(
                "wirepost: %s: %s is no envelope (%s); %s", self.queue, delivery.message_id, error, Outcome.DEAD.value
            )
            return Outcome.DEAD
        key = (message.from_unique_id or "", message.id)
        # The slot last: what waits for its other copy holds up nobody else.
        async with self._once.turns.turn(key), self._slots:
            if self._stopping.is_set():
                return Outcome.UNTOUCHED
            with trace.carry(delivery.headers):
                return await self._work(message, *key)

    async def _work(self, message: Message, sender: str, message_id: str) -> Outcome:
        handlers = [handler for pattern, handler in self._handlers if matches(pattern, message.message_type)]
        if not handlers:
            log.error(
                "wirepost: %s: no handler for %s; %s is %s",
                self.queue,
                message.message_type,
                message_id,
                Outcome.DEAD.value,
            )
            return Outcome.DEAD
        try:
            if await self._once.dedupe.seen(sender, message_id):
                return Outcome.DONE
            for handler in handlers:
                result = handler(message)
                if inspect.isawaitable(result):
                    await result
            await self._once.dedupe.remember(sender, message_id)
        except Reject as error:
            log.error(
                "wirepost: %s: %s %s: %s; %s", self.queue, message.message_type, message_id, error, Outcome.DEAD.value
            )
            return Outcome.DEAD
        except (Exception, asyncio.CancelledError) as error:
            # Cancelled by the stop, it is given back; else something that the handler waited for was cancelled.
            if isinstance(error, asyncio.CancelledError) and self._stopping.is_set():
                raise
            log.error(
                "wirepost: %s: %s %s %s",
                self.queue,
                message.message_type,
                message_id,
                Outcome.FAILED.value,
                exc_info=error,
            )
            return Outcome.FAILED
        return Outcome.DONE


def _object(body: bytes) -> dict[str, Any]:
    value = json.loads(body.decode("utf-8-sig"))
    if not isinstance(value, dict):
        raise ValueError("it is no JSON object")
    return value
