"""For FastAPI and Starlette: the route by which your users' clients get their connection URL, and the lifespan."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from ..errors import TokenRefused
from .app import WirepostApp


@dataclass(frozen=True)
class Identity:
    """Who asks, as your own login says."""

    unique_id: str
    client_type: str
    tags: tuple[str, ...] = ()


Identify = Callable[[Request], Awaitable["Identity | None"]]


def token_route(app: WirepostApp, identify: Identify, *, path: str = "/wirepost-token") -> Route:
    """A GET that answers as the edges' token call does. `identify` gives None for those who are not logged in (401).

    api = FastAPI(routes=[token_route(service, who)], lifespan=lifespan(service))
    """

    async def token(request: Request) -> JSONResponse:
        identity = await identify(request)
        if identity is None:
            return _answer(401, 40101, "log in first")
        try:
            url = await app.token(unique_id=identity.unique_id, client_type=identity.client_type, tags=identity.tags)
        except TokenRefused as error:
            # A refusal of this service's key or parameters is no fault of the client's.
            status = 502 if error.status in (400, 401, 403, 404) else error.status
            return _answer(status, error.result or status * 100 + 1, error.description, error.retry_after)
        except httpx.HTTPError as error:
            return _answer(503, 50302, f"no edge can be reached: {type(error).__name__}", 1)
        return JSONResponse({"result": 0, "description": "ok", "data": url}, headers={"Cache-Control": "no-store"})

    return Route(path, token, methods=["GET"])


def lifespan(app: WirepostApp) -> Callable[[Any], AbstractAsyncContextManager[None]]:
    """Starts the service with the web application, and stops it in order."""

    @asynccontextmanager
    async def live(_: Any) -> AsyncIterator[None]:
        async with app:
            yield

    return live


def _answer(status: int, result: int, description: str, retry_after: float | None = None) -> JSONResponse:
    headers = {"Cache-Control": "no-store"}
    if retry_after is not None:
        headers["Retry-After"] = str(max(1, round(retry_after)))
    return JSONResponse({"result": result, "description": description}, status, headers)
