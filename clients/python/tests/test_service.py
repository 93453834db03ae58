"""The service side, against a real RabbitMQ and `wirepost dev`."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aio_pika
import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request

from conftest import HERE, Rabbit, cuttable
from fake_edge import until
from wirepost import (
    EVERYONE,
    Message,
    PushFailed,
    PushInvalid,
    PushRefused,
    PushUnavailable,
    PushUnroutable,
    TokenRefused,
    WirepostClient,
)
from wirepost.service import Binding, MemoryDedupe, Push, Reject, WirepostApp, trace
from wirepost.service.web import Identity, lifespan, token_route
from wirepost.testing import DevServer, dev_server

pytestmark = pytest.mark.broker

DEAD = "wirepost.shop.dead"


def service(dev: DevServer, **options: Any) -> WirepostApp:
    return WirepostApp(dev.binding("shop", ["qr-refresh", "orders"]), **options)


@asynccontextmanager
async def serving(app: WirepostApp) -> AsyncIterator[WirepostApp]:
    async with app:
        await asyncio.wait_for(app.ready(), 30)
        yield app


@asynccontextmanager
async def connected(dev: DevServer, unique_id: str) -> AsyncIterator[WirepostClient]:
    async with WirepostClient(dev.token("shop", unique_id, "app")) as client:
        await asyncio.wait_for(client.opened(), 30)
        yield client


def dead(rabbit: Rabbit, message_id: str) -> bool:
    return any(message["properties"].get("message_id") == message_id for message in rabbit.messages(DEAD))


async def test_a_request_is_handled_and_answered(dev: DevServer) -> None:
    app = service(dev)

    @app.on("qr.refresh", queue="qr-refresh")
    async def refresh(message: Message) -> None:
        assert message.from_client_type == "app"
        await app.reply(message, "qr.refreshed", {"for": message.content["qrId"], "by": message.from_unique_id})

    async with serving(app), connected(dev, "alice") as client:
        answer = await client.request("qr.refresh", {"qrId": "q-1"}, timeout=30)
        assert answer.content == {"for": "q-1", "by": "alice"}


async def test_a_failed_message_comes_again_and_then_moves_to_the_dead_letters(dev: DevServer, rabbit: Rabbit) -> None:
    app = service(dev)
    tries: list[str] = []

    @app.on("qr.refresh", queue="qr-refresh")
    async def refresh(message: Message) -> None:
        tries.append(message.content["qrId"])
        if message.content["qrId"] == "poison" or tries.count("flaky") == 1:
            raise RuntimeError("not today")

    async with serving(app), connected(dev, "bob") as client:
        await client.send("qr.refresh", {"qrId": "flaky"}, message_id="flaky-1")
        await until("the second attempt", lambda: tries.count("flaky") == 2)
        await client.send("qr.refresh", {"qrId": "poison"}, message_id="poison-1")
        await until("the dead letter", lambda: dead(rabbit, "poison-1"))
        assert tries.count("poison") == 3, "deliveryLimit 2: the first attempt and two more"
        assert not dead(rabbit, "flaky-1")


async def test_what_can_never_work_moves_to_the_dead_letters_immediately(dev: DevServer, rabbit: Rabbit) -> None:
    app = service(dev)
    tries: list[str] = []

    @app.on("order.placed", queue="orders")
    async def placed(message: Message) -> None:
        tries.append(message.id)
        raise Reject("no such article")

    async with serving(app), connected(dev, "carol") as client:
        await client.send("order.placed", {}, message_id="reject-1")
        await client.send("order.unknown", {}, message_id="no-handler-1")
        await until("a rejected one", lambda: dead(rabbit, "reject-1"))
        await until("one without a handler", lambda: dead(rabbit, "no-handler-1"))
        assert tries == ["reject-1"]


async def test_what_comes_twice_is_handled_once(dev: DevServer) -> None:
    app = service(dev)
    handled: list[tuple[str | None, str]] = []

    @app.on("order.#", queue="orders")
    async def placed(message: Message) -> None:
        await asyncio.sleep(0.05)  # both copies are here at the same time
        handled.append((message.from_unique_id, message.id))

    async with serving(app), connected(dev, "dave") as dave, connected(dev, "erin") as erin:
        for _ in range(2):
            await dave.send("order.placed", {}, message_id="same")
        await erin.send("order.placed", {}, message_id="same")
        await dave.send("order.placed", {}, message_id="end")
        await until("the last one", lambda: ("dave", "end") in handled)
        assert sorted(handled) == [("dave", "end"), ("dave", "same"), ("erin", "same")]


async def test_a_message_for_two_queues_is_handled_in_each_of_them(dev: DevServer) -> None:
    app = WirepostApp(dev.binding("shop", ["stock", "mirror"]))
    handled: list[str] = []
    app.on("stock.#", queue="stock")(lambda message: handled.append(f"stock {message.id}"))
    app.on("stock.#", queue="mirror")(lambda message: handled.append(f"mirror {message.id}"))
    async with serving(app), connected(dev, "leo") as client:
        await client.send("stock.moved", {}, message_id="both")
        await until("each handler", lambda: sorted(handled) == ["mirror both", "stock both"])


async def test_a_message_for_two_queues_with_one_memory_is_handled_once(dev: DevServer) -> None:
    class Memory(MemoryDedupe):
        async def seen(self, sender: str, message_id: str) -> bool:
            asked.append(message_id)
            return await super().seen(sender, message_id)

    asked: list[str] = []
    handled: list[str] = []
    app = WirepostApp(dev.binding("shop", ["stock", "mirror"]), dedupe=Memory())

    @app.on("stock.#")
    async def moved(message: Message) -> None:
        await asyncio.sleep(0.2)  # both copies are here at the same time
        handled.append(message.id)

    async with serving(app), connected(dev, "mia") as client:
        await client.send("stock.moved", {}, message_id="once")
        await until("both copies", lambda: asked == ["once", "once"])
        await until("the handler", lambda: handled)
        await until("both are acknowledged", lambda: not any(consumer._running for consumer in app._consumers))
        assert handled == ["once"]


async def test_a_handler_whose_work_was_cancelled_gets_the_message_again(dev: DevServer) -> None:
    app = service(dev)
    tries: list[str] = []

    @app.on("order.#", queue="orders")
    async def placed(message: Message) -> None:
        tries.append(message.id)
        if len(tries) == 1:
            work = asyncio.ensure_future(asyncio.sleep(60))
            work.cancel()
            await work

    async with serving(app), connected(dev, "nina") as client:
        await client.send("order.placed", {}, message_id="cancelled-1")
        await until("the second attempt", lambda: tries == ["cancelled-1"] * 2)


async def test_a_stop_finishes_what_runs_and_gives_back_the_rest(dev: DevServer, rabbit: Rabbit) -> None:
    first, gate = service(dev, concurrency=1, prefetch=10), asyncio.Event()
    done: list[str] = []

    @first.on("order.#", queue="orders")
    async def slow(message: Message) -> None:
        await gate.wait()
        done.append(message.id)

    await first.start()
    await asyncio.wait_for(first.ready(), 30)
    async with connected(dev, "frank") as client:
        for n in range(5):
            await client.send("order.placed", {"n": n}, message_id=f"stop-{n}")
    consumer = first._consumers[0]
    await until("all are fetched", lambda: len(consumer._running) == 5)
    stopping = asyncio.ensure_future(first.stop())
    await asyncio.sleep(0.2)
    gate.set()
    await stopping
    assert done == ["stop-0"]
    rest = rabbit.messages("wirepost.shop.q.orders")
    assert [message["properties"]["message_id"] for message in rest] == [f"stop-{n}" for n in range(1, 5)]
    counts = [message["properties"].get("headers", {}).get("x-delivery-count", 0) for message in rest]
    assert counts == [0, 0, 0, 0], "what was given back counts as failed"
    second = service(dev)
    second.on("order.#", queue="orders")(lambda message: done.append(message.id))
    async with serving(second):
        await until("the rest", lambda: len(done) == 5)


async def test_a_lost_connection_costs_neither_messages_nor_pushes(dev: DevServer) -> None:
    handled: list[int] = []
    got: list[int] = []
    direct = dev.binding("shop", ["orders"])
    async with cuttable(direct.amqp) as (amqp, cut):
        app = WirepostApp(dataclasses.replace(direct, amqp=amqp))

        @app.on("order.#", queue="orders")
        async def placed(message: Message) -> None:
            handled.append(message.content["n"])
            await app.push("payment.completed", {"n": message.content["n"]}, to=message.from_unique_id, timeout=30)

        async with serving(app), connected(dev, "grace") as client:
            client.on("payment.completed")(lambda message: got.append(message.content["n"]))
            sends = [client.submit("order.placed", {"n": n}) for n in range(400)]

            def reached(count: int) -> bool:
                return len(handled) >= count

            for count in (40, 200):
                await until("messages", functools.partial(reached, count))
                assert cut() > 0
            await asyncio.gather(*sends)
            await until("all answers", lambda: set(got) == set(range(400)), 60)
            assert sorted(handled) == list(range(400)), "a handler that had succeeded was called again"
            assert sorted(got) == list(range(400)), "a push was repeated with another id"


async def test_credentials_are_read_again(dev: DevServer, rabbit: Rabbit, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a rotation the Secret has another user, and the old one's connections are closed."""
    valid = dev.binding("shop", ["orders"])
    wrong = Binding.of("shop", amqp=valid.amqp.replace("guest:guest", "guest:old"), queues=["orders"])
    assert wrong.amqp != valid.amqp
    bindings = [wrong, wrong]
    monkeypatch.setattr(Binding, "read", lambda name=None, root=None: bindings.pop() if bindings else valid)
    app = WirepostApp()
    async with app:
        assert await app.push("payment.completed", {}, to="nobody", timeout=30)


