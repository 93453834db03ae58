"""A vhost of its own on the shared broker, and `wirepost dev` on it."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import pytest

from wirepost.testing import DevServer, dev_server

pytest_plugins = ["pytester"]

HERE = Path(__file__).parent
COUNTER = itertools.count()


class Rabbit:
    """The management API of a vhost that is gone after the tests."""

    def __init__(self) -> None:
        missing = [name for name in ("AMQP", "STREAM", "MANAGEMENT") if f"WIREPOST_TEST_{name}" not in os.environ]
        if missing:
            pytest.fail(
                "run them as `make clients-python` does: scripts/with-broker sets WIREPOST_TEST_AMQP and others"
            )
        self.vhost = f"python-{os.getpid()}-{next(COUNTER)}"
        self.amqp = f"{os.environ['WIREPOST_TEST_AMQP'].rstrip('/')}/{self.vhost}"
        management = urlsplit(os.environ["WIREPOST_TEST_MANAGEMENT"])
        self.environment = {
            "WIREPOST_AMQP": self.amqp,
            "WIREPOST_STREAM": urlsplit(os.environ["WIREPOST_TEST_STREAM"]).netloc.rpartition("@")[2],
            "WIREPOST_MANAGEMENT": management.geturl(),
        }
        base = f"{management.scheme}://{management.netloc.rpartition('@')[2]}/api"
        user = (management.username or "guest", management.password or "guest")
        self.http = httpx.Client(base_url=base, auth=user, timeout=30)
        self.call("PUT", f"/vhosts/{self.vhost}")

    def call(self, method: str, path: str, body: Any = None) -> Any:
        answer = self.http.request(method, path, json=body)
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def messages(self, queue: str) -> list[dict[str, Any]]:
        """What a queue contains, without taking it."""
        body = {"count": 100, "ackmode": "ack_requeue_true", "encoding": "auto"}
        got = self.call("POST", f"/queues/{self.vhost}/{quote(queue, safe='')}/get", body)
        return [dict(message) for message in got]

    def end(self) -> None:
        self.call("DELETE", f"/vhosts/{self.vhost}")
        self.http.close()


@asynccontextmanager
async def cuttable(amqp: str) -> AsyncIterator[tuple[str, Callable[[], int]]]:
    """The same broker at another address, and what cuts all connections that go through it."""
    broker = urlsplit(amqp)
    open_ones: set[asyncio.StreamWriter] = set()

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(broker.hostname, broker.port)
        open_ones.update((writer, back))
        await asyncio.gather(copy(reader, back), copy(there, writer))
        open_ones.difference_update((writer, back))

    def cut() -> int:
        for writer in open_ones:
            writer.transport.abort()
        return len(open_ones)

    async with await asyncio.start_server(carry, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        yield broker._replace(netloc=f"{broker.username}:{broker.password}@127.0.0.1:{port}").geturl(), cut
        cut()


@pytest.fixture(scope="session")
def rabbit() -> Iterator[Rabbit]:
    found = Rabbit()
    yield found
    found.end()


@pytest.fixture(scope="session")
def dev(rabbit: Rabbit) -> Iterator[DevServer]:
    with dev_server(HERE / "shop.yaml", environment=rabbit.environment) as server:
        yield server
