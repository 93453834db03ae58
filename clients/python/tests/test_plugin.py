"""The pytest plugin, used as its users do."""

from __future__ import annotations

import pytest

from conftest import HERE

pytestmark = pytest.mark.broker


def test_the_fixture_starts_wirepost_dev(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WIREPOST_AMQP", "WIREPOST_STREAM", "WIREPOST_MANAGEMENT"):
        monkeypatch.delenv(name, raising=False)
    pytester.makeini("[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\n")
    pytester.makeconftest(f"""
        import pytest
        pytest_plugins = ["wirepost.testing"]

        @pytest.fixture(scope="session")
        def wirepost_declarations():
            return [{str(HERE / "shop.yaml")!r}]
    """)
    pytester.makepyfile("""
        import asyncio
        from wirepost import WirepostClient

        async def test_it(wirepost_dev):
            got = asyncio.Queue()
            async with WirepostClient(wirepost_dev.token("shop", "alice", "app")) as client:
                client.on("#")(got.put_nowait)
                await client.opened()
                push = {"messageType": "payment.completed", "toUniqueId": "alice", "content": 7}
                await wirepost_dev.push("shop", push)
                assert (await asyncio.wait_for(got.get(), 20)).content == 7
    """)
    result = pytester.runpytest_subprocess("-q")
    result.assert_outcomes(passed=1)
