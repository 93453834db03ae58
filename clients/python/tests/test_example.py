"""examples/pay-by-qr, with this library's client in the place of the page."""

from __future__ import annotations

import asyncio
import importlib.util
from pathlib import Path

import httpx
import pytest

from conftest import Rabbit
from wirepost import HttpToken, Message, WirepostClient
from wirepost.service.web import lifespan
from wirepost.testing import dev_server

EXAMPLE = Path(__file__).parents[3] / "examples/pay-by-qr"

pytestmark = pytest.mark.broker


async def test_a_page_gets_a_code_and_learns_that_it_was_paid(monkeypatch: pytest.MonkeyPatch) -> None:
    rabbit = Rabbit()
    try:
        with dev_server(EXAMPLE / "pay-by-qr.yaml", environment=rabbit.environment) as server:
            monkeypatch.delenv("SERVICE_BINDING_ROOT", raising=False)
            monkeypatch.setenv("WIREPOST_AMQP", rabbit.amqp)
            monkeypatch.setenv("WIREPOST_URL", server.url)
            spec = importlib.util.spec_from_file_location("pay_by_qr", EXAMPLE / "service.py")
            assert spec is not None
            assert spec.loader is not None
            shop = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(shop)
            transport = httpx.ASGITransport(shop.web)
            http = httpx.AsyncClient(transport=transport, base_url="http://shop")
            async with lifespan(shop.service)(shop.web), http:
                assert (await http.get("/wirepost-token")).status_code == 401
                assert "Checkout" in (await http.get("/")).text
                paid: asyncio.Queue[Message] = asyncio.Queue()
                async with WirepostClient(HttpToken("http://shop/wirepost-token", http=http)) as page:
                    page.on("payment.completed")(paid.put_nowait)
                    answer = await page.request("qr.refresh", {"orderId": "o-1"}, timeout=30)
                    assert (await http.get(answer.content["path"])).status_code == 200
                    assert (await asyncio.wait_for(paid.get(), 30)).content == {"orderId": "o-1"}
                    assert (await http.get(answer.content["path"])).status_code == 410, "a code pays once"
    finally:
        rabbit.end()
