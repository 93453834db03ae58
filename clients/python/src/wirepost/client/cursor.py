"""Where a client keeps its position, so that a restarted program continues where it was."""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from pathlib import Path
from typing import Protocol


class CursorStore(Protocol):
    """Your own store: a table, a key-value store. One for each identity and business."""

    async def load(self) -> str | None:
        """The cursor that was saved last; None if there is none."""
        ...

    async def save(self, cursor: str) -> None:
        """Replaces it. Called after the handlers of everything before it have succeeded."""
        ...


class MemoryCursorStore:
    """Forgets with the program: a restarted one begins with what comes from then on."""

    def __init__(self, cursor: str | None = None) -> None:
        self.cursor = cursor

    async def load(self) -> str | None:
        return self.cursor

    async def save(self, cursor: str) -> None:
        self.cursor = cursor


class FileCursorStore:
    """A small file, replaced atomically. It survives the end of the program, and a crash of it at any moment."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)

    async def load(self) -> str | None:
        return await asyncio.to_thread(self._read)

    async def save(self, cursor: str) -> None:
        # Shielded: a write that was begun ends before the next one begins, also when the caller is cancelled.
        await asyncio.shield(asyncio.to_thread(self._write, cursor))

    def _read(self) -> str | None:
        try:
            return self._path.read_text("ascii").strip() or None
        except FileNotFoundError:
            return None

    def _write(self, cursor: str) -> None:
        handle, name = tempfile.mkstemp(dir=self._path.parent, prefix=f".{self._path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="ascii") as file:
                file.write(cursor)
            os.replace(name, self._path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)
            raise
