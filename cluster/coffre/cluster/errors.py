"""The one exception tree of Coffre.

::

    CoffreError
     ├── PermanentError                 trying again unchanged gives the same answer
     │    ├── InvalidArgument           a name, size or option that cannot be
     │    │    └── PolicyViolation      no placement satisfies the storage policy, or the one given breaks it
     │    ├── NotFound                  no such object, version or bucket
     │    ├── AlreadyExists             create-only, and it exists
     │    ├── Conflict                  a newer version stands in the way, or this one was given up
     │    │    ├── PreconditionFailed   the condition of a conditional write does not hold
     │    │    └── NotEmpty             a bucket that is to be deleted holds objects
     │    ├── PermissionDenied          this certificate may not do that
     │    ├── Unauthenticated           no certificate that the cluster knows
     │    ├── KeyUnavailable            the key that wraps this object's data key is not at hand
     │    ├── IntegrityError            the bytes were found, and none of them verify
     │    ├── ConfigurationError        a file or setting of this member is wrong
     │    ├── Unsupported               the other side does not know this operation or format
     │    └── InternalError             a bug; please report it
     └── RetryableError                 the same call may succeed later
          ├── Unavailable               too few nodes answer; nothing was written
          │    ├── NotSent              there is no connection: this message never left
          │    └── OutcomeUnknown       too few nodes answer to say whether the write stands
          │         └── WriteTimedOut   not within the `timeout` of the call (a DeadlineExceeded, too)
          ├── DeadlineExceeded          not within the time given
          ├── ResourceExhausted         a disk or a queue is full
          ├── StaleMap                  this member and a node hold different cluster maps
          ├── ClockSkew                 this member's clock and the node's differ too much, or a message is too old
          ├── ReadAgain                 a watch of coordination fell behind
          └── Cancelled                 the call was cancelled
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Self

import grpc

__all__ = [
    "AlreadyExists",
    "Cancelled",
    "ClockSkew",
    "CoffreError",
    "ConfigurationError",
    "Conflict",
    "DeadlineExceeded",
    "IntegrityError",
    "InternalError",
    "InvalidArgument",
    "KeyUnavailable",
    "NotEmpty",
    "NotFound",
    "NotSent",
    "OutcomeUnknown",
    "PermanentError",
    "PermissionDenied",
    "PolicyViolation",
    "PreconditionFailed",
    "ReadAgain",
    "ResourceExhausted",
    "RetryableError",
    "StaleMap",
    "Unauthenticated",
    "Unavailable",
    "Unsupported",
    "WriteTimedOut",
    "details_of",
    "error_of_status",
]


class CoffreError(Exception):
    """Any error that Coffre raises on purpose; its text is for people. `code`: its gRPC status on the wire (0: none).

    What it is about stands in attributes, None where that does not apply or is not known:

    - `bucket`, `key`, `version`: the object that was asked for; `node`: the id of the node that it comes from;
    - `current_version`: what stands where a condition did not hold;
    - `retry_after`: seconds after which trying again is worth it, a hint of the class: nodes say no times of their own;
    - `details`: for administrators: addresses, and the words of libraries; empty where there are none.
    """

    code: int = 0
    bucket: str | None = None
    key: str | None = None
    version: str | None = None
    node: str | None = None
    current_version: str | None = None
    retry_after: float | None = None
    details: str = ""

    def __init__(
        self,
        *texts: str,
        bucket: str | None = None,
        key: str | None = None,
        version: str | None = None,
        node: str | None = None,
        current_version: str | None = None,
        details: str = "",
    ) -> None:
        super().__init__(*texts)
        self._note(
            bucket=bucket,
            key=key,
            version=version,
            node=node,
            current_version=current_version,
            details=details or None,
        )

    def _note(self, **known: str | None) -> None:
        for name, value in known.items():
            if value is not None and not getattr(self, name):
                setattr(self, name, value)

    def about(self, *, bucket: str | None = None, key: str | None = None, version: str | None = None) -> Self:
        """This error, saying what it is about where it did not yet. A copy: others may have been told the same one."""
        known = {"bucket": bucket, "key": key, "version": version}
        if all(value is None or getattr(self, name) is not None for name, value in known.items()):
            return self
        copied = copy.copy(self)
        copied.__cause__, copied.__suppress_context__ = self.__cause__, self.__suppress_context__
        copied._note(**known)
        return copied.with_traceback(self.__traceback__)


class PermanentError(CoffreError):
    """Trying again unchanged gives the same answer."""


class RetryableError(CoffreError):
    """The same call may succeed later, after `retry_after` seconds or so; longer with every attempt."""

    retry_after: float | None = 1.0


def _code(status: grpc.StatusCode) -> int:
    number: int = status.value[0]
    return number


class InvalidArgument(PermanentError):
    """A name, size or option that cannot be."""

    code = _code(grpc.StatusCode.INVALID_ARGUMENT)


class PolicyViolation(InvalidArgument):
    """No placement satisfies the storage policy, or the one given breaks it. Travels as INVALID_ARGUMENT."""


class NotFound(PermanentError):
    """No such object, version or bucket."""

    code = _code(grpc.StatusCode.NOT_FOUND)


class AlreadyExists(PermanentError):
    """Create-only, and it exists."""

    code = _code(grpc.StatusCode.ALREADY_EXISTS)


class Conflict(PermanentError):
    """A newer version stands in the way of a write, or it was given up."""

    code = _code(grpc.StatusCode.ABORTED)


class PreconditionFailed(Conflict):
    """The condition of a conditional write does not hold. Travels as ABORTED."""


class NotEmpty(Conflict):
    """A bucket that is to be deleted holds objects. Raised by the client alone."""


class PermissionDenied(PermanentError):
    """This certificate may not do that."""

    code = _code(grpc.StatusCode.PERMISSION_DENIED)


class Unauthenticated(PermanentError):
    """No certificate that the cluster knows."""

    code = _code(grpc.StatusCode.UNAUTHENTICATED)


class KeyUnavailable(PermanentError):
    """The key that wraps this object's data key is not at hand. Raised by the client alone."""


