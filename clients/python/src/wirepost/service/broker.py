"""The connection to the broker: made again whenever it ends, with the credentials of that moment."""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
from collections.abc import Callable

import aio_pika
from aio_pika.abc import AbstractConnection

from .binding import Binding

log = logging.getLogger("wirepost")

HEARTBEAT = 10
CONNECT_SECONDS = 10.0
WAIT_FIRST, WAIT_MAX = 0.5, 15.0


class Broker:
    """Bindings are read again before each attempt: after a rotation the Secret has another user."""

    def __init__(self, read: Callable[[], Binding], ssl_context: ssl.SSLContext | None) -> None:
        self._read = read
        self._ssl = ssl_context
        self._connection: AbstractConnection | None = None
        self._up = asyncio.Event()

    @property
    def connected(self) -> bool:
        return self._up.is_set()

    async def connection(self) -> AbstractConnection:
        """Waits for one that is up."""
        while True:
            await self._up.wait()
            if self._connection is not None:
                return self._connection

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
                try:
                    await self._hold(connection)
                finally:
                    self._up.clear()
                    self._connection = None
                    await connection.close()
                log.warning("wirepost: the connection to the broker ended")
                if loop.time() - begin >= 5:
                    failures = 0
            await asyncio.sleep(wait(failures))
            failures += 1

    async def _hold(self, connection: AbstractConnection) -> None:
        """Offers it until it ends. (Its `closed()` waits for our own `close()` only.)"""
        ended = asyncio.Event()

        def end(*_: object) -> None:
            self._up.clear()
            ended.set()

        connection.close_callbacks.add(end)
        if connection.connected.is_set():
            self._connection = connection
            self._up.set()
            await ended.wait()


def wait(failures: int) -> float:
    """Seconds before the next attempt, with jitter."""
    return random.uniform(0.1, 1) * min(WAIT_MAX, WAIT_FIRST * 2.0 ** min(failures, 30))


def _with_heartbeat(uri: str) -> str:
    # Without one a dead network is noticed after minutes.
    if "heartbeat=" in uri:
        return uri
    return f"{uri}{'&' if '?' in uri else '?'}heartbeat={HEARTBEAT}"
