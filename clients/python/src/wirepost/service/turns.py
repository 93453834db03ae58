"""One at a time for each key; others go on meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager


class Turns:
    """Who comes with a key that is busy waits for the end of that turn."""

    def __init__(self) -> None:
        self._busy: dict[Hashable, asyncio.Future[None]] = {}

    @asynccontextmanager
    async def turn(self, key: Hashable) -> AsyncIterator[None]:
        while key in self._busy:
            await asyncio.wait({self._busy[key]})
        self._busy[key] = asyncio.get_running_loop().create_future()
        try:
            yield
        finally:
            self._busy.pop(key).set_result(None)
