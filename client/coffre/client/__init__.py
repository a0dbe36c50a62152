"""The client library: compress, encrypt, code, place, write, read.

>>> from coffre.client import connect_sync
>>> with connect_sync() as client:              # doctest: +SKIP
...     client.put("records", "patient/1.json", b"{}")
...     client.get("records", "patient/1.json")
"""

import logging as _logging

from coffre.client.async_client import AsyncClient
from coffre.client.config import ClientConfig, connect, connect_sync, load_client_config
from coffre.client.keys import KeyProvider, KeyRing, WrappedKey
from coffre.client.model import ClientOptions, ListPage, ObjectInfo, RecodeReport, ShardPlace
from coffre.client.sync_client import Client

__all__ = [
    "AsyncClient",
    "Client",
    "ClientConfig",
    "ClientOptions",
    "KeyProvider",
    "KeyRing",
    "ListPage",
    "ObjectInfo",
    "RecodeReport",
    "ShardPlace",
    "WrappedKey",
    "connect",
    "connect_sync",
    "load_client_config",
]

_logging.getLogger("coffre").addHandler(
    _logging.NullHandler()
)  # silent, unless the application says otherwise
