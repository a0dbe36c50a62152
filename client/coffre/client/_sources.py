"""What callers hand over to be stored: bytes, files, what can be read or iterated; in pieces of a MiB, and checked.

What can seek is read again from where it began when that is needed. A source that blocks is read in a thread of its
own. It is a daemon, so a source that never gives anything more keeps neither `close` nor the end of the interpreter
waiting.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import queue
import stat
import threading
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, aclosing, nullcontext, suppress
from pathlib import Path
from typing import BinaryIO, Protocol, TypeVar

from coffre.client._checks import kind_of
from coffre.cluster.errors import InvalidArgument

__all__ = [
    "ObjectData",
    "Readable",
    "ReadableSource",
    "StrPath",
    "closing",
    "file_chunks",
    "path_of",
    "source_of",
]

PIECE_BYTES = 1 << 20
_T = TypeVar("_T")
_END = object()

StrPath = str | os.PathLike[str]


class Readable(Protocol):
    """A file, a socket's file, an upload; `async` or not."""

    def read(self, size: int, /) -> bytes | Awaitable[bytes]:
        """At most `size` bytes, and none at the end."""


ObjectData = bytes | bytearray | memoryview | Readable | Iterable[bytes] | AsyncIterable[bytes]


def path_of(path: StrPath) -> Path:
    """Raises `InvalidArgument` for what is no path."""
    found = os.fspath(path) if isinstance(path, str | os.PathLike) else path
    if not isinstance(found, str):
        raise InvalidArgument(f"a path is text or a pathlib.Path, not {kind_of(path)}")
    if not found:
        raise InvalidArgument("an empty path names no file")
    if "\0" in found:
        raise InvalidArgument("the path of a file has no NUL")
    return Path(found)


def source_of(data: object) -> bytes | memoryview | AsyncGenerator[bytes] | ReadableSource:
    """`ObjectData` as bytes, or as a stream of bytes. Raises `InvalidArgument`, the stream too, for what gives none."""
    if isinstance(data, str):
        raise InvalidArgument("data is text: encode it first, or use put_file for the path of a file")
    if callable(getattr(data, "read", None)):
        return ReadableSource(data)  # type: ignore[arg-type]  # just seen; what it returns is looked at
    if (flat := _flat(data)) is not None:
        return flat
    if isinstance(data, AsyncIterable):
        return _drawn(data)
    if isinstance(data, Iterable):
        return _iterated(iter(data))
    raise InvalidArgument(f"data is bytes, has read(n), or yields bytes; this is {kind_of(data)}")


def closing(source: object) -> AbstractAsyncContextManager[object]:
    """Closes a stream at the end, whether it was read to its own end or not."""
    return aclosing(source) if isinstance(source, AsyncGenerator | ReadableSource) else nullcontext()


def _flat(data: object) -> bytes | memoryview | None:
    """A buffer as a row of bytes; None for what is no buffer."""
    if isinstance(data, bytes):
        return data
    try:
        view = memoryview(data)  # type: ignore[arg-type]  # that is the question
    except TypeError:
        return None
    return view.cast("B") if view.c_contiguous and view.ndim else view.tobytes()


def _checked(chunk: object, gave: str) -> bytes:
    flat = None if chunk is None else _flat(chunk)
    if flat is None:
        hint = ": open it in binary mode" if isinstance(chunk, str) and gave == "read(n)" else ""
        raise InvalidArgument(
            f"{gave} gave {kind_of(chunk)} where bytes are wanted{hint}; nothing was stored"
        )
    return flat  # type: ignore[return-value]  # or a view: all that follow take any row of bytes


async def _drawn(chunks: AsyncIterable[object]) -> AsyncGenerator[bytes]:
    async for chunk in chunks:
        yield _checked(chunk, "the iterable")


async def _iterated(chunks: Iterator[object]) -> AsyncGenerator[bytes]:
    """Many small chunks make one piece: a thread's turn costs more than a line of text is worth."""

    def piece() -> bytes | None:
        gathered: list[bytes] = []
        size_bytes = 0
        while size_bytes < PIECE_BYTES:
            chunk = next(chunks, _END)
            if chunk is _END:
                return b"".join(gathered) if gathered else None
            gathered.append(_checked(chunk, "the iterable"))
            size_bytes += len(gathered[-1])
            if isinstance(chunk, bytearray | memoryview):
                gathered[-1] = bytes(gathered[-1])  # its owner may fill it again for the next one
        return b"".join(gathered)

    with _Thread() as thread:
        while (found := await thread.run(piece)) is not None:
            yield found


