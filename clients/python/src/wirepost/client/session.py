"""What lets a client in: a ticket of a token call, or the resume token of an earlier connection."""

from __future__ import annotations

import asyncio
import logging
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from ..errors import TokenRefused
from ..tokens import TokenSource
from .link import NotOpened

log = logging.getLogger("wirepost")


class Session:
    """Asks for a ticket only when there is no resume token."""

    def __init__(self, source: TokenSource, within: float) -> None:
        self._source = source
        self._within = within
        self._base: str | None = None
        self._resume: str | None = None

    async def target(self) -> tuple[str, str]:
        """Where to connect now, and with which token; raises NotOpened."""
        if self._resume is not None and self._base is not None:
            return self._base, self._resume
        self._base, ticket = split(await self._call())
        return self._base, ticket

    async def ticket(self) -> str:
        """A fresh one, to extend a session; raises NotOpened."""
        base, ticket = split(await self._call())
        self._base = base
        return ticket

    def take(self, frame: dict[str, Any]) -> None:
        """The edge gave a resume token (`welcome`, `refreshed`, `position`)."""
        token = frame.get("resumeToken")
        if isinstance(token, str) and token:
            self._resume = token

    def forget(self) -> None:
        """The session is over: the next connection needs a new ticket."""
        self._resume = None

    async def _call(self) -> str:
        try:
            return await asyncio.wait_for(_awaited(self._source), self._within)
        except asyncio.TimeoutError as error:
            raise NotOpened(f"the token call was not answered within {self._within} s") from error
        except TokenRefused as error:
            final = 400 <= error.status < 500 and error.status not in (408, 429)
            raise NotOpened(str(error), slowly=final, retry_after=error.retry_after) from error
        except Exception as error:
            log.warning("wirepost: the token call failed: %s", error)
            raise NotOpened(f"the token call failed: {error}") from error


async def _awaited(source: TokenSource) -> str:
    return await source()


def split(url: str) -> tuple[str, str]:
    """The part of a connection URL before its ticket, and the ticket; raises NotOpened."""
    wrong = NotOpened("the token call gave no connection URL (ws://…/socket/… or wss://…/socket/…)", slowly=True)
    try:
        parts = urlsplit(str(url))
    except ValueError as error:
        raise wrong from error
    path, slash, ticket = parts.path.rpartition("/")
    if parts.scheme not in ("ws", "wss") or not slash or not ticket:
        raise wrong
    return urlunsplit((parts.scheme, parts.netloc, path + "/", "", "")), ticket
