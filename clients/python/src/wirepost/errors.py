"""What can go wrong, typed. Every exception of this package is a `WirepostError`."""

from __future__ import annotations


class WirepostError(Exception):
    """Base of all exceptions of this package."""


class Rejected(WirepostError):
    """A message that a client sent was not taken, or its fate is unknown.

    `code` is that of the edge's `nack`, or one of this library's own: `closed`, `aborted`, `queue_full`, `no_answer`,
    `too_large`.
    """

    def __init__(self, code: str, reason: str, *, retryable: bool = False, may_have_arrived: bool = False) -> None:
        super().__init__(f"{code}: {reason}" if reason else code)
        self.code = code
        self.reason = reason
        self.retryable = retryable
        """Whether sending it again, with the same id, can help."""
        self.may_have_arrived = may_have_arrived
        """Whether the receiver may have it all the same."""


class TokenRefused(WirepostError):
    """A token call was answered with an error."""

    def __init__(
        self, status: int, description: str = "", *, result: int | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(
            f"the token call was answered with HTTP {status}" + (f": {description}" if description else "")
        )
        self.status = status
        self.description = description
        self.result = result
        """The number of the edge's answer, see the protocol's table; None where the answer had none."""
        self.retry_after = retry_after
        """Seconds to wait, as the answer says."""


class PushFailed(WirepostError):
    """A push of a service was not confirmed by the broker."""

    code = "failed"
    may_have_arrived = False
    retryable = False

    def __init__(self, message_id: str, reason: str) -> None:
        super().__init__(f"push {message_id}: {reason}")
        self.message_id = message_id
        """Repeat the push with this id: clients drop the second copy."""
        self.reason = reason


class PushInvalid(PushFailed):
    """It addresses nobody or can't be written as an envelope. It was not sent."""

    code = "invalid"


class PushUnroutable(PushFailed):
    """The broker returned it: with delivery `Transient` no edge reads the business; else its binding is missing."""

    code = "unroutable"
    retryable = True


class PushRefused(PushFailed):
    """The broker refused it (a negative confirm), or closed the channel because of it."""

    code = "refused"
    retryable = True


class PushUnavailable(PushFailed):
    """There was no connection to the broker in time. It was not sent."""

    code = "unavailable"
    retryable = True


class PushUnconfirmed(PushFailed):
    """It was sent, and no confirm came in time: it may have arrived."""

    code = "unconfirmed"
    may_have_arrived = True
    retryable = True


class BindingError(WirepostError):
    """The Service Binding directory is missing, ambiguous or incomplete."""