class IntegrityError(PermanentError):
    """The bytes were found, and none of them verify."""

    code = _code(grpc.StatusCode.DATA_LOSS)


class ConfigurationError(PermanentError):
    """A file or setting of this member is wrong. Raised locally alone."""


class Unsupported(PermanentError):
    """The other side does not know this operation or format."""

    code = _code(grpc.StatusCode.UNIMPLEMENTED)


class InternalError(PermanentError):
    """A bug; please report it."""

    code = _code(grpc.StatusCode.INTERNAL)


class Unavailable(RetryableError):
    """Too few nodes answer; nothing was written, and nothing will appear later."""

    code = _code(grpc.StatusCode.UNAVAILABLE)


class NotSent(Unavailable):
    """There is no connection to the node, so nothing of this message left. Raised locally alone."""

    code = 0


class OutcomeUnknown(Unavailable):
    """Too few nodes answer to say whether the write stands; read the object to find out."""

    code = 0


class DeadlineExceeded(RetryableError):
    """Not within the time given."""

    code = _code(grpc.StatusCode.DEADLINE_EXCEEDED)


class WriteTimedOut(OutcomeUnknown, DeadlineExceeded):
    """A write that was not done within the `timeout` of its call; read the object to find out. Never travels."""

    code = 0


class ResourceExhausted(RetryableError):
    """A disk or a queue is full."""

    retry_after = 10.0
    code = _code(grpc.StatusCode.RESOURCE_EXHAUSTED)


class StaleMap(RetryableError):
    """This member and a node hold different cluster maps."""

    code = _code(grpc.StatusCode.FAILED_PRECONDITION)


class ClockSkew(RetryableError):
    """This member's clock runs ahead of the node's or far behind it, or its message was under way too long."""

    retry_after = None  # once the clock is set
    code = _code(grpc.StatusCode.OUT_OF_RANGE)


class ReadAgain(RetryableError):
    """What a watch of coordination missed is forgotten: read, and watch from there. Never travels as a status."""


class Cancelled(RetryableError):
    """The call was cancelled."""

    code = _code(grpc.StatusCode.CANCELLED)


_BY_CODE: Mapping[int, type[CoffreError]] = {
    cls.code: cls
    for cls in (
        AlreadyExists,
        Cancelled,
        ClockSkew,
        Conflict,
        DeadlineExceeded,
        IntegrityError,
        InternalError,
        InvalidArgument,
        NotFound,
        PermissionDenied,
        ResourceExhausted,
        StaleMap,
        Unauthenticated,
        Unavailable,
        Unsupported,
    )
} | {_code(grpc.StatusCode.UNKNOWN): InternalError}


def details_of(errors: Iterable[CoffreError]) -> str:
    """What several errors say to administrators, each thing once: for the one that sums them up."""
    return "; ".join(dict.fromkeys(error.details for error in errors if error.details))


def error_of_status(code: int, detail: str, *, node: str | None = None, details: str = "") -> CoffreError:
    """Return the error that gRPC status `code` (1..16) stands for, with `detail` as its text.

    `node`: the id of the node that it comes from. `details`: as of `CoffreError`.
    """
    return _BY_CODE[code](detail, node=node, details=details)
