"""How long a client waits: the numbers of the protocol, and the waits between attempts."""

from __future__ import annotations

import random
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Timing:
    """The protocol's waits, in seconds. Change them in tests only: they protect the edges from floods."""

    ping_after: float = 20.0
    """Silence until a ping."""
    pong_within: float = 15.0
    """What a ping is given before the connection counts as dead."""
    hint_pong_within: float = 5.0
    """The same after `check()`."""
    connect_within: float = 10.0
    """For a token call; for connecting until the socket is open; and again until `welcome`."""
    stable_after: float = 5.0
    """A connection that lasts so long resets the waits."""
    fast_first: float = 0.5
    fast_max: float = 30.0
    slow_first: float = 30.0
    slow_max: float = 900.0
    nack_first: float = 1.0
    """Wait before a repeat after a retryable `nack` that names none."""
    nack_max: float = 30.0


RETRY_AFTER_MAX = 900.0
PATIENCE_MAX = 60.0
HANDLER_FIRST, HANDLER_MAX = 0.5, 5.0


@dataclass
class Waits:
    """Waits between attempts to connect, with jitter: the clients of a dead edge do not return in step."""

    timing: Timing
    random: random.Random = field(default_factory=random.Random)
    failures: int = 0
    slow: int = 0

    def lasted(self, seconds: float) -> None:
        """A connection was open for so long."""
        if seconds >= self.timing.stable_after:
            self.failures = self.slow = 0

    def next(self, *, slowly: bool, retry_after: float | None = None) -> float:
        """Seconds until the next attempt."""
        if slowly:
            longest = min(self.timing.slow_max, self.timing.slow_first * 2.0 ** min(self.slow, 60))
            self.slow += 1
            wait = self.random.uniform(longest / 2, longest)
        else:
            longest = min(self.timing.fast_max, self.timing.fast_first * 2.0 ** min(self.failures, 60))
            self.failures += 1
            wait = self.random.uniform(0, longest)
        return wait + min(max(retry_after or 0.0, 0.0), RETRY_AFTER_MAX)

    def nack(self, refusals: int) -> float:
        """Seconds until a message that was refused so many times is repeated."""
        return self._half(self.timing.nack_first, self.timing.nack_max, refusals)

    def handler(self, failures: int) -> float:
        """Seconds until a handler that failed so many times with a message is called again."""
        return self._half(HANDLER_FIRST, HANDLER_MAX, failures)

    def _half(self, first: float, most: float, times: int) -> float:
        longest = min(most, first * 2.0 ** min(times - 1, 60))
        return self.random.uniform(longest / 2, longest)
