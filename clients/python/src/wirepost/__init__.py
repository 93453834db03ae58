"""wirepost: a client of its edges, and (`wirepost.service`) a service of a business."""

from .client import CursorStore, FileCursorStore, Gap, MemoryCursorStore, Pending, State, Timing, WirepostClient
from .errors import (
    BindingError,
    PushFailed,
    PushInvalid,
    PushRefused,
    PushUnavailable,
    PushUnconfirmed,
    PushUnroutable,
    Rejected,
    TokenRefused,
    WirepostError,
)
from .message import EVERYONE, Message
from .tokens import HttpToken, TokenSource

__version__ = "0.1.0"

__all__ = [
    "EVERYONE",
    "BindingError",
    "CursorStore",
    "FileCursorStore",
    "Gap",
    "HttpToken",
    "MemoryCursorStore",
    "Message",
    "Pending",
    "PushFailed",
    "PushInvalid",
    "PushRefused",
    "PushUnavailable",
    "PushUnconfirmed",
    "PushUnroutable",
    "Rejected",
    "State",
    "Timing",
    "TokenRefused",
    "TokenSource",
    "WirepostClient",
    "WirepostError",
]