async def test_pushes_fail_with_a_type(dev: DevServer, rabbit: Rabbit) -> None:
    async with service(dev) as app:
        with pytest.raises(PushInvalid, match="nobody"):
            await app.push("payment.completed", {}, tags=[])
        with pytest.raises(PushInvalid, match="JSON"):
            await app.push("payment.completed", object(), to="alice")
        with pytest.raises(PushInvalid, match="64 bytes"):
            await app.push("payment.completed", {}, to="alice", message_id="x" * 65)
    other = WirepostApp(Binding.of("no-such-business", amqp=dev.binding("shop").amqp))
    async with other:
        with pytest.raises(PushRefused) as refused:
            await other.push("payment.completed", {}, to="alice", timeout=30)
        assert refused.value.retryable
        assert not refused.value.may_have_arrived
    away = WirepostApp(Binding.of("shop", amqp="amqp://guest:guest@127.0.0.1:1/x"))
    async with away:
        with pytest.raises(PushUnavailable):
            await away.push("payment.completed", {}, to="alice", timeout=0.5)


async def test_a_transient_push_that_no_edge_reads_is_returned() -> None:
    rabbit = Rabbit()
    try:
        with dev_server(HERE / "shop.yaml", environment=rabbit.environment) as server:
            async with WirepostApp(server.binding("board")) as app:
                # An edge reads the pushes of a business that has clients there.
                await taken(app, False)
                # The library below tells returned messages apart by their ids only.
                same = [Push("price", n, to=EVERYONE, message_id="same") for n in range(5)]
                assert [type(result) for result in await app.push_all(same)] == [PushUnroutable] * 5
                got: list[Any] = []
                async with WirepostClient(server.token("board", "tess", "app")) as client:
                    client.on("#")(lambda message: got.append(message.content))
                    await asyncio.wait_for(client.opened(), 30)
                    await taken(app, True)
                    assert await app.push_all(same) == ["same"] * 5
                    await app.push("price", "end", to=EVERYONE)
                    await until("the last one", lambda: "end" in got)
                    assert [content for content in got if isinstance(content, int)] == [0]
    finally:
        rabbit.end()


