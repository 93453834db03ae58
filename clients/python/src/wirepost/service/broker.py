"""The connection to the broker: made again whenever it ends, with the credentials of that moment."""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import aio_pika
from aio_pika.abc import AbstractConnection

from .binding import Binding

log = logging.getLogger("wirepost")

Result = TypeVar("Result")

HEARTBEAT = 10
CONNECT_SECONDS = 10.0
CLOSE_SECONDS = 2.0
WAIT_FIRST, WAIT_MAX = 0.5, 15.0


class Session:
    """One connection, and when it ended. (What aio-pika's own objects say of that depends on its version.)"""

    def __init__(self, connection: AbstractConnection) -> None:
        self.connection = connection
        self.ended = asyncio.Event()
        connection.close_callbacks.add(self._end)
        if not connection.connected.is_set():
            self.ended.set()

    def _end(self, *_: object) -> None:
        self.ended.set()

    async def during(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Awaits it, or raises ConnectionError when the connection ends first: aiormq 6 then leaves it hanging."""
        task, ended = asyncio.ensure_future(work), asyncio.ensure_future(self.ended.wait())
        try:
            either: set[asyncio.Future[Any]] = {task, ended}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise ConnectionError("the connection to the broker ended")
            return task.result()
        finally:
            ended.cancel()
            if not task.done():
                task.cancel()


class Broker:
    """Bindings are read again before each attempt: after a rotation the Secret has another user."""

    def __init__(self, read: Callable[[], Binding], ssl_context: ssl.SSLContext | None) -> None:
        self._read = read
        self._ssl = ssl_context
        self._session: Session | None = None
        self._up = asyncio.Event()

    @property
    def connected(self) -> bool:
        return self._session is not None and not self._session.ended.is_set()

    async def session(self) -> Session:
        """Waits for one that is up."""
        while True:
            await self._up.wait()
            if self._session is not None and not self._session.ended.is_set():
                return self._session
            await asyncio.sleep(0)  # `run` is about to see that it ended

    async def run(self) -> None:
        """Keeps a connection until cancelled."""
        failures = 0
        loop = asyncio.get_running_loop()
        while True:
            try:
                binding = self._read()
                connection = await aio_pika.connect(
                    _with_heartbeat(binding.amqp),
                    timeout=CONNECT_SECONDS,
                    ssl_context=self._ssl,
                    client_properties={"connection_name": f"wirepost-python {binding.business}"},
                )
            except Exception as error:
                log.warning("wirepost: no connection to the broker: %s", error)
            else:
                begin = loop.time()
                log.info("wirepost: connected to the broker of %s", binding.business)
                session = self._session = Session(connection)
                self._up.set()
                try:
                    await session.ended.wait()
                finally:
                    self._up.clear()
                    self._session = None
                    await _close(connection)
                log.warning("wirepost: the connection to the broker ended")
                if loop.time() - begin >= 5:
                    failures = 0
            await asyncio.sleep(wait(failures))
            failures += 1


async def _close(connection: AbstractConnection) -> None:
    """Bounded: a broker that does not answer must not hold up the next attempt."""
    try:
        await asyncio.wait_for(connection.close(), CLOSE_SECONDS)
    except Exception as error:
        log.debug("wirepost: closing a connection to the broker: %s", error)


def wait(failures: int) -> float:
    """Seconds before the next attempt, with jitter."""
    return random.uniform(0.1, 1) * min(WAIT_MAX, WAIT_FIRST * 2.0 ** min(failures, 30))


def _with_heartbeat(uri: str) -> str:
    # Without one a dead network is noticed after minutes.
    if "heartbeat=" in uri:
        return uri
    return f"{uri}{'&' if '?' in uri else '?'}heartbeat={HEARTBEAT}"
