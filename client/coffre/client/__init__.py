"""The client library: compress, encrypt, code, place, write, read.

>>> from coffre.client import connect_sync
>>> with connect_sync() as client:              # doctest: +SKIP
...     client.put("records", "patient/1.json", b"{}")
...     client.get("records", "patient/1.json")
"""

import logging as _logging

from coffre.client._sources import ObjectData
from coffre.client.async_client import AsyncClient
from coffre.client.config import ClientConfig, connect, connect_sync, load_client_config
from coffre.client.keys import KeyProvider, KeyRing, WrappedKey
from coffre.client.model import ClientOptions, ListPage, ObjectInfo, RecodeReport, ShardPlace
from coffre.client.sync_client import Client
from coffre.cluster.errors import (
    AlreadyExists,
    Cancelled,
    ClockSkew,
    CoffreError,
    ConfigurationError,
    Conflict,
    DeadlineExceeded,
    IntegrityError,
    InternalError,
    InvalidArgument,
    KeyUnavailable,
    NotEmpty,
    NotFound,
    NotSent,
    OutcomeUnknown,
    PermanentError,
    PermissionDenied,
    PolicyViolation,
    PreconditionFailed,
    ReadAgain,
    ResourceExhausted,
    RetryableError,
    StaleMap,
    Unauthenticated,
    Unavailable,
    Unsupported,
    WriteTimedOut,
)

__all__ = [
    "AlreadyExists",
    "AsyncClient",
    "Cancelled",
    "Client",
    "ClientConfig",
    "ClientOptions",
    "ClockSkew",
    "CoffreError",
    "ConfigurationError",
    "Conflict",
    "DeadlineExceeded",
    "IntegrityError",
    "InternalError",
    "InvalidArgument",
    "KeyProvider",
    "KeyRing",
    "KeyUnavailable",
    "ListPage",
    "NotEmpty",
    "NotFound",
    "NotSent",
    "ObjectData",
    "ObjectInfo",
    "OutcomeUnknown",
    "PermanentError",
    "PermissionDenied",
    "PolicyViolation",
    "PreconditionFailed",
    "ReadAgain",
    "RecodeReport",
    "ResourceExhausted",
    "RetryableError",
    "ShardPlace",
    "StaleMap",
    "Unauthenticated",
    "Unavailable",
    "Unsupported",
    "WrappedKey",
    "WriteTimedOut",
    "connect",
    "connect_sync",
    "load_client_config",
]

_logging.getLogger("coffre").addHandler(
    _logging.NullHandler()
)  # silent, unless the application says otherwise
