"""The service side: `pip install wirepost[service]`. For FastAPI and Starlette see `wirepost.service.web`."""

from .app import Push, WirepostApp
from .binding import Binding
from .consumer import Reject
from .dedupe import Dedupe, MemoryDedupe, NoDedupe

__all__ = ["Binding", "Dedupe", "MemoryDedupe", "NoDedupe", "Push", "Reject", "WirepostApp"]
