"""The parts alone: patterns, envelopes, waits, stores, bindings."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import httpx
import pytest

from wirepost import BindingError, FileCursorStore, Timing, TokenRefused
from wirepost.client.link import NotOpened
from wirepost.client.session import split
from wirepost.client.waits import Waits
from wirepost.message import dump, parse, write
from wirepost.patterns import matches
from wirepost.service import Binding
from wirepost.tokens import read_token


@pytest.mark.parametrize(
    ("pattern", "message_type", "expected"),
    [
        ("payment.completed", "payment.completed", True),
        ("payment.completed", "payment.complete", False),
        ("payment.*", "payment.completed", True),
        ("payment.*", "payment", False),
        ("payment.*", "payment.a.b", False),
        ("payment.#", "payment", True),
        ("payment.#", "payment.a.b", True),
        ("#", "anything.at.all", True),
        ("#.done", "done", True),
        ("#.done", "a.b.done", True),
        ("#.b.#", "a.b.c", True),
        ("a.#.c", "a.c.d", False),
        ("*.*", "a", False),
    ],
)
def test_a_pattern_matches_words(pattern: str, message_type: str, expected: bool) -> None:
    assert matches(pattern, message_type) is expected


def test_a_pattern_of_many_hashes_is_matched_in_no_time() -> None:
    assert not matches(".".join(["#", "a"] * 50), ".".join(["a"] * 200) + ".b")


def test_an_envelope_keeps_what_this_version_does_not_know() -> None:
    envelope = {"id": "1", "messageType": "a", "tags": ["x", 3], "timestamp": 1.5, "later": {"n": 1}}
    message = parse(envelope)
    assert message.raw["later"] == {"n": 1}
    assert message.tags == ("x",)
    assert message.timestamp is None


def test_what_is_no_json_is_refused_before_it_is_sent() -> None:
    with pytest.raises(ValueError, match="JSON"):
        write("a", float("nan"))
    with pytest.raises(TypeError):
        write("a", object())
    with pytest.raises(TypeError, match="list"):
        write("a", 1, tags="vip")


def test_half_a_surrogate_pair_is_escaped() -> None:
    assert dump("\ud800ä") == '"\\ud800\\u00e4"'
    assert dump("ä😀") == '"ä😀"'


def test_waits_grow_to_their_bounds_and_begin_again_after_a_stable_connection() -> None:
    waits = Waits(Timing(), random.Random(1))
    fast = [waits.next(slowly=False) for _ in range(200)]
    for failures, wait in enumerate(fast):
        assert 0 <= wait <= min(30, 0.5 * 2**failures)
    assert max(fast) > 20
    slow = [waits.next(slowly=True) for _ in range(200)]
    for failures, wait in enumerate(slow):
        assert min(900, 30 * 2**failures) / 2 <= wait <= min(900, 30 * 2**failures)
    waits.lasted(4.9)
    assert waits.next(slowly=True) >= 450
    waits.lasted(5)
    assert waits.next(slowly=True) <= 30
    assert 2 <= waits.next(slowly=False, retry_after=2) <= 2.5
    assert waits.next(slowly=False, retry_after=1e9) <= 931


async def test_a_file_keeps_a_cursor_and_is_replaced_as_a_whole(tmp_path: Path) -> None:
    store = FileCursorStore(tmp_path / "cursor")
    assert await store.load() is None
    await store.save("a")
    await store.save("b")
    assert await FileCursorStore(tmp_path / "cursor").load() == "b"
    assert [path.name for path in tmp_path.iterdir()] == ["cursor"]


def test_a_token_calls_answer_is_a_url_or_a_typed_refusal() -> None:
    url = "wss://ws.example/socket/abc"
    assert read_token(httpx.Response(200, json={"result": 0, "data": url})) == url
    assert split(url) == ("wss://ws.example/socket/", "abc")
    with pytest.raises(TokenRefused) as refused:
        read_token(httpx.Response(503, json={"result": 50304, "description": "not yet"}, headers={"retry-after": "7"}))
    assert (refused.value.status, refused.value.result, refused.value.retry_after) == (503, 50304, 7)
    for strange in (b"<html>", b"[]", b'{"data": 7}'):
        with pytest.raises(TokenRefused) as refused:
            read_token(httpx.Response(200, content=strange))
        assert refused.value.status == 502


@pytest.mark.parametrize(
    "url", [None, 7, "", "https://ws.example/socket/abc", "ws://[::1", "wss://ws.example", "ws:///"]
)
def test_what_a_token_source_gives_must_be_a_url(url: Any) -> None:
    with pytest.raises(NotOpened):
        split(url)


def secret(folder: Path, **keys: str) -> Path:
    folder.mkdir(parents=True)
    content = {
        "type": "rabbitmq",
        "provider": "wirepost",
        "uri": "amqp://user:secret@rabbit:5672/v",
        "push-exchange": "wirepost.payments.push",
        "queue.qr-refresh": "wirepost.payments.q.qr-refresh",
        "queue.old": "legacy.queue",
        "endpoint": "https://ws.example/payments/websocket",
        "api-key": "k",
    }
    for name, value in {**content, **keys}.items():
        (folder / name).write_text(value + "\n")
    return folder


def test_a_binding_is_read_from_the_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret(tmp_path / "shop")
    secret(tmp_path / "cache", provider="redis")
    monkeypatch.setenv("SERVICE_BINDING_ROOT", str(tmp_path))
    binding = Binding.read()
    assert binding.business == "payments"
    assert binding.amqp == "amqp://user:secret@rabbit:5672/v"
    assert binding.queue("qr-refresh") == "wirepost.payments.q.qr-refresh"
    assert binding.queue("old") == binding.queue("legacy.queue") == "legacy.queue"
    assert binding.queue("new") == "wirepost.payments.q.new"
    assert "secret" not in repr(binding)
    assert Binding.read(root=tmp_path / "shop") == binding


def test_a_wrong_binding_directory_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SERVICE_BINDING_ROOT", raising=False)
    with pytest.raises(BindingError, match="SERVICE_BINDING_ROOT is not set"):
        Binding.read()
    with pytest.raises(BindingError, match="no binding with the provider"):
        Binding.read(root=tmp_path)
    secret(tmp_path / "a")
    secret(tmp_path / "b", **{"push-exchange": "wirepost.orders.push"})
    with pytest.raises(BindingError, match="several"):
        Binding.read(root=tmp_path)
    assert Binding.read("orders", tmp_path).business == "orders"
    (tmp_path / "a" / "uri").unlink()
    with pytest.raises(BindingError, match="a/uri is missing"):
        Binding.read("a", tmp_path)
