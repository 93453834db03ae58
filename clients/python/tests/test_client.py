"""What the suite does not judge, since it is this library's own: its calls, its handlers, its ends."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
from typing import Any

import pytest

from fake_edge import FakeEdge, fake_edge, until
from wirepost import MemoryCursorStore, Message, Rejected, State, Timing, WirepostClient

FAST = Timing(fast_first=0.02, fast_max=0.1, nack_first=0.02, nack_max=0.1, slow_first=5, slow_max=5)


def client(edge: FakeEdge, **options: Any) -> WirepostClient:
    return WirepostClient(edge.token, **{"timing": FAST, **options})


async def test_handlers_get_what_their_patterns_accept() -> None:
    got: list[str] = []
    async with fake_edge() as edge, client(edge) as wire:
        wire.on("payment.*")(lambda message: got.append(f"one {message.id}"))

        @wire.on("#")
        async def everything(message: Message) -> None:
            got.append(f"all {message.id}")

        await wire.opened()
        await edge.push(1)
        await edge.push(2, messageType="qr.refreshed")
        await until("two messages", lambda: "all p2" in got)
        assert got == ["one p1", "all p1", "all p2"]


async def test_a_handler_that_always_fails_is_given_up_and_reported() -> None:
    failed: list[tuple[str, str | None]] = []
    got: list[str] = []
    store = MemoryCursorStore()

    def handle(message: Message) -> None:
        got.append(message.id)
        if message.id == "p1":
            raise RuntimeError("poison")

    def report(error: BaseException, message: Message | None) -> None:
        failed.append((str(error), message.id if message else None))

    async with fake_edge() as edge, client(edge, handler_attempts=3, on_error=report, cursor_store=store) as wire:
        wire.on("#")(handle)
        await wire.opened()
        await edge.push(1)
        await edge.push(2)
        await until("the next message", lambda: "p2" in got)
        assert got == ["p1", "p1", "p1", "p2"]
        assert failed == [("poison", "p1")] * 3
        await until("the cursor", lambda: store.cursor == "c2")


async def test_a_handler_whose_work_was_cancelled_is_called_again() -> None:
    failed: list[BaseException] = []
    got: list[str] = []

    async def handle(message: Message) -> None:
        got.append(message.id)
        if len(got) == 1:
            work = asyncio.ensure_future(asyncio.sleep(60))
            work.cancel()
            await work

    async with fake_edge() as edge, client(edge, on_error=lambda error, _: failed.append(error)) as wire:
        wire.on("#")(handle)
        await wire.opened()
        await edge.push(1)
        await edge.push(2)
        await until("both", lambda: got == ["p1", "p1", "p2"])
        assert [type(error) for error in failed] == [asyncio.CancelledError]


def test_a_program_may_end_without_closing_its_client() -> None:
    """`asyncio.run` cancels what is left, also a handler: that is no failure after which it is called again."""

    async def main() -> None:
        async with fake_edge() as edge:
            wire = client(edge)
            busy = asyncio.Event()

            @wire.on("#")
            async def handle(message: Message) -> None:
                busy.set()
                await asyncio.Event().wait()

            wire.start()
            await wire.opened()
            await edge.push(1)
            await asyncio.wait_for(busy.wait(), 20)

    program = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)
    program.start()
    program.join(30)
    assert not program.is_alive()


async def test_callbacks_that_fail_end_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("mine")

    got: list[str] = []
    async with fake_edge() as edge, client(edge, on_state=fail, on_error=fail, handler_attempts=1) as wire:
        wire.on_gap(fail)
        wire.on("#")(fail)
        wire.on("#")(lambda message: got.append(message.id))
        await wire.opened()
        await edge.say({"op": "gap", "reason": "retention"})
        await edge.push(1)
        await until("the message", lambda: got == ["p1"])
        await wire.send("order.placed", {})
    assert not [record for record in caplog.records if "please report" in record.getMessage()]


@pytest.mark.parametrize("message_id", ["", "x" * 65, "ä" * 33, "\ud800", 7])
async def test_an_id_that_no_edge_returns_is_refused(message_id: Any) -> None:
    async with fake_edge() as edge, client(edge) as wire:
        with pytest.raises(ValueError, match=r"message_id|surrogates"):
            wire.submit("order.placed", {}, message_id=message_id)
        assert await wire.send("order.placed", {}, message_id="ä" * 32) == "ä" * 32
        assert len(edge.messages()) == 1


async def test_a_cancelled_send_is_taken_back() -> None:
    async with fake_edge() as edge:
        edge.answer = lambda frame: None
        async with client(edge) as wire:
            await wire.opened()
            task = asyncio.ensure_future(wire.send("order.placed", {"n": 1}))
            await until("the message on the wire", edge.messages)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await edge.connections[0].close(1011)
            await until("its return", lambda: len(edge.connections) == 2)
            edge.answer = lambda frame: {"op": "ack", "id": frame["id"]}
            await wire.send("order.placed", {"n": 2})
            assert [frame["content"]["n"] for frame in edge.messages()] == [1, 2], "a cancelled message was repeated"


async def test_wait_for_around_a_send_ends_it() -> None:
    async with fake_edge() as edge:
        edge.answer = lambda frame: None
        async with client(edge) as wire:
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(wire.send("order.placed", {}), 0.2)


async def test_two_messages_with_one_id_at_the_same_time_are_a_mistake() -> None:
    async with fake_edge() as edge:
        edge.answer = lambda frame: None
        async with client(edge) as wire:
            first = wire.submit("order.placed", {}, message_id="m")
            with pytest.raises(ValueError, match="on its way"):
                wire.submit("order.placed", {}, message_id="m")
            first.cancel()
            with pytest.raises(Rejected) as rejected:
                await first
            assert rejected.value.code == "aborted"


async def test_rate_limited_messages_keep_their_order() -> None:
    async with fake_edge() as edge:
        refused: set[str] = set()

        def answer(frame: dict[str, Any]) -> dict[str, Any]:
            if frame["id"] in refused:
                return {"op": "ack", "id": frame["id"]}
            refused.add(frame["id"])
            nack = {"op": "nack", "code": "rate_limited", "retryable": True, "mayHaveArrived": False}
            return {**nack, "id": frame["id"], "retryAfterMs": 100}

        edge.answer = answer
        async with client(edge) as wire:
            await asyncio.gather(*(wire.send("order.placed", {"n": n}) for n in range(5)))
        repeats = [frame["content"]["n"] for frame in edge.messages()][-5:]
        assert repeats == [0, 1, 2, 3, 4]


async def test_an_answer_reaches_the_request_and_not_the_handlers() -> None:
    got: list[str] = []
    async with fake_edge() as edge, client(edge) as wire:
        wire.on("#")(lambda message: got.append(message.id))
        task = asyncio.ensure_future(wire.request("qr.refresh", {}, timeout=20))
        asked = await until("the request", edge.messages)
        await edge.push(1, correlationId=asked[0]["id"])
        assert (await task).content == {"n": 1}
        await edge.push(2, correlationId=asked[0]["id"])
        await until("a late copy", lambda: got)
        assert got == ["p2"]


async def test_a_handler_may_wait_for_an_answer() -> None:
    answers: list[Any] = []
    async with fake_edge() as edge, client(edge) as wire:

        @wire.on("payment.completed")
        async def handle(message: Message) -> None:
            answers.append((await wire.request("qr.refresh", {}, timeout=20)).content)

        await wire.opened()
        await edge.push(1)
        asked = await until("the request", edge.messages)
        await edge.push(2, correlationId=asked[0]["id"])
        await until("the answer", lambda: answers)


async def test_close_settles_a_request_that_was_acknowledged() -> None:
    async with fake_edge() as edge:
        wire = client(edge)
        wire.start()
        task = asyncio.ensure_future(wire.request("qr.refresh", {}, timeout=60))
        await until("the request", edge.messages)
        await asyncio.sleep(0.05)
        await wire.close()
        with pytest.raises(Rejected) as rejected:
            await task
        assert (rejected.value.code, rejected.value.may_have_arrived) == ("closed", True)
        assert wire.state is State.CLOSED


async def test_a_handler_may_close_the_client() -> None:
    ended = asyncio.Event()
    async with fake_edge() as edge:
        wire = client(edge)

        @wire.on("#")
        async def handle(message: Message) -> None:
            await wire.close()
            ended.set()

        wire.start()
        await wire.opened()
        await edge.push(1)
        await asyncio.wait_for(ended.wait(), 20)
        assert wire.state is State.CLOSED


async def test_1009_rejects_the_largest_and_repeats_the_others() -> None:
    async with fake_edge() as edge:
        edge.answer = lambda frame: None
        async with client(edge) as wire:
            small, large = wire.submit("a", 1), wire.submit("a", "x" * 500)
            await until("both on the wire", lambda: len(edge.messages()) == 2)
            edge.answer = lambda frame: {"op": "ack", "id": frame["id"]}
            await edge.connections[0].close(1009)
            with pytest.raises(Rejected) as rejected:
                await large
            assert (rejected.value.code, rejected.value.may_have_arrived) == ("too_large", False)
            await small
        assert [frame["id"] for frame in edge.messages(1)] == [small.id]


async def test_a_refusal_after_a_lost_attempt_may_have_arrived() -> None:
    async with fake_edge() as edge:
        edge.answer = lambda frame: None
        async with client(edge) as wire:
            pending = wire.submit("a", 1)
            await until("the message", edge.messages)
            edge.answer = lambda frame: {
                "op": "nack",
                "id": frame["id"],
                "code": "unknown_route",
                "retryable": False,
                "mayHaveArrived": False,
            }
            await edge.connections[0].close(1011)
            with pytest.raises(Rejected) as rejected:
                await pending
            assert rejected.value.may_have_arrived


async def test_4009_on_a_connection_that_was_told_to_leave_stops_nobody() -> None:
    states: list[State] = []
    async with fake_edge() as edge, client(edge, on_state=states.append) as wire:
        await wire.opened()
        await edge.say({"op": "drain", "reconnectWithinMs": 60_000})
        await edge.say({"op": "pong"})
        await edge.connections[0].close(4009)
        await until("its return", lambda: len(edge.connections) == 2 and wire.state is State.OPEN)
        assert State.STOPPED not in states


@pytest.mark.parametrize("options", [{}, {"compression": "deflate"}])
async def test_compression_is_offered_only_on_request(options: dict[str, Any]) -> None:
    got: list[Any] = []
    async with fake_edge() as edge, client(edge, connect_options=options) as wire:
        wire.on("#")(lambda message: got.append(message.content))
        await wire.opened()
        assert bool(edge.connections[-1].protocol.extensions) is bool(options)
        await edge.push(1, content="x" * 1000)
        await until("the message", lambda: got == ["x" * 1000])


async def test_receipts_go_to_the_open_connection() -> None:
    async with fake_edge() as edge, client(edge) as wire:
        got: list[Message] = []
        wire.on("#")(got.append)
        await wire.opened()
        await edge.push(1)
        await until("the message", lambda: got)
        await wire.received(*got, *(str(n) for n in range(300)))
        frames = await until("two receipts", lambda: len(edge.frames) >= 2 and edge.frames)
        assert [len(frame["ids"]) for _, frame in frames] == [256, 45]
        assert frames[0][1]["ids"][0] == "p1"


async def test_a_receipt_without_an_answer_makes_its_message_come_again_and_is_given_again() -> None:
    got: list[str] = []
    async with fake_edge() as edge, client(edge) as wire:
        wire.on("#")(lambda message: got.append(message.id))
        await wire.opened()
        for n in (1, 2, 3):
            await edge.push(n)
        await until("three messages", lambda: len(got) == 3)
        await wire.received("p1", "p2", "p3")
        await until("the receipts", lambda: edge.frames)
        await edge.say({"op": "receipt", "ids": ["p1"]})
        await edge.say({"op": "error", "about": "received", "ids": ["p3"], "retryable": False, "reason": "no"})
        await edge.connections[0].close(1012)
        await until("the next connection", lambda: len(edge.connections) == 2)
        assert edge.cursor(1) == "c1"
        for n in (2, 3):
            await edge.push(n, 1)
        again = await until("its receipt", lambda: [frame for number, frame in edge.frames if number == 1])
        assert again == [{"op": "received", "ids": ["p2"]}]
        await edge.say({"op": "receipt", "ids": ["p2"]}, 1)
        await edge.connections[1].close(1012)
        await until("the third connection", lambda: len(edge.connections) == 3)
        assert edge.cursor(2) == "c3", "what came again did not move the position back"
        assert got == ["p1", "p2", "p3"]


async def lose_a_receipt(edge: FakeEdge, wire: WirepostClient) -> tuple[list[str], list[str]]:
    """Three messages, the second with a receipt that is lost, and the next connection, which begins before it."""
    got: list[str] = []
    gaps: list[str] = []
    wire.on("#")(lambda message: got.append(message.id))
    wire.on_gap(lambda gap: gaps.append(gap.reason))
    await wire.opened()
    for n in (1, 2, 3):
        await edge.push(n)
    await until("three messages", lambda: len(got) == 3)
    await wire.received("p2")
    await until("the receipt", lambda: edge.frames)
    await cut(edge, 0)
    assert edge.cursor(1) == "c1"
    return got, gaps


async def cut(edge: FakeEdge, number: int) -> None:
    await edge.connections[number].close(1012)
    await until("the next connection", lambda: len(edge.connections) >= number + 2)


async def test_a_message_that_does_not_come_again_takes_its_receipt_with_it() -> None:
    async with fake_edge() as edge, client(edge) as wire:
        got, _ = await lose_a_receipt(edge, wire)
        await edge.push(3, 1)
        await wire.opened()
        await wire.received("p1")
        await edge.push(4, 1)
        await until("a new message", lambda: len(got) == 4)
        await cut(edge, 1)
        assert edge.cursor(2) == "c0", "a receipt that was given since then still waits"
        await edge.push(5, 2)
        await until("a new message", lambda: len(got) == 5)
        await cut(edge, 2)
        assert edge.cursor(3) == "c5"


async def test_after_a_position_in_a_repetition_what_has_not_come_again_may_be_behind_it() -> None:
    async with fake_edge() as edge, client(edge) as wire:
        # As where the broker was away: this position is where the repetition begins.
        edge.welcomes[1] = {"cursor": None, "resumed": None}
        await lose_a_receipt(edge, wire)
        await edge.say({"op": "position", "cursor": "p"}, 1)
        await cut(edge, 1)
        assert edge.cursor(2) == "p"
        await edge.push(2, 2)
        again = await until("its receipt", lambda: [frame for number, frame in edge.frames if number == 2])
        assert again == [{"op": "received", "ids": ["p2"]}]


@pytest.mark.parametrize("gone", ["welcome", "gap", "later"])
async def test_an_old_position_that_is_gone_is_no_gap_while_the_newest_one_is_not(gone: str) -> None:
    async with fake_edge() as edge, client(edge) as wire:
        if gone == "welcome":
            edge.welcomes[1] = {"cursor": "end", "resumed": False}
        elif gone == "gap":
            edge.welcomes[1] = {"cursor": None, "resumed": None}
        got, gaps = await lose_a_receipt(edge, wire)
        if gone == "later":
            await edge.push(2, 1)
        await edge.say({"op": "gap", "reason": "retention"}, 1)
        await edge.say({"op": "position", "cursor": "end"}, 1)
        await edge.push(9, 1)
        await until("the next connection", lambda: len(edge.connections) == 3)
        assert edge.cursor(2) == "c3"
        await edge.push(4, 2)
        await until("a new message", lambda: len(got) == 4)
        assert (got, gaps) == (["p1", "p2", "p3", "p4"], [])
        assert await wire.send("order.placed", {})
        await until("the end of the old one", lambda: edge.connections[1].close_code is not None)


async def test_an_old_and_the_newest_position_that_are_gone_are_one_gap() -> None:
    async with fake_edge() as edge, client(edge) as wire:
        edge.welcomes = {n: {"cursor": "end", "resumed": False} for n in (1, 2)}
        _, gaps = await lose_a_receipt(edge, wire)
        await until("the gap", lambda: gaps)
        await edge.say({"op": "gap", "reason": "retention"}, 2)
        assert await wire.send("order.placed", {})
        assert (gaps, wire.state, len(edge.connections)) == (["resume"], State.OPEN, 3)


async def test_a_slow_handler_holds_the_edge_up_without_losing_the_connection() -> None:
    """The backlog is bounded: what is above it stays in the socket. That is no silence of the edge."""
    gate = asyncio.Event()
    got: list[str] = []

    async def handle(message: Message) -> None:
        await gate.wait()
        got.append(message.id)

    timing = Timing(ping_after=0.2, pong_within=0.2)
    async with fake_edge() as edge, client(edge, timing=timing) as wire:
        wire.on("#")(handle)
        await wire.opened()
        pushes = asyncio.ensure_future(asyncio.gather(*(edge.push(n) for n in range(1500))))
        await asyncio.sleep(1.5)
        assert len(wire._inbox._items) <= 1024
        gate.set()
        await pushes
        await until("all messages", lambda: len(got) == 1500)
        assert got == [f"p{n}" for n in range(1500)]
        assert len(edge.connections) == 1


async def test_a_network_that_is_silent_twice_gets_more_patience() -> None:
    timing = Timing(ping_after=0.1, pong_within=0.1, fast_first=0.01, fast_max=0.01)
    async with fake_edge() as edge:

        async def freeze(number: int) -> None:
            if number < 3:
                connection = edge.connections[number]
                asyncio.get_running_loop().call_later(0.02, connection.transport.pause_reading)

        edge.on_connect = freeze
        async with client(edge, timing=timing) as wire:
            await until("the third return", lambda: len(edge.connections) == 4)
            assert wire._patience == pytest.approx(0.4)
            await until("a connection", lambda: wire.state is State.OPEN)
            await edge.push(1)
            await until("patience as before", lambda: wire._patience == timing.pong_within)


async def test_a_store_that_fails_costs_neither_messages_nor_the_connection() -> None:
    class Broken(MemoryCursorStore):
        async def load(self) -> str | None:
            raise OSError("no disk")

        async def save(self, cursor: str) -> None:
            raise OSError("no disk")

    failed: list[str] = []
    got: list[str] = []
    report = lambda error, message: failed.append(str(error))  # noqa: E731
    async with fake_edge() as edge, client(edge, cursor_store=Broken(), on_error=report) as wire:
        wire.on("#")(lambda message: got.append(message.id))
        await wire.opened()
        await edge.push(1)
        await edge.push(2)
        await until("both", lambda: got == ["p1", "p2"])
        assert "no disk" in failed


async def test_a_closed_client_leaves_no_task_behind(caplog: pytest.LogCaptureFixture) -> None:
    async with fake_edge() as edge:
        before = set(asyncio.all_tasks())
        with caplog.at_level(logging.WARNING):
            wire = client(edge)
            wire.start()
            await wire.opened()
            await edge.say({"op": "drain", "reconnectWithinMs": 1})
            await until("two connections", lambda: len(edge.connections) == 2)
            await wire.close()
            await wire.close()
            await asyncio.sleep(0.1)
            gc.collect()
        left = {task for task in asyncio.all_tasks() - before if task.get_name().startswith("wirepost")}
        assert not left
        assert not [record for record in caplog.records if record.name in ("wirepost", "asyncio")]
