"""`Client`: the same methods as `AsyncClient` for code without an event loop."""

from __future__ import annotations

import atexit
import sys
import threading
import weakref
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Coroutine,
    Generator,
    Iterable,
    Mapping,
    Sequence,
)
from concurrent.futures import CancelledError, Future
from types import TracebackType
from typing import Any, Literal, NoReturn, Self, TypeVar, overload
from warnings import warn

from coffre.client._checks import check_listing
from coffre.client._door import CLOSE_SECONDS
from coffre.client._loop_thread import LoopThread
from coffre.client._sources import ObjectData, StrPath
from coffre.client.async_client import AsyncClient
from coffre.client.model import ListPage, ObjectInfo, RecodeReport, ShardPlace
from coffre.cluster.errors import Cancelled, CoffreError, InvalidArgument
from coffre.cluster.transport import OwnProcess

__all__ = ["Client"]

_T = TypeVar("_T")
_EXIT_SECONDS = 1.0  # that calls under way get when the interpreter ends
_open: weakref.WeakSet[Client] = weakref.WeakSet()


class Client:
    """Runs an `AsyncClient` on an event loop in a thread of its own. Safe to use from several threads.

    `close` may be called from any thread, also while others are in calls. A client that is still open when the
    interpreter ends is closed then.
    """

    def __init__(self, connect: Callable[[], Awaitable[AsyncClient]]) -> None:
        self._is_closed = True
        self._lock = threading.RLock()  # no call begins behind a `close`
        self._thread = LoopThread("coffre-client")
        self._process = OwnProcess("this client", self._thread)
        try:
            self._client: AsyncClient = self._thread.submit(_await(connect())).result()
        except BaseException:
            self._thread.stop()
            raise
        self._is_closed = False
        _open.add(self)

    def _run(self, call: Coroutine[Any, Any, _T]) -> _T:  # a coroutine's send type is nobody's concern
        future = self._submit(call)
        try:
            return future.result()
        except CancelledError:
            raise Cancelled("the client was closed during the call") from None
        except BaseException:
            future.cancel()  # an interrupt ends the call, not only the wait for it
            raise

    def _submit(self, call: Coroutine[Any, Any, _T]) -> Future[_T]:
        try:
            self._process.check()
            if self._thread.is_current:
                raise InvalidArgument(
                    "a call of the sync Client cannot be made by what it calls itself (progress, a KeyProvider, an "
                    "async source): it would wait for itself"
                )
            with self._lock:
                if self._is_closed:
                    raise InvalidArgument("this client is closed")
                return self._thread.submit(call)
        except BaseException:
            call.close()
            raise

    def _check(self) -> None:
        """Raise `InvalidArgument` where this client cannot be used."""
        self._process.check()
        if self._is_closed:
            raise InvalidArgument("this client is closed")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_is_closed", True) or not self._process.is_this or sys.is_finalizing():
            return
        warn(f"a coffre client of tenant {self._client.tenant} was not closed", ResourceWarning, stacklevel=2)
        self._is_closed = True
        self._thread.stop_later(self._client.aclose(timeout=0))

    def __reduce__(self) -> NoReturn:
        raise TypeError("a client cannot be pickled: connect in each process")

    def close(self, *, timeout: float = CLOSE_SECONDS) -> None:
        """Close the connections. Calls of other threads get `timeout` seconds; then they end with `Cancelled`, writes
        with `OutcomeUnknown`. Later calls raise `InvalidArgument`. A second time, or after a fork, nothing is done."""
        if not self._process.is_this:
            return
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
        _open.discard(self)
        if self._thread.is_current:  # called by what a call calls: it ends once that has returned
            self._thread.stop_later(self._client.aclose(timeout=timeout))
            return
        try:
            self._thread.submit(self._client.aclose(timeout=timeout)).result()
        finally:
            self._thread.stop()

    def flush(self, *, timeout: float | None = None) -> None:
        self._run(self._client.flush(timeout=timeout))

    def put(
        self,
        bucket: str,
        key: str,
        data: ObjectData,
        *,
        content_type: str = "",
        metadata: Mapping[str, str] | None = None,
        if_absent: bool = False,
        if_version: str | None = None,
        timeout: float | None = None,
    ) -> ObjectInfo:
        return self._run(
            self._client.put(
                bucket,
                key,
                data,
                content_type=content_type,
                metadata=metadata,
                if_absent=if_absent,
                if_version=if_version,
                timeout=timeout,
            )
        )

    def put_file(
        self,
        bucket: str,
        key: str,
        path: StrPath,
        *,
        content_type: str = "",
        metadata: Mapping[str, str] | None = None,
        if_absent: bool = False,
        if_version: str | None = None,
        progress: Callable[[int], None] | None = None,
        timeout: float | None = None,
    ) -> ObjectInfo:
        return self._run(
            self._client.put_file(
                bucket,
                key,
                path,
                content_type=content_type,
                metadata=metadata,
                if_absent=if_absent,
                if_version=if_version,
                progress=progress,
                timeout=timeout,
            )
        )

    def put_many(
        self, bucket: str, items: Iterable[tuple[str, bytes]], *, timeout: float | None = None
    ) -> list[ObjectInfo | CoffreError]:
        return self._run(self._client.put_many(bucket, items, timeout=timeout))

    def delete(
        self, bucket: str, key: str, *, if_version: str | None = None, timeout: float | None = None
    ) -> ObjectInfo:
        return self._run(self._client.delete(bucket, key, if_version=if_version, timeout=timeout))

    def create_bucket(self, bucket: str, *, policy: str = "", timeout: float | None = None) -> None:
        self._run(self._client.create_bucket(bucket, policy=policy, timeout=timeout))

    def list_buckets(self, *, timeout: float | None = None) -> list[str]:
        return self._run(self._client.list_buckets(timeout=timeout))

    def used_buckets(self, *, timeout: float | None = None) -> list[str]:
        return self._run(self._client.used_buckets(timeout=timeout))

    def delete_bucket(self, bucket: str, *, timeout: float | None = None) -> None:
        self._run(self._client.delete_bucket(bucket, timeout=timeout))

    def recode(
        self,
        bucket: str,
        *,
        dry_run: bool = False,
        bytes_per_second: float | None = None,
        progress: Callable[[RecodeReport], None] | None = None,
        timeout: float | None = None,
    ) -> RecodeReport:
        return self._run(
            self._client.recode(
                bucket,
                dry_run=dry_run,
                bytes_per_second=bytes_per_second,
                progress=progress,
                timeout=timeout,
            )
        )

    def get(
        self,
        bucket: str,
        key: str,
        *,
        start: int = 0,
        length: int | None = None,
        version: str | None = None,
        timeout: float | None = None,
    ) -> bytes:
        return self._run(
            self._client.get(bucket, key, start=start, length=length, version=version, timeout=timeout)
        )

    def get_stream(
        self,
        bucket: str,
        key: str,
        *,
        start: int = 0,
        length: int | None = None,
        version: str | None = None,
        timeout: float | None = None,
    ) -> Generator[bytes | memoryview]:
        self._check()
        return self._iterate(
            self._client.get_stream(bucket, key, start=start, length=length, version=version, timeout=timeout)
        )

    def get_file(
        self,
        bucket: str,
        key: str,
        path: StrPath,
        *,
        start: int = 0,
        length: int | None = None,
        version: str | None = None,
        progress: Callable[[int], None] | None = None,
        timeout: float | None = None,
    ) -> int:
        return self._run(
            self._client.get_file(
                bucket,
                key,
                path,
                start=start,
                length=length,
                version=version,
                progress=progress,
                timeout=timeout,
            )
        )

    def get_many(
        self, bucket: str, keys: Iterable[str], *, timeout: float | None = None
    ) -> list[bytes | CoffreError]:
        return self._run(self._client.get_many(bucket, keys, timeout=timeout))

    def head(
        self, bucket: str, key: str, *, version: str | None = None, timeout: float | None = None
    ) -> ObjectInfo:
        return self._run(self._client.head(bucket, key, version=version, timeout=timeout))

    def versions(self, bucket: str, key: str, *, timeout: float | None = None) -> list[ObjectInfo]:
        return self._run(self._client.versions(bucket, key, timeout=timeout))

    def list_page(
        self,
        bucket: str,
        *,
        prefix: str = "",
        delimiter: str = "",
        token: str | None = None,
        limit: int = 1000,
        timeout: float | None = None,
    ) -> ListPage:
        return self._run(
            self._client.list_page(
                bucket, prefix=prefix, delimiter=delimiter, token=token, limit=limit, timeout=timeout
            )
        )

    @overload
    def list(
        self,
        bucket: str,
        *,
        prefix: str = "",
        delimiter: Literal[""] = "",
        page_size: int = 1000,
        timeout: float | None = None,
    ) -> Generator[ObjectInfo]: ...

    @overload
    def list(
        self,
        bucket: str,
        *,
        prefix: str = "",
        delimiter: str,
        page_size: int = 1000,
        timeout: float | None = None,
    ) -> Generator[ObjectInfo | str]: ...

    def list(
        self,
        bucket: str,
        *,
        prefix: str = "",
        delimiter: str = "",
        page_size: int = 1000,
        timeout: float | None = None,
    ) -> Generator[ObjectInfo] | Generator[ObjectInfo | str]:
        self._check()
        check_listing(bucket, prefix, delimiter, page_size, timeout)
        return self._entries(bucket, prefix, delimiter, page_size, timeout)

    def _entries(
        self, bucket: str, prefix: str, delimiter: str, page_size: int, timeout: float | None
    ) -> Generator[ObjectInfo | str]:
        token: str | None = None
        while True:
            page = self.list_page(
                bucket, prefix=prefix, delimiter=delimiter, token=token, limit=page_size, timeout=timeout
            )
            for entry in page.entries:
                self._check()
                yield entry
            if page.next_token is None:
                return
            token = page.next_token

    def locate(
        self, bucket: str, key: str, *, version: str | None = None, timeout: float | None = None
    ) -> Sequence[ShardPlace]:
        return self._run(self._client.locate(bucket, key, version=version, timeout=timeout))

    def _iterate(self, source: AsyncGenerator[_T]) -> Generator[_T]:
        async def step() -> tuple[bool, _T | None]:
            try:
                return True, await anext(source)
            except StopAsyncIteration:
                return False, None

        try:
            while True:
                more, item = self._run(step())
                if not more:
                    return
                yield item  # type: ignore[misc]  # only None when there is no more
        finally:
            if self._process.is_this:  # nobody waits for it: this may be the garbage collector, in any thread
                self._thread.call_soon(source.aclose())


async def _await(call: Awaitable[_T]) -> _T:
    return await call


@atexit.register
def _close_all() -> None:
    """What is still open when the interpreter ends: connections must not outlive what they stand on."""
    for client in list(_open):
        client.close(timeout=_EXIT_SECONDS)


def _say_the_same() -> None:
    """Methods that do what those of `AsyncClient` do say so in their words, for `help` and for editors that ask."""
    for name, method in vars(Client).items():
        if not name.startswith("_") and not method.__doc__:
            method.__doc__ = getattr(AsyncClient, name).__doc__


_say_the_same()
