"""For tests of your client or service: `wirepost dev` on free ports, started once for all tests.

In your conftest.py:

    pytest_plugins = ["wirepost.testing"]

    @pytest.fixture(scope="session")
    def wirepost_declarations() -> list[str]:
        return ["deploy/payments.yaml"]

and in a test:

    async def test_payment(wirepost_dev: DevServer) -> None:
        async with WirepostClient(wirepost_dev.token("payments", "alice", "app")) as client:
            ...

The program is `wirepost` in the PATH, or what the environment variable `WIREPOST` names. Its broker is inside the
process and has no AMQP, which is enough for clients. To test a service, give it a RabbitMQ 4: set `WIREPOST_AMQP`
(and, where they differ from the defaults, `WIREPOST_STREAM` and `WIREPOST_MANAGEMENT`), see `wirepost dev --help`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from .tokens import HttpToken

if TYPE_CHECKING:
    from .service import Binding

START_SECONDS = 60.0
_GREETING = re.compile(r"listens on (?P<url>\S+) \(admin: (?P<admin>[^)\s]+)\)")


@dataclass(frozen=True)
class DevServer:
    """A running `wirepost dev`."""

    url: str
    """Public address: `http://127.0.0.1:PORT`."""
    admin: str
    amqp: str | None = None
    """The broker, where it is not inside the process."""
    _log: deque[str] = field(default_factory=deque, repr=False)

    @staticmethod
    def api_key(business: str) -> str:
        return f"dev-{business}"

    @property
    def log(self) -> str:
        """The end of what it printed: among others the messages that arrived on queues."""
        return "".join(self._log)

    def token(self, business: str, unique_id: str, client_type: str, tags: Sequence[str] = ()) -> HttpToken:
        """Lets a client of this identity in."""
        params: dict[str, Any] = {"uniqueId": unique_id, "clientType": client_type}
        if tags:
            params["tags"] = list(tags)
        headers = {"X-Api-Key": self.api_key(business)}
        return HttpToken(f"{self.url}/{business}/websocket/token", params=params, headers=headers)

    async def push(self, business: str, message: Mapping[str, Any]) -> None:
        """Pushes an envelope by the HTTP call, as a service would; raises httpx.HTTPStatusError with the answer."""
        async with httpx.AsyncClient() as http:
            answer = await http.post(
                f"{self.url}/{business}/websocket/messages",
                json=dict(message),
                headers={"X-Api-Key": self.api_key(business)},
            )
        if not answer.is_success:
            raise httpx.HTTPStatusError(answer.text, request=answer.request, response=answer)

    def binding(self, business: str, queues: Sequence[str] = ()) -> Binding:
        """For a `WirepostApp`, with a broker that is not inside the process."""
        from .service import Binding  # it needs aio-pika, which tests of clients do without

        if self.amqp is None:
            raise RuntimeError("the broker inside `wirepost dev` has no AMQP: set WIREPOST_AMQP to a RabbitMQ 4")
        return Binding.of(business, amqp=self.amqp, queues=tuple(queues), edge=self.url, api_key=self.api_key(business))


@contextmanager
def dev_server(
    *declarations: str | os.PathLike[str],
    program: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[DevServer]:
    """Starts `wirepost dev` with these files and folders, and ends it. `environment` is added to this process's."""
    found = program or os.environ.get("WIREPOST") or shutil.which("wirepost")
    if found is None:
        raise RuntimeError("the program `wirepost` is not in the PATH: install it, or name it by WIREPOST")
    variables = {**os.environ, **(environment or {})}
    command = [
        found,
        "dev",
        "--listen",
        "127.0.0.1:0",
        "--admin",
        "127.0.0.1:0",
        *(os.fspath(path) for path in declarations),
    ]
    log: deque[str] = deque(maxlen=1000)
    greeting: list[re.Match[str]] = []
    begun = threading.Event()
    process = subprocess.Popen(
        command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8"
    )

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            log.append(line)
            match = None if greeting else _GREETING.search(line)
            if match is not None:
                greeting.append(match)
                begun.set()
        begun.set()

    reader = threading.Thread(target=read, name="wirepost dev", daemon=True)
    reader.start()
    try:
        begun.wait(START_SECONDS)
        if not greeting:
            raise RuntimeError(f"`wirepost dev` did not start within {START_SECONDS:.0f} s:\n{''.join(log)}")
        _wait_until_ready(greeting[0]["admin"], process, log)
        amqp = variables.get("WIREPOST_AMQP")
        yield DevServer(greeting[0]["url"], greeting[0]["admin"], amqp, log)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        reader.join(5)


def _wait_until_ready(admin: str, process: subprocess.Popen[str], log: deque[str]) -> None:
    """The businesses are loaded, and the broker has their queues."""
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            if httpx.get(f"{admin}/readyz", timeout=5, trust_env=False).is_success:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.05)
    raise RuntimeError(f"`wirepost dev` is not ready:\n{''.join(log)}")


@pytest.fixture(scope="session")
def wirepost_declarations() -> list[str]:
    """Override it: the files and folders with your declarations."""
    raise RuntimeError("define a session fixture `wirepost_declarations` that returns your declarations' paths")


@pytest.fixture(scope="session")
def wirepost_dev(wirepost_declarations: list[str]) -> Iterator[DevServer]:
    """A running `wirepost dev` with your declarations."""
    with dev_server(*wirepost_declarations) as server:
        yield server
