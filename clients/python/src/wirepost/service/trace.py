"""The W3C trace context of the message that is handled, carried into the pushes that the handler makes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

HEADERS: Final = ("traceparent", "tracestate")

_current: ContextVar[Mapping[str, str] | None] = ContextVar("wirepost_trace", default=None)


def current() -> Mapping[str, str]:
    """`traceparent` and `tracestate` of what is done now, where it has them."""
    return _current.get() or {}


@contextmanager
def carry(headers: Mapping[str, Any]) -> Iterator[None]:
    """Everything in this block, and every task that it starts, belongs to the trace that these headers name.

    The consumer uses it for each message. Use it yourself to bring the context of an HTTP request into a push.
    """
    found = {name: headers.get(name) for name in HEADERS}
    token = _current.set({name: _text(value) for name, value in found.items() if isinstance(value, (str, bytes))})
    try:
        yield
    finally:
        _current.reset(token)


def _text(value: str | bytes) -> str:
    return value.decode("ascii", "replace") if isinstance(value, bytes) else value
