"""The driver by which clients/suite judges this library. Commands come from stdin, events go to stdout."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import sys
import time
from typing import Any

import httpx

from wirepost import Gap, HttpToken, MemoryCursorStore, Message, Pending, Rejected, State, Timing, WirepostClient

SUPPORTS = ["timing", "request", "abort", "hints", "clock", "stats", "queue", "receipts"]
TIMING = {
    "pingAfter": "ping_after",
    "pongWithin": "pong_within",
    "hintPongWithin": "hint_pong_within",
    "connectWithin": "connect_within",
    "stableAfter": "stable_after",
    "fastFirst": "fast_first",
    "fastMax": "fast_max",
    "slowFirst": "slow_first",
    "slowMax": "slow_max",
    "nackFirst": "nack_first",
    "nackMax": "nack_max",
}

true_time = time.time


def say(event: str, **fields: Any) -> None:
    sys.stdout.write(json.dumps({"event": event, **fields}) + "\n")
    sys.stdout.flush()


class Driven:
    """One client, and how its handler behaves."""

    def __init__(self, command: dict[str, Any], http: httpx.AsyncClient) -> None:
        self.name: str = command["client"]
        self.mode, self.seconds, self.times = "ok", 0.0, 0
        self.running: dict[str, tuple[asyncio.Task[None], Pending | None]] = {}
        self.store = MemoryCursorStore(command.get("cursor"))
        waits = command.get("timing") or {}
        timing = Timing(**{name: waits[key] / 1000 for key, name in TIMING.items() if key in waits})
        options = {"queue_limit": command["queueLimit"]} if "queueLimit" in command else {}
        token = HttpToken(command["tokenUrl"], http=http)
        self.client = WirepostClient(token, cursor_store=self.store, timing=timing, on_state=self.state, **options)
        self.client.on("#")(self.handle)
        self.client.on_gap(self.gap)
        self.client.start()

    def state(self, state: State) -> None:
        say("state", client=self.name, state=state.value)

    def gap(self, _: Gap) -> None:
        say("gap", client=self.name)

    async def handle(self, message: Message) -> None:
        say("message", client=self.name, message=message.raw)
        if self.mode == "delay":
            await asyncio.sleep(self.seconds)
        elif self.mode == "hang":
            await asyncio.Event().wait()
        elif self.mode == "fail" and self.times > 0:
            self.times -= 1
            raise RuntimeError("as told by the suite")

    def handler(self, command: dict[str, Any]) -> None:
        self.mode = command["mode"]
        self.seconds = command.get("ms", 0) / 1000
        self.times = command.get("times", 1)

    def send(self, command: dict[str, Any]) -> None:
        pending = self.client.submit(**arguments(command["message"]))
        self.keep(command["as"], self.sent(command["as"], pending), pending)

    def request(self, command: dict[str, Any]) -> None:
        answer = self.client.request(**arguments(command["message"]), timeout=command["timeoutMs"] / 1000)
        self.keep(command["as"], self.answered(command["as"], answer), None)

    def keep(self, name: str, work: Any, pending: Pending | None) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self.running[name] = (task, pending)
        task.add_done_callback(lambda _: self.running.pop(name, None))

    async def sent(self, name: str, pending: Pending) -> None:
        try:
            await pending
            say("sent", client=self.name, **{"as": name}, result="ack")
        except Rejected as error:
            say("sent", client=self.name, **{"as": name}, **rejection(error))

    async def answered(self, name: str, answer: Any) -> None:
        try:
            message = await answer
            say("answered", client=self.name, **{"as": name}, result="answer", message=message.raw)
        except Rejected as error:
            say("answered", client=self.name, **{"as": name}, **rejection(error))
        except asyncio.CancelledError:
            aborted = Rejected("aborted", "cancelled", may_have_arrived=True)
            say("answered", client=self.name, **{"as": name}, **rejection(aborted))

    def abort(self, name: str) -> None:
        task, pending = self.running.get(name, (None, None))
        if pending is not None:
            pending.cancel()
        elif task is not None:
            task.cancel()

    def hint(self, hint: str) -> None:
        if hint == "online":
            self.client.check()
        elif hint in ("visible", "resume"):
            self.client.reconnect()


def arguments(message: dict[str, Any]) -> dict[str, Any]:
    return {
        "message_type": message["messageType"],
        "content": message.get("content"),
        "to": message.get("toUniqueId"),
        "tags": message.get("tags"),
    }


def rejection(error: Rejected) -> dict[str, Any]:
    return {
        "result": "rejected",
        "code": error.code,
        "retryable": error.retryable,
        "mayHaveArrived": error.may_have_arrived,
    }


def set_clock(ahead: float) -> None:
    time.time = lambda: true_time() + ahead


def live_bytes() -> int:
    """Of all objects that the collector knows, and of what they refer to (strings, bytes)."""
    gc.collect()
    found = {id(thing): thing for thing in gc.get_objects()}
    for thing in list(found.values()):
        found.update((id(other), other) for other in gc.get_referents(thing))
    return sum(sys.getsizeof(thing, 0) for thing in found.values())


async def main() -> None:
    clients: dict[str, Driven] = {}
    closing: set[asyncio.Task[None]] = set()
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=8 * 1024 * 1024)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    async with httpx.AsyncClient() as http:
        say("ready", protocol=1, name="python", supports=SUPPORTS)
        while line := await reader.readline():
            command = json.loads(line)
            action, name = command.pop("do"), command.get("client", "")
            if action == "connect":
                clients[name] = Driven(command, http)
            elif action == "clock":
                set_clock(command["aheadMs"] / 1000)
            elif action == "stats":
                say("stats", heapBytes=live_bytes())
            elif action == "close":
                task = loop.create_task(clients[name].client.close())
                closing.add(task)
                task.add_done_callback(closing.discard)
            elif action == "send":
                clients[name].send(command)
            elif action == "request":
                clients[name].request(command)
            elif action == "abort":
                clients[name].abort(command["as"])
            elif action == "handler":
                clients[name].handler(command)
            elif action == "received":
                task = loop.create_task(clients[name].client.received(*command["ids"]))
                closing.add(task)
                task.add_done_callback(closing.discard)
            elif action == "hint":
                clients[name].hint(command["hint"])
            elif action == "cursor":
                say("cursor", client=name, cursor=clients[name].store.cursor)
            elif action == "reconnect":
                clients[name].client.reconnect()
            else:
                say("unsupported", client=name, do=action)
        await asyncio.gather(*(driven.client.close() for driven in clients.values()), return_exceptions=True)


if __name__ == "__main__":
    logging.basicConfig(level=os.environ.get("LOG", "INFO"), stream=sys.stderr, format="%(asctime)s %(message)s")
    logging.getLogger("httpx").setLevel("WARNING")
    asyncio.run(main())
