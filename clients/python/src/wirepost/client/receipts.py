"""Receipts, each given until it is answered."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any

from ..message import dump
from .link import Link
from .waits import Waits

IN_A_FRAME = 256
"""Ids in one `received`, see the protocol."""
TOGETHER = 0.02
"""Seconds in which receipts that are given again wait for each other."""

Spawn = Callable[[Coroutine[Any, Any, None], str], "asyncio.Task[None]"]


@dataclass
class _Delivered:
    before: str | None
    """The position before the message."""
    link: Link | None
    """The link that brought it last, if it lives."""


class Receipts:
    """A receipt counts on a link that delivered its message. So if that ends without an answer, the next one begins
    before that message, and the receipt is given when it comes again.
    """

    def __init__(self, remembered: int, waits: Waits, spawn: Spawn) -> None:
        """`remembered` messages at most, no more than those by which repeats are dropped."""
        self._remembered = remembered
        self._waits = waits
        self._spawn = spawn
        self._messages: OrderedDict[str, _Delivered] = OrderedDict()
        self._open: OrderedDict[str, Link | None] = OrderedDict()
        """Without an answer, by where they were given; None: their messages are to come again."""
        self._soon: dict[Link, list[str]] = {}
        self._refusals = 0

    @property
    def cursor(self) -> str | None:
        """Where to continue so that messages come again whose receipts are open. None: nothing has to come again."""
        for message_id, message in self._messages.items():
            if message.before is not None and self._waits_for(message_id):
                return message.before
        return None

    @property
    def waiting(self) -> list[str]:
        """Receipts that wait for their messages to come again."""
        return [message_id for message_id, link in self._open.items() if link is None]

    def delivered(self, message_id: str, before: str | None, link: Link) -> bool:
        """A message has come. Returns whether it came before."""
        known = self._messages.get(message_id)
        if known is not None:
            known.link = link
        else:
            self._messages[message_id] = _Delivered(before, link)
            # It is behind all that could come again: what has not, as it expired or lost its tag, never will.
            for one in link.awaited:
                if self._waits_for(one):
                    del self._open[one]
            link.awaited = []
        if len(self._messages) > self._remembered:
            oldest, _ = self._messages.popitem(last=False)
            if self._waits_for(oldest):
                del self._open[oldest]
        if self._waits_for(message_id):
            self._give_soon([message_id], link, TOGETHER)
        return known is not None

    async def give(self, ids: Iterable[str], current: Link | None) -> None:
        """Gives receipts; `current` is for messages that are not remembered any more."""
        given: dict[Link, list[str]] = {}
        for message_id in dict.fromkeys(ids):
            known = self._messages.get(message_id)
            link = known.link if known is not None else current
            if known is None and link is None:
                continue
            self._open[message_id] = link
            if len(self._open) > self._remembered:
                self._open.popitem(last=False)
            if link is not None:
                given.setdefault(link, []).append(message_id)
        for link, some in given.items():
            await _send(link, some)

    def answer(self, link: Link, frame: dict[str, Any]) -> None:
        """A `receipt`, or an `error` about `received`."""
        ids = frame.get("ids")
        answered = [one for one in ids if self._open.get(one) is link] if isinstance(ids, list) else []
        if frame.get("op") == "receipt":
            self._refusals = 0
        elif frame.get("retryable") is True:
            if answered:
                self._refusals += 1
                self._give_soon(answered, link, self._waits.nack(self._refusals))
            return
        for message_id in answered:
            del self._open[message_id]

    def owes(self, link: Link) -> bool:
        """Whether a link owes answers."""
        return any(one is link for one in self._open.values())

    def reached(self, link: Link, cursor: str) -> None:
        """A link has come to a position. What it has not brought again is behind that, or never comes. An edge sends
        positions in the middle of a repetition too, so it is not known which.
        """
        for message_id in link.awaited:
            if self._waits_for(message_id) and message_id in self._messages:
                self._messages[message_id].before = cursor

    def gap(self) -> None:
        """A position can't be continued: what is to come again does not."""
        for message_id in [one for one, link in self._open.items() if link is None]:
            del self._open[message_id]

    def lost(self, link: Link) -> None:
        """A link has ended, or was left."""
        self._soon.pop(link, None)
        for message in self._messages.values():
            if message.link is link:
                message.link = None
        for message_id in [one for one, on in self._open.items() if on is link]:
            if message_id in self._messages:
                self._open[message_id] = None
            else:
                del self._open[message_id]

    def _waits_for(self, message_id: str) -> bool:
        """Whether a receipt waits for its message to come again."""
        return message_id in self._open and self._open[message_id] is None

    def _give_soon(self, ids: list[str], link: Link, seconds: float) -> None:
        for message_id in ids:
            self._open[message_id] = link
        if link in self._soon:
            self._soon[link].extend(ids)
        else:
            self._soon[link] = list(ids)
            self._spawn(self._again(link, seconds), "wirepost receipts")

    async def _again(self, link: Link, seconds: float) -> None:
        await asyncio.sleep(seconds)
        await _send(link, self._soon.pop(link, []))


async def _send(link: Link, ids: list[str]) -> None:
    for first in range(0, len(ids), IN_A_FRAME):
        await link.send(dump({"op": "received", "ids": ids[first : first + IN_A_FRAME]}))
