"""Where a service finds its business: the Secret that the operator makes, mounted as a Service Binding directory."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ..errors import BindingError

ROOT: Final = "SERVICE_BINDING_ROOT"
"""The environment variable that names the directory with all bindings, see servicebinding.io."""
_QUEUE: Final = "queue."


@dataclass(frozen=True)
class Binding:
    """The names and credentials of one business. Queues: short name (as declared) to full name."""

    business: str
    amqp: str = field(repr=False)
    """`amqp://user:password@host:port/vhost`"""
    queues: Mapping[str, str] = field(default_factory=dict)
    endpoint: str | None = None
    """The edges' HTTP interface for this business: `https://ws.example/payments/websocket`."""
    api_key: str | None = field(default=None, repr=False)

    @property
    def push_exchange(self) -> str:
        return f"wirepost.{self.business}.push"

    @property
    def share_exchange(self) -> str:
        """For pushes to the clients of several businesses."""
        return f"wirepost.{self.business}.share"

    def queue(self, name: str) -> str:
        """The full name of a declared queue; a full name stays as it is."""
        if name in self.queues:
            return self.queues[name]
        return (
            name
            if name.startswith("wirepost.") or name in self.queues.values()
            else f"wirepost.{self.business}.q.{name}"
        )

    @staticmethod
    def of(
        business: str,
        *,
        amqp: str,
        queues: list[str] | tuple[str, ...] = (),
        edge: str | None = None,
        api_key: str | None = None,
    ) -> Binding:
        """Without a directory: `edge` is the edges' public address, `https://ws.example`."""
        full = {name: f"wirepost.{business}.q.{name}" for name in queues}
        endpoint = f"{edge.rstrip('/')}/{business}/websocket" if edge else None
        return Binding(business, amqp, full, endpoint, api_key)

    @staticmethod
    def read(name: str | None = None, root: str | os.PathLike[str] | None = None) -> Binding:
        """Reads the one binding of wirepost below `SERVICE_BINDING_ROOT`, or the one of this name (its folder, or its
        business). `root` may also be the folder of a mounted Secret itself. Raises BindingError.
        """
        where = os.fspath(root) if root is not None else os.environ.get(ROOT)
        if not where:
            raise BindingError(
                f"{ROOT} is not set. Mount the business's Secret below it, or give WirepostApp a Binding"
            )
        folder = Path(where)
        if not folder.is_dir():
            raise BindingError(f"{folder} is no directory. Mount the business's Secret below it")
        if (folder / "push-exchange").is_file():
            return _read(folder)
        found = {path.name: _read(path) for path in sorted(folder.iterdir()) if _text(path, "provider") == "wirepost"}
        chosen = [binding for key, binding in found.items() if name is None or name in (key, binding.business)]
        if len(chosen) == 1:
            return chosen[0]
        names = ", ".join(found) or "none"
        if name is not None:
            raise BindingError(f"{folder} has no binding of wirepost called {name}; there are: {names}")
        if chosen:
            raise BindingError(f"{folder} has several bindings of wirepost ({names}): name the one that is meant")
        raise BindingError(f"{folder} has no binding with the provider `wirepost`. Is the Secret mounted below it?")


def _read(folder: Path) -> Binding:
    exchange = _needed(folder, "push-exchange")
    words = exchange.split(".")
    if len(words) != 3 or words[0] != "wirepost" or words[2] != "push":
        raise BindingError(f"{folder}/push-exchange names {exchange!r}, not wirepost.<business>.push")
    queues = {path.name[len(_QUEUE) :]: _needed(folder, path.name) for path in sorted(folder.glob(f"{_QUEUE}*"))}
    return Binding(words[1], _needed(folder, "uri"), queues, _text(folder, "endpoint"), _text(folder, "api-key"))


def _text(folder: Path, key: str) -> str | None:
    try:
        return (folder / key).read_text("utf-8").strip() or None
    except OSError:
        return None


def _needed(folder: Path, key: str) -> str:
    value = _text(folder, key)
    if value is None:
        raise BindingError(f"{folder}/{key} is missing or empty. Is this the Secret of a WsBusiness?")
    return value
