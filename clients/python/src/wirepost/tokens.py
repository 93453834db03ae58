"""The token call over HTTP: to your own backend, or to an edge."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import httpx

from .errors import TokenRefused

TokenSource = Callable[[], Awaitable[str]]
"""Gives a fresh connection URL (`data` of the token call). It may raise `TokenRefused` with the answer's status."""


class HttpToken:
    """A `TokenSource` that makes a GET. The answer is that of the token call, as an edge or your backend gives it.

    `headers` may be a function, for a header that changes, such as `Authorization` with a JWT that is renewed.
    """

    def __init__(
        self,
        url: str,
        *,
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | Callable[[], Mapping[str, str]] | None = None,
        http: httpx.AsyncClient | None = None,
        timeout: float = 10.0,
    ) -> None:
        self._url = url
        self._params = dict(params or {})
        self._headers = headers
        self._http = http
        self._timeout = timeout

    async def __call__(self) -> str:
        headers = self._headers() if callable(self._headers) else self._headers
        if self._http is not None:
            return await self._get(self._http, headers)
        async with httpx.AsyncClient() as http:
            return await self._get(http, headers)

    async def _get(self, http: httpx.AsyncClient, headers: Mapping[str, str] | None) -> str:
        response = await http.get(self._url, params=self._params or None, headers=headers, timeout=self._timeout)
        return read_token(response)


def read_token(response: httpx.Response) -> str:
    """The URL of a token call's answer; raises `TokenRefused`."""
    try:
        body = response.json()
    except ValueError:
        body = None
    answer = body if isinstance(body, dict) else {}
    data = answer.get("data")
    if response.is_success and isinstance(data, str) and "/socket/" in data:
        return data
    result = answer.get("result")
    description = str(answer.get("description", ""))
    if response.is_success:
        # Nothing that a client can mend; it returns as after any other failure of a server.
        raise TokenRefused(502, f"the answer has no connection URL as `data` ({description or 'no description'})")
    raise TokenRefused(
        response.status_code,
        description,
        result=result if isinstance(result, int) else None,
        retry_after=retry_after(response.headers.get("retry-after")),
    )


def retry_after(value: str | None) -> float | None:
    """Seconds of a `Retry-After` header; a date in it is ignored, since the clocks may differ."""
    try:
        return max(0.0, float(value)) if value is not None else None
    except ValueError:
        return None
