"""The client side: what runs beside a user, a device, a till."""

from .client import State, WirepostClient
from .cursor import CursorStore, FileCursorStore, MemoryCursorStore
from .inbox import Gap
from .outbox import Pending
from .waits import Timing

__all__ = ["CursorStore", "FileCursorStore", "Gap", "MemoryCursorStore", "Pending", "State", "Timing", "WirepostClient"]
