"""The envelope, as handlers get it and as senders write it."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

EVERYONE: Final = "*"
"""As `to` of a push: every connection, on a route with `audience: Everyone`."""
ID_MAX: Final = 64
"""Bytes of a message's id."""


@dataclass(frozen=True)
class Message:
    """A message that arrived. Times are milliseconds since the Unix epoch; what is absent is None or empty."""

    id: str
    message_type: str
    content: Any = None
    send_type: str | None = None
    business_type: str | None = None
    from_unique_id: str | None = None
    from_client_type: str | None = None
    to_unique_id: str | None = None
    to_client_type: str | None = None
    tags: tuple[str, ...] = ()
    timestamp: int | None = None
    expires_at: int | None = None
    correlation_id: str | None = None
    """The id of the message that this one answers."""
    cursor: str | None = field(default=None, repr=False)
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
    """The whole envelope, with the fields that this version does not know."""


def parse(envelope: Mapping[str, Any]) -> Message:
    """Reads an envelope; raises ValueError if it lacks `id` or `messageType`."""
    message_id, message_type = envelope.get("id"), envelope.get("messageType")
    if not isinstance(message_id, str) or not message_id:
        raise ValueError("the envelope has no id")
    if not isinstance(message_type, str) or not message_type:
        raise ValueError("the envelope has no messageType")
    tags = envelope.get("tags")
    return Message(
        id=message_id,
        message_type=message_type,
        content=envelope.get("content"),
        send_type=_text(envelope, "sendType"),
        business_type=_text(envelope, "businessType"),
        from_unique_id=_text(envelope, "fromUniqueId"),
        from_client_type=_text(envelope, "fromClientType"),
        to_unique_id=_text(envelope, "toUniqueId"),
        to_client_type=_text(envelope, "toClientType"),
        tags=tuple(tag for tag in tags if isinstance(tag, str)) if isinstance(tags, list) else (),
        timestamp=_integer(envelope, "timestamp"),
        expires_at=_integer(envelope, "expiresAt"),
        correlation_id=_text(envelope, "correlationId"),
        cursor=_text(envelope, "cursor"),
        raw=envelope,
    )


def write(
    message_type: str,
    content: Any,
    *,
    message_id: str | None = None,
    to: str | None = None,
    tags: Iterable[str] | None = None,
    to_client_type: str | None = None,
    correlation_id: str | None = None,
    expires_at: int | None = None,
    businesses: Iterable[str] | None = None,
) -> tuple[str, str]:
    """The id and the JSON text of an envelope; raises ValueError or TypeError for content that is not JSON."""
    if not message_type:
        raise ValueError("message_type is empty")
    if isinstance(tags, str):
        raise TypeError("tags is a list of strings, not one string")
    if isinstance(businesses, str):
        raise TypeError("businesses is a list of strings, not one string")
    message_id = str(uuid.uuid4()) if message_id is None else message_id
    # An edge can't return another one in its answer: the sender would wait for ever.
    if not isinstance(message_id, str) or not 1 <= len(message_id.encode()) <= ID_MAX:
        raise ValueError(f"message_id is a string of 1 to {ID_MAX} bytes, not {message_id!r}")
    envelope: dict[str, Any] = {"id": message_id, "messageType": message_type}
    optional = {
        "toUniqueId": to,
        "toClientType": to_client_type,
        "tags": list(tags) if tags is not None else None,
        "correlationId": correlation_id,
        "expiresAt": expires_at,
        "businesses": list(businesses) if businesses is not None else None,
    }
    envelope.update((name, value) for name, value in optional.items() if value is not None)
    envelope["content"] = content
    return message_id, dump(envelope)


def dump(value: Any) -> str:
    """Compact JSON that UTF-8 can encode. NaN and infinities are refused: they are not JSON."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair: an escape can carry it
        return json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text


def _text(envelope: Mapping[str, Any], name: str) -> str | None:
    value = envelope.get(name)
    return value if isinstance(value, str) and value else None


def _integer(envelope: Mapping[str, Any], name: str) -> int | None:
    value = envelope.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else None
