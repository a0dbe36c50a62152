"""`Client`: the same methods as `AsyncClient` for code without an event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from coffre.client._sources import ObjectData, StrPath
from coffre.client.async_client import AsyncClient
from coffre.client.model import ListPage, ObjectInfo, RecodeReport, ShardPlace
from coffre.cluster.errors import CoffreError, InvalidArgument

__all__ = ["Client"]

_T = TypeVar("_T")


class Client:
    """Runs an `AsyncClient` on an event loop in a thread of its own. Safe to use from several threads."""

    def __init__(self, connect: Callable[[], Awaitable[AsyncClient]]) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="coffre-client", daemon=True)
        self._thread.start()
        try:
            self._client: AsyncClient = self._run(_await(connect()))
        except BaseException:
            self._stop()
            raise

    def _run(self, call: Coroutine[Any, Any, _T]) -> _T:  # a coroutine's send type is nobody's concern
        if self._loop.is_closed():
            call.close()
            raise InvalidArgument("this client is closed")
        future = asyncio.run_coroutine_threadsafe(call, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # an interrupt ends the call, not only the wait for it
            raise

    def _stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self._loop.shutdown_asyncgens(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Finish what is under way and close the connections. A second call does nothing."""
        if self._loop.is_closed():
            return
        try:
            self._run(self._client.aclose())
        finally:
            self._stop()

    def flush(self) -> None:
        self._run(self._client.flush())

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
            )
        )

    def put_many(self, bucket: str, items: Iterable[tuple[str, bytes]]) -> list[ObjectInfo | CoffreError]:
        return self._run(self._client.put_many(bucket, items))

    def delete(self, bucket: str, key: str, *, if_version: str | None = None) -> ObjectInfo:
        return self._run(self._client.delete(bucket, key, if_version=if_version))

    def create_bucket(self, bucket: str, *, policy: str = "") -> None:
        self._run(self._client.create_bucket(bucket, policy=policy))

    def list_buckets(self) -> list[str]:
        return self._run(self._client.list_buckets())

    def delete_bucket(self, bucket: str) -> None:
        self._run(self._client.delete_bucket(bucket))

    def recode(
        self,
        bucket: str,
        *,
        dry_run: bool = False,
        bytes_per_second: float | None = None,
        progress: Callable[[RecodeReport], None] | None = None,
    ) -> RecodeReport:
        return self._run(
            self._client.recode(bucket, dry_run=dry_run, bytes_per_second=bytes_per_second, progress=progress)
        )

    def get(
        self, bucket: str, key: str, *, start: int = 0, length: int | None = None, version: str | None = None
    ) -> bytes:
        return self._run(self._client.get(bucket, key, start=start, length=length, version=version))

    def get_stream(
        self, bucket: str, key: str, *, start: int = 0, length: int | None = None, version: str | None = None
    ) -> Iterator[bytes | memoryview]:
        return self._iterate(
            self._client.get_stream(bucket, key, start=start, length=length, version=version)
        )

    def get_file(
        self,
        bucket: str,
        key: str,
        path: Path,
        *,
        start: int = 0,
        length: int | None = None,
        version: str | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> int:
        return self._run(
            self._client.get_file(
                bucket, key, path, start=start, length=length, version=version, progress=progress
            )
        )

    def get_many(self, bucket: str, keys: Iterable[str]) -> list[bytes | CoffreError]:
        return self._run(self._client.get_many(bucket, keys))

    def head(self, bucket: str, key: str, *, version: str | None = None) -> ObjectInfo:
        return self._run(self._client.head(bucket, key, version=version))

    def versions(self, bucket: str, key: str) -> list[ObjectInfo]:
        return self._run(self._client.versions(bucket, key))

    def list_page(
        self,
        bucket: str,
        *,
        prefix: str = "",
        delimiter: str = "",
        token: str | None = None,
        limit: int = 1000,
    ) -> ListPage:
        return self._run(
            self._client.list_page(bucket, prefix=prefix, delimiter=delimiter, token=token, limit=limit)
        )

    def list(
        self, bucket: str, *, prefix: str = "", delimiter: str = "", page_size: int = 1000
    ) -> Iterator[ObjectInfo | str]:
        return self._iterate(
            self._client.list(bucket, prefix=prefix, delimiter=delimiter, page_size=page_size)
        )

    def locate(self, bucket: str, key: str, *, version: str | None = None) -> Sequence[ShardPlace]:
        return self._run(self._client.locate(bucket, key, version=version))

    def _iterate(self, source: AsyncIterator[_T]) -> Iterator[_T]:
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
            close = getattr(source, "aclose", None)
            if close is not None and not self._loop.is_closed():
                self._run(close())


async def _await(call: Awaitable[_T]) -> _T:
    return await call
