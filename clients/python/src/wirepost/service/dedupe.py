"""Recognises repeats: a message may come twice, with the same sender and id."""

from __future__ import annotations

from collections import OrderedDict
from typing import Protocol

from .turns import Turns


class Dedupe(Protocol):
    """Your own: best a table that is written in the same transaction as the work."""

    async def seen(self, sender: str, message_id: str) -> bool:
        """Whether this message was handled before. If so, it is acknowledged and not handled again."""
        ...

    async def remember(self, sender: str, message_id: str) -> None:
        """It was handled. Called after the handler has succeeded and before the acknowledgement."""
        ...


class MemoryDedupe:
    """The last messages that this process handled. It knows nothing of other replicas, and forgets with the process."""

    def __init__(self, size: int = 10_000) -> None:
        self._size = size
        self._seen: OrderedDict[tuple[str, str], None] = OrderedDict()

    async def seen(self, sender: str, message_id: str) -> bool:
        return (sender, message_id) in self._seen

    async def remember(self, sender: str, message_id: str) -> None:
        self._seen[(sender, message_id)] = None
        while len(self._seen) > self._size:
            self._seen.popitem(last=False)


class Once:
    """What was handled, and what is handled now: of two copies the second waits for the first, in whichever queue."""

    def __init__(self, dedupe: Dedupe) -> None:
        self.dedupe = dedupe
        self.turns = Turns()


class NoDedupe:
    """Every delivery is handled: for handlers that can do their work twice, or recognise repeats themselves."""

    async def seen(self, sender: str, message_id: str) -> bool:
        return False

    async def remember(self, sender: str, message_id: str) -> None:
        return None