class ReadableSource:
    """What has `read(n)`, as a stream of bytes. One that can seek may be read again from where it began."""

    def __init__(self, source: Readable) -> None:
        self._source = source
        self._waits_for_nobody = inspect.iscoroutinefunction(source.read)
        self._thread: _Thread | None = None
        self._begun_at: object = None  # what `tell` said; None: there is no way back, or nothing was read yet
        self._pieces: AsyncGenerator[bytes] | None = None

    def __aiter__(self) -> AsyncGenerator[bytes]:
        self._pieces = self._read()
        return self._pieces

    async def _read(self) -> AsyncGenerator[bytes]:
        if self._begun_at is None:
            self._begun_at = await self._place()
        while len(chunk := _checked(await self._call(lambda: self._source.read(PIECE_BYTES)), "read(n)")):
            yield chunk

    async def rewind(self) -> bool:
        """Go back to where the first read began; whether that was possible. What is read next begins there."""
        if self._begun_at is None:
            return False
        await self._leave()
        try:
            await self._call(lambda: self._source.seek(self._begun_at))  # type: ignore[attr-defined]  # it had `tell`
        except (AttributeError, OSError, TypeError, ValueError):  # whatever those who do not mean it raise
            return False
        return True

    async def aclose(self) -> None:
        """Use it no more. The source is its owner's."""
        await self._leave()
        if self._thread is not None:
            self._thread.end()

    async def _leave(self) -> None:
        if self._pieces is not None:
            await self._pieces.aclose()

    async def _place(self) -> object:
        """Where it is now; None for what cannot seek, such as a pipe."""
        source = self._source
        try:
            if not callable(source.seek):  # type: ignore[attr-defined]  # that is the question
                return None
            if callable(can := getattr(source, "seekable", None)) and not await self._call(can):
                return None
            return await self._call(source.tell)  # type: ignore[attr-defined]
        except (AttributeError, OSError, TypeError, ValueError):
            return None

    async def _call(self, call: Callable[[], object]) -> object:
        """One after another, in a thread unless the source's own calls are coroutines."""
        if self._waits_for_nobody:
            found = call()
        else:
            if self._thread is None:
                self._thread = _Thread()
            found = await self._thread.run(call)
        return await found if inspect.isawaitable(found) else found


async def file_chunks(path: StrPath, progress: Callable[[int], None] | None = None) -> AsyncGenerator[bytes]:
    """The content of a file. Raises `InvalidArgument` when it cannot be read, or is not the same at the end."""
    name = path_of(path)
    with _Thread() as thread:
        try:
            file = await thread.run(lambda: name.open("rb", buffering=0))
            try:
                async for chunk in _same(file, name, thread):
                    yield chunk
                    if progress is not None:
                        progress(len(chunk))
            finally:
                thread.post(file.close)
        except OSError as error:
            raise InvalidArgument(f"cannot read {name}: {error.strerror or type(error).__name__}") from None


async def _same(file: BinaryIO, name: Path, thread: _Thread) -> AsyncGenerator[bytes]:
    """Read a file to its end, and see that nobody wrote to it meanwhile."""
    before = await thread.run(lambda: os.fstat(file.fileno()))
    read_bytes = 0
    while chunk := await thread.run(lambda: file.read(PIECE_BYTES)):
        read_bytes += len(chunk)
        yield chunk
    after = await thread.run(lambda: os.fstat(file.fileno()))
    if not stat.S_ISREG(before.st_mode):
        return
    # Files of /proc have no size, whatever they hold.
    whole = read_bytes == before.st_size or not before.st_size
    if not whole or (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise InvalidArgument(
            f"{name} changed while it was read ({before.st_size} bytes at first, {after.st_size} at the end); "
            "nothing was stored: put it again once nobody writes to it"
        )


class _Thread:
    """Blocking calls, one after another, in a daemon thread that lives as long as its source is read."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._loop = asyncio.get_running_loop()
        threading.Thread(target=self._work, args=(self._calls,), name="coffre-source", daemon=True).start()

    def __enter__(self) -> _Thread:
        return self

    def __exit__(self, *exception: object) -> None:
        self.end()

    def end(self) -> None:
        """Once what it was asked for is done."""
        self._calls.put(None)

    def __del__(self) -> None:
        self._calls.put(None)  # of a stream that nobody read to its end, nor closed

    @staticmethod
    def _work(calls: queue.SimpleQueue[Callable[[], None] | None]) -> None:
        while (call := calls.get()) is not None:
            call()

    def post(self, call: Callable[[], object]) -> None:
        """Have something done behind what is being done; nobody hears how it went."""

        def quietly() -> None:
            with suppress(OSError):
                call()

        self._calls.put(quietly)

    async def run(self, call: Callable[[], _T]) -> _T:
        done: asyncio.Future[_T] = self._loop.create_future()

        def settle(result: _T | None, error: BaseException | None) -> None:
            if done.done():
                return  # nobody waits for it any more
            if error is None:
                done.set_result(result)  # type: ignore[arg-type]  # of a call that has returned
            else:
                done.set_exception(error)

        def work() -> None:
            result: _T | None = None
            failure: BaseException | None = None
            try:
                result = call()
            except StopIteration as error:  # it would end whoever waits, not tell them
                failure = RuntimeError("the source raised StopIteration")
                failure.__cause__ = error
            except BaseException as error:  # noqa: BLE001 - for the caller, whatever it is
                failure = error
            with suppress(RuntimeError):  # the loop has ended, and all who waited with it
                self._loop.call_soon_threadsafe(settle, result, failure)

        self._calls.put(work)
        return await done
