"""The service side: consumes a business's queues, and pushes to its clients."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import ssl
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeVar

import httpx

from ..errors import BindingError, PushFailed, PushInvalid, TokenRefused
from ..message import Message, write
from ..tokens import read_token
from .binding import Binding
from .broker import Broker
from .consumer import Consumer, Handler
from .dedupe import Dedupe, MemoryDedupe, Once
from .publisher import Publisher

log = logging.getLogger("wirepost")

AnyHandler = TypeVar("AnyHandler", bound=Handler)


@dataclass(frozen=True)
class Push:
    """One of `push_all`. The fields are the arguments of `push`."""

    message_type: str
    content: Any = None
    to: str | None = None
    tags: tuple[str, ...] | None = None
    to_client_type: str | None = None
    correlation_id: str | None = None
    expires_at: int | None = None
    message_id: str | None = None
    businesses: tuple[str, ...] | None = None


class WirepostApp:
    """A service of a business.

        app = WirepostApp()  # the business whose Secret is mounted below SERVICE_BINDING_ROOT

        @app.on("qr.refresh")
        async def refresh(message: Message) -> None:
            await app.reply(message, "qr.refreshed", {"qrId": new_code()})

        asyncio.run(app.run())

    A message is acknowledged after its handlers have returned. A handler that raises gets it again, later each time,
    until the queue's `deliveryLimit` moves it to the dead letters; `Reject` does so immediately. What comes twice is
    handled once, as far as `dedupe` knows.
    """

    def __init__(
        self,
        binding: Binding | None = None,
        *,
        binding_name: str | None = None,
        concurrency: int = 10,
        prefetch: int | None = None,
        dedupe: Dedupe | None = None,
        push_timeout: float = 10.0,
        grace: float = 25.0,
        ssl_context: ssl.SSLContext | None = None,
        http: httpx.AsyncClient | None = None,
    ) -> None:
        """`concurrency` handlers run at a time for each queue, `prefetch` messages are fetched (default: twice that).
        `grace` is what running handlers are given at the end, in seconds.
        """
        self._given = binding
        self._name = binding_name
        self._binding: Binding | None = binding
        self._concurrency = concurrency
        self._prefetch = prefetch or 2 * concurrency
        self._once = None if dedupe is None else Once(dedupe)
        self._push_timeout = push_timeout
        self._grace = grace
        self._http = http
        self._handlers: list[tuple[str, Handler, str | None]] = []
        self._broker = Broker(self._read, ssl_context)
        self._publisher = Publisher(self._broker)
        self._consumers: list[Consumer] = []
        self._tasks: list[asyncio.Task[None]] = []

    # ---- handlers and life ----

    def on(self, pattern: str, *, queue: str | None = None) -> Callable[[AnyHandler], AnyHandler]:
        """Registers a handler for message types: exact, or with `*` (one word) and `#` (any number of words).

        `queue` is the declared name of the queue that has these messages. Without it all queues of the binding are
        consumed: name it where another service has the others. A message without a handler moves to the dead letters.
        """

        def register(handler: AnyHandler) -> AnyHandler:
            if self._tasks:
                raise RuntimeError("register handlers before the start")
            self._handlers.append((pattern, handler, queue))
            return handler

        return register

    @property
    def binding(self) -> Binding:
        """The business; raises BindingError where there is none."""
        return self._binding or self._read()

    @property
    def healthy(self) -> bool:
        """Whether the broker is connected and every queue is consumed. For a readiness probe, not for a liveness one:
        a restart does not mend a broker.
        """
        return self._broker.connected and all(consumer.consuming for consumer in self._consumers)

    def _read(self) -> Binding:
        self._binding = self._given or Binding.read(self._name)
        return self._binding

    async def start(self) -> None:
        """Begins to connect and consume; raises BindingError. `async with` and `run` do it."""
        if self._tasks:
            raise RuntimeError("the service has been started already")
        binding = self._read()
        queues: dict[str, list[tuple[str, Handler]]] = {}
        for pattern, handler, queue in self._handlers:
            names = [binding.queue(queue)] if queue is not None else list(binding.queues.values())
            if not names:
                raise BindingError(f"{binding.business} has no queue for the handler of {pattern}: name it by `queue`")
            for name in names:
                queues.setdefault(name, []).append((pattern, handler))
        # A message for two queues has one id. Where both have the same handlers it is handled once, else in each.
        memories: dict[tuple[tuple[str, Handler], ...], Once] = {}
        for name, handlers in queues.items():
            once = self._once or memories.setdefault(tuple(handlers), Once(MemoryDedupe()))
            self._consumers.append(Consumer(self._broker, name, handlers, once, self._concurrency, self._prefetch))
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._broker.run(), name="wirepost broker")]
        self._tasks += [loop.create_task(consumer.run(), name="wirepost consumer") for consumer in self._consumers]
        for task in self._tasks:
            task.add_done_callback(_ended)

    async def stop(self) -> None:
        """In order: no new messages, running handlers end, what has not begun goes back to its queue."""
        for consumer in self._consumers:
            consumer.stop()
        # Their farewell on the wire: after it no message arrives. Then the handlers; the connection ends last.
        if len(self._tasks) > 1 and self._broker.connected:
            await asyncio.wait(self._tasks[1:], timeout=2)
        await asyncio.gather(*(consumer.drained(self._grace) for consumer in self._consumers))
        for task in reversed(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=5)
        self._tasks = []

    async def __aenter__(self) -> WirepostApp:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def run(self) -> None:
        """Serves until SIGTERM or SIGINT, and ends in order."""
        end = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            with contextlib.suppress(NotImplementedError):  # Windows
                loop.add_signal_handler(number, end.set)
        async with self:
            await end.wait()

    async def ready(self) -> None:
        """Waits until the broker is connected and every queue is consumed."""
        while not self.healthy:
            await asyncio.sleep(0.05)

    # ---- pushes ----

    async def push(
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
        timeout: float | None = None,
        businesses: Iterable[str] | None = None,
    ) -> str:
        """Pushes to one identity (`to`), to `tags`, or to `EVERYONE`; returns the id when the broker has confirmed.

        With `businesses` it is for the clients of exactly these, of those that accept it: what one does not take is
        reported by the event `rejected`.

        It repeats, with the same id, while the connection fails; clients drop the second copy. Raises a `PushFailed`.
        """
        push = Push(
            message_type,
            content,
            to,
            None if tags is None else tuple(tags),
            to_client_type,
            correlation_id,
            expires_at,
            message_id,
            None if businesses is None else tuple(businesses),
        )
        return await self._push(push, self._push_timeout if timeout is None else timeout)

    async def _push(self, push: Push, timeout: float) -> str:
        message_id, text = _write(push)
        exchange = self.binding.push_exchange
        headers: dict[str, str] = {}
        if any(business != self.binding.business for business in push.businesses or ()):
            # The broker copies it by these, and edges deliver by the envelope.
            exchange = self.binding.share_exchange
            headers = {f"to-business-{business}": "true" for business in push.businesses or ()}
        await self._publisher.publish(exchange, message_id, text, timeout, headers)
        return message_id

    async def push_all(self, pushes: Iterable[Push], *, timeout: float | None = None) -> list[str | PushFailed]:
        """Many pushes without waiting for each; what became of each, in order: its id, or why it failed."""

        async def one(push: Push) -> str | PushFailed:
            try:
                return await self._push(push, within)
            except PushFailed as error:
                return error

        within = self._push_timeout if timeout is None else timeout
        return list(await asyncio.gather(*(one(push) for push in pushes)))

    async def reply(self, message: Message, message_type: str, content: Any = None, **options: Any) -> str:
        """Pushes the answer to a message: to its sender, with its id as `correlationId`. Options as for `push`."""
        options.setdefault("to", message.from_unique_id)
        options.setdefault("correlation_id", message.id)
        return await self.push(message_type, content, **options)

    # ---- tokens ----

    async def token(self, *, unique_id: str, client_type: str, tags: Iterable[str] = ()) -> str:
        """A connection URL for a client of yours, by the edges' token call; raises TokenRefused.

        It is a secret, and can be used for 30 s. Call it for users that you have authenticated.
        """
        try:
            return await self._token(self.binding, unique_id, client_type, list(tags))
        except TokenRefused as error:
            if error.status != 401 or self._given is not None:
                raise
            # The key may have been rotated.
            return await self._token(self._read(), unique_id, client_type, list(tags))

    async def _token(self, binding: Binding, unique_id: str, client_type: str, tags: list[str]) -> str:
        if binding.endpoint is None or binding.api_key is None:
            raise BindingError(f"the binding of {binding.business} has no endpoint or no API key for the token call")
        url = f"{binding.endpoint.rstrip('/')}/token"
        params: list[tuple[str, str | int | float | bool | None]] = [
            ("uniqueId", unique_id),
            ("clientType", client_type),
            *(("tags", tag) for tag in tags),
        ]
        headers = {"X-Api-Key": binding.api_key}
        if self._http is not None:
            return read_token(await self._http.get(url, params=params, headers=headers, timeout=10))
        async with httpx.AsyncClient() as http:
            return read_token(await http.get(url, params=params, headers=headers, timeout=10))


def _write(push: Push) -> tuple[str, str]:
    """The id and the text of a push; raises PushInvalid."""
    tags = [tag for tag in push.tags or () if tag]
    if not push.to and not tags:
        raise PushInvalid(push.message_id or "", "`to` and `tags` are absent or empty: it would reach nobody")
    try:
        return write(
            push.message_type,
            push.content,
            message_id=push.message_id,
            to=push.to or None,
            tags=tags or None,
            to_client_type=push.to_client_type,
            correlation_id=push.correlation_id,
            expires_at=push.expires_at,
            businesses=push.businesses,
        )
    except (TypeError, ValueError) as error:
        raise PushInvalid(push.message_id or "", f"it can't be written as an envelope: {error}") from error


def _ended(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        log.error("wirepost: %s failed, please report it", task.get_name(), exc_info=task.exception())