async def taken(app: WirepostApp, expected: bool) -> None:
    """Waits until a push is taken, or returned."""
    for _ in range(100):
        try:
            await app.push("price", {}, to=EVERYONE, timeout=30)
            found = True
        except PushUnroutable:
            found = False
        if found is expected:
            return
        await asyncio.sleep(0.1)
    pytest.fail(f"the broker {'returned' if expected else 'took'} the push")


async def test_many_pushes_arrive_in_order_and_each_failure_is_told(dev: DevServer) -> None:
    got: list[Any] = []
    async with service(dev) as app, connected(dev, "heidi") as client:
        client.on("payment.completed")(lambda message: got.append(message.content))
        pushes = [Push("payment.completed", n, to="heidi", message_id=f"heidi-{n}") for n in range(300)]
        pushes[150] = Push("payment.completed", 150, to="")
        results = await app.push_all(pushes)
        assert isinstance(results[150], PushFailed)
        assert results[151] == "heidi-151"
        await until("the last one", lambda: 299 in got)
        assert got == [n for n in range(300) if n != 150]


async def test_the_trace_of_a_message_is_carried_into_its_pushes(dev: DevServer, rabbit: Rabbit) -> None:
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    app = service(dev)
    seen: list[Any] = []

    @app.on("order.#", queue="orders")
    async def placed(message: Message) -> None:
        seen.append(dict(trace.current()))
        await app.push("payment.completed", {}, to="ivan", message_id="traced")

    connection = await aio_pika.connect(dev.amqp)
    async with connection, serving(app):
        channel = await connection.channel()
        spy = await channel.declare_queue("wirepost.shop.events.spy", exclusive=True)
        await spy.bind("wirepost.shop.push")
        body = b'{"id":"t-1","messageType":"order.placed","fromUniqueId":"ivan"}'
        message = aio_pika.Message(body, headers={"traceparent": parent, "other": "x"})
        await channel.default_exchange.publish(message, "wirepost.shop.q.orders")
        async with spy.iterator(timeout=20) as pushes:
            async for push in pushes:
                if push.message_id == "traced":
                    assert push.headers.get("traceparent") == parent
                    assert "other" not in push.headers
                    assert push.delivery_mode == aio_pika.DeliveryMode.PERSISTENT
                    break
    assert seen == [{"traceparent": parent}]
    assert trace.current() == {}


