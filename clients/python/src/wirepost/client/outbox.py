"""Messages on their way to the edge: waiting, in flight, to be repeated."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import logging
from collections.abc import Callable, Generator
from typing import Any

from ..errors import Rejected
from .link import WINDOW, Link
from .waits import Waits

log = logging.getLogger("wirepost")


class Pending:
    """A message without a final answer. Awaiting it gives its id, or raises `Rejected`."""

    def __init__(self, message_id: str, text: str) -> None:
        self.id = message_id
        self.text = text
        self.size = len(text.encode())
        self.number = 0
        self.refusals = 0
        self.may_have_arrived = False
        """Whether the receiver may have it: it was on the wire, and no answer said that it did not arrive."""
        self.lost_before = False
        """The same before the latest attempt."""
        self.done: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        # Nobody has to look at a failure.
        self.done.add_done_callback(lambda done: done.cancelled() or done.exception())

    def __await__(self) -> Generator[Any, None, str]:
        return asyncio.shield(self.done).__await__()

    def cancel(self) -> None:
        """It is not sent any more; if it is on the wire already, it may still arrive."""
        self.reject("aborted", "cancelled")

    def resolve(self) -> None:
        if not self.done.done():
            self.done.set_result(self.id)

    def reject(self, code: str, reason: str, *, retryable: bool = False, arrived: bool | None = None) -> None:
        if not self.done.done():
            may = self.may_have_arrived if arrived is None else arrived
            self.done.set_exception(Rejected(code, reason, retryable=retryable, may_have_arrived=may))


class Outbox:
    """Bounded: at most `limit` messages wait to be sent, and 64 are without an answer."""

    def __init__(self, waits: Waits, limit: int) -> None:
        self._waits = waits
        self._limit = limit
        # In the order in which they were first sent, also those that are repeated.
        self._waiting: list[tuple[int, Pending]] = []
        self._numbers = itertools.count()
        self._known: dict[str, Pending] = {}
        self._paused_until = 0.0
        self._flying = 0
        self._wake = asyncio.Event()
        self._closed = False

    def add(self, pending: Pending) -> None:
        """Takes a message; rejects it if there is no room."""
        if self._closed:
            pending.reject("closed", "the client is closed")
            return
        if pending.id in self._known:
            raise ValueError(f"a message with the id {pending.id} is on its way already")
        if len(self._known) - self._flying >= self._limit:
            pending.reject("queue_full", f"{self._limit} messages wait already", retryable=True)
            return
        self._known[pending.id] = pending
        pending.done.add_done_callback(lambda _: self._forget(pending))
        pending.number = next(self._numbers)
        self._back([pending])

    def _forget(self, pending: Pending) -> None:
        self._known.pop(pending.id, None)
        # Those in the middle of the queue are skipped when their turn comes; a long queue of them is not kept.
        if len(self._waiting) > 2 * len(self._known) + 16:
            self._waiting = [entry for entry in self._waiting if not entry[1].done.done()]
            heapq.heapify(self._waiting)

    async def pump(self, link: Link, usable: Callable[[], bool]) -> None:
        """Sends over this link as long as it is usable."""
        loop = asyncio.get_running_loop()
        self._paused_until = 0.0  # what held on the link before
        while usable():
            self._wake.clear()
            while self._waiting and self._waiting[0][1].done.done():
                heapq.heappop(self._waiting)
            wait: float | None = None
            if self._waiting and self._flying < WINDOW:
                wait = self._paused_until - loop.time()
                if wait <= 0:
                    pending = self._waiting[0][1]
                    if pending.size > link.message_bytes:
                        heapq.heappop(self._waiting)
                        pending.reject(
                            "too_large", f"{pending.size} bytes, and the edge takes {link.message_bytes:.0f}"
                        )
                        continue
                    wait = link.pause()
                    if wait <= 0:
                        heapq.heappop(self._waiting)
                        await self._fly(pending, link)
                        continue
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._wake.wait(), wait)

    def wake(self) -> None:
        """Lets the pumps look again whether their links are usable."""
        self._wake.set()

    async def _fly(self, pending: Pending, link: Link) -> None:
        link.unanswered[pending.id] = pending
        self._flying += 1
        # Before the bytes leave: a write that is cancelled may have been written.
        pending.lost_before, pending.may_have_arrived = pending.may_have_arrived, True
        await link.send(pending.text)

    # ---- answers ----

    def _answered(self, link: Link, message_id: Any) -> Pending | None:
        pending = link.unanswered.pop(message_id, None) if isinstance(message_id, str) else None
        if pending is not None:
            self._flying -= 1
            self._wake.set()
        return pending

    def ack(self, link: Link, frame: dict[str, Any]) -> None:
        pending = self._answered(link, frame.get("id"))
        if pending is not None:
            pending.resolve()

    def nack(self, link: Link, frame: dict[str, Any]) -> None:
        """A refusal: final, or the message is repeated after a wait."""
        pending = self._answered(link, frame.get("id"))
        if pending is None:
            return
        code, reason = str(frame.get("code", "unknown")), str(frame.get("reason", ""))
        log.debug("wirepost: %s was refused: %s", pending.id, code)
        pending.may_have_arrived = pending.lost_before or frame.get("mayHaveArrived") is True
        if frame.get("retryable") is not True:
            pending.reject(code, reason)
            return
        hint = frame.get("retryAfterMs")
        pending.refusals += 1
        hinted = hint / 1000 if isinstance(hint, (int, float)) and hint >= 0 else None
        wait = self._waits.nack(pending.refusals) if hinted is None else hinted
        # What comes after it waits too: so the order stays, and an edge or broker in trouble is left alone.
        self._paused_until = max(self._paused_until, asyncio.get_running_loop().time() + wait)
        self._back([pending])

    def lost(self, link: Link) -> list[Pending]:
        """The link is over: what had no answer is repeated, in its order, before everything else."""
        unanswered = list(link.unanswered.values())
        link.unanswered.clear()
        self._flying -= len(unanswered)
        self._back(unanswered)
        return unanswered

    def _back(self, pendings: list[Pending]) -> None:
        for pending in pendings:
            if not pending.done.done():
                heapq.heappush(self._waiting, (pending.number, pending))
        self._wake.set()

    def close(self) -> None:
        """Settles everything."""
        self._closed = True
        for pending in list(self._known.values()):
            pending.reject("closed", "the client was closed")
        self._waiting.clear()
