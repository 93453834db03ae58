"""Pushes to the broker: persistent, mandatory, confirmed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractExchange
from aio_pika.exceptions import (
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
    DeliveryError,
    PublishError,
)
from aiormq.exceptions import ChannelAccessRefused

from ..errors import PushRefused, PushUnavailable, PushUnconfirmed, PushUnroutable
from . import trace
from .broker import Broker, Session
from .turns import Turns

log = logging.getLogger("wirepost")

UNCONFIRMED = 256
"""Pushes without a confirm at the same time; more wait."""
PAUSE = 0.2


class Publisher:
    """One channel with confirms, opened again when it ends."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._session: Session | None = None
        self._channel: AbstractChannel | None = None
        self._exchanges: dict[str, AbstractExchange] = {}
        self._opening = asyncio.Lock()
        self._slots = asyncio.Semaphore(UNCONFIRMED)
        # aiormq finds what the broker returned by its id: of two pushes with one id it takes the first for confirmed.
        self._turns = Turns()

    async def publish(
        self, exchange: str, message_id: str, text: str, timeout: float, headers: Mapping[str, str] | None = None
    ) -> None:
        """Returns when the broker has confirmed; raises PushFailed. Repeats while the connection fails."""
        on_wire = False
        try:
            async with self._turns.turn(message_id), self._slots:
                deadline = asyncio.get_running_loop().time() + timeout
                while True:
                    left = deadline - asyncio.get_running_loop().time()
                    session, where = await asyncio.wait_for(self._exchange(exchange), max(0.0, left))
                    left = deadline - asyncio.get_running_loop().time()
                    on_wire = True
                    if await self._once(session, where, message_id, text, max(0.01, left), headers or {}):
                        return
                    await asyncio.sleep(min(PAUSE, max(0.0, deadline - asyncio.get_running_loop().time())))
        except asyncio.TimeoutError:
            if on_wire:
                raise PushUnconfirmed(message_id, f"no confirm within {timeout} s: it may have arrived") from None
            raise PushUnavailable(message_id, f"no connection to the broker within {timeout} s") from None

    async def _once(
        self,
        session: Session,
        exchange: AbstractExchange,
        message_id: str,
        text: str,
        timeout: float,
        headers: Mapping[str, str],
    ) -> bool:
        """Whether it was confirmed; false if the connection or channel ended, so that it may be repeated."""
        message = aio_pika.Message(
            text.encode(),
            content_type="application/json",
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
            message_id=message_id,
            headers={**trace.current(), **headers},
        )
        try:
            await session.during(exchange.publish(message, routing_key="", mandatory=True, timeout=timeout))
        except PublishError as error:
            raise PushUnroutable(message_id, "the broker returned it: nothing reads this business's pushes") from error
        except DeliveryError as error:
            raise PushRefused(message_id, f"the broker did not take it: {error}") from error
        except (ChannelAccessRefused, ChannelNotFoundEntity, ChannelPreconditionFailed) as error:
            self._channel = None
            raise PushRefused(message_id, f"the broker refused it: {error}") from error
        except asyncio.TimeoutError:
            raise
        except Exception as error:  # the connection or the channel ended; aiormq 7 also says so by a bare `Exception()`
            log.info("wirepost: push %s is repeated: %r", message_id, error)
            self._channel = None
            return False
        return True

    async def _exchange(self, name: str) -> tuple[Session, AbstractExchange]:
        async with self._opening:
            while True:
                session = await self._broker.session()
                try:
                    if self._channel is None or self._channel.is_closed or self._session is not session:
                        self._exchanges.clear()
                        self._session, self._channel = session, None
                        self._channel = await session.during(_open(session))
                    if name not in self._exchanges:
                        self._exchanges[name] = await self._channel.get_exchange(name, ensure=False)
                    return session, self._exchanges[name]
                except Exception as error:
                    log.info("wirepost: no channel for pushes: %r", error)
                    self._channel = None
                    await asyncio.sleep(PAUSE)


async def _open(session: Session) -> AbstractChannel:
    channel: AbstractChannel = await session.connection.channel(publisher_confirms=True, on_return_raises=True)
    return channel