async def test_what_is_no_envelope_moves_to_the_dead_letters(
    dev: DevServer, rabbit: Rabbit, caplog: pytest.LogCaptureFixture
) -> None:
    app = service(dev)
    app.on("order.#", queue="orders")(lambda message: None)
    connection = await aio_pika.connect(dev.amqp)
    async with connection, serving(app):
        channel = await connection.channel()
        ids = (b'{"messageType":"order.placed"%s}' % field for field in (b"", b',"id":""', b',"id":7', b',"id":null'))
        for n, body in enumerate((b"\xff", b"[]", b"{}", b"[" * 100_000, *ids)):
            message = aio_pika.Message(body, message_id=f"strange-{n}")
            await channel.default_exchange.publish(message, "wirepost.shop.q.orders")
            await until("a dead letter", functools.partial(dead, rabbit, f"strange-{n}"))


async def test_tokens_come_from_the_edge_and_refusals_are_typed(dev: DevServer) -> None:
    app = service(dev)
    url = await app.token(unique_id="judy", client_type="app", tags=["vip", "a,b"])
    assert url.startswith(dev.url.replace("http", "ws") + "/socket/")
    with pytest.raises(TokenRefused) as refused:
        await app.token(unique_id="judy", client_type="fridge")
    assert (refused.value.status, refused.value.result) == (400, 40008)


async def test_a_web_application_gives_tokens_to_its_users(dev: DevServer) -> None:
    app = service(dev)

    async def who(request: Request) -> Identity | None:
        name = request.headers.get("x-user")
        return Identity(name, "fridge" if name == "fridge" else "app") if name else None

    web = Starlette(routes=[token_route(app, who)], lifespan=lifespan(app))
    transport = httpx.ASGITransport(web)
    async with httpx.AsyncClient(transport=transport, base_url="http://web") as http:
        refused = await http.get("/wirepost-token")
        assert (refused.status_code, refused.json()["result"]) == (401, 40101)
        broken = await http.get("/wirepost-token", headers={"x-user": "fridge"})
        assert broken.status_code == 502, "a mistake of the service is none of the user's"
        answer = await http.get("/wirepost-token", headers={"x-user": "kim"})
        assert answer.headers["cache-control"] == "no-store"
        url = answer.json()["data"]

    async def token() -> str:
        return str(url)

    async with lifespan(app)(web), WirepostClient(token) as client:
        await asyncio.wait_for(client.opened(), 30)
        got: list[Any] = []
        client.on("#")(lambda message: got.append(message.content))
        await app.push("payment.completed", {"n": 1}, to="kim")
        await until("the push", lambda: got == [{"n": 1}])


async def test_a_queue_that_comes_later_is_consumed_then(
    dev: DevServer, rabbit: Rabbit, caplog: pytest.LogCaptureFixture
) -> None:
    name = "wirepost.shop.events.later"
    app = service(dev)
    got: list[str] = []
    app.on("#", queue=name)(lambda message: got.append(message.id))
    async with app:
        with caplog.at_level(logging.WARNING, "wirepost"):
            await until("a complaint", lambda: [r for r in caplog.records if name in r.getMessage()])
        assert not app.healthy
        path = f"/queues/{rabbit.vhost}/{name}"
        arguments = {"durable": True, "arguments": {"x-queue-type": "quorum"}}
        for n in range(2):  # the second time after the broker has ended the subscription
            rabbit.call("PUT", path, arguments)
            await asyncio.wait_for(app.ready(), 30)
            connection = await aio_pika.connect(dev.amqp)
            async with connection:
                channel = await connection.channel()
                body = b'{"id":"later-%d","messageType":"a"}' % n
                await channel.default_exchange.publish(aio_pika.Message(body), name)
            await until("the message", functools.partial(got.__contains__, f"later-{n}"))
            rabbit.call("DELETE", path)
            await until("it notices", lambda: not app.healthy)
