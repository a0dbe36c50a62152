"""What callers hand over to be stored: read in large pieces whatever it is, refused when it gives no bytes, and files
that somebody writes to meanwhile are not stored torn."""

from __future__ import annotations

import array
import asyncio
import io
import os
import random
import threading
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from coffre.client import AsyncClient, Client
from coffre.cluster.errors import InvalidArgument, NotFound
from coffre.dev.in_process import InProcessCluster

MIB = 1 << 20
LINES = b"".join(b'{"resourceType": "Observation", "id": "%d"}\n' % i for i in range(60_000))


class Counting(io.BytesIO):
    """A file in memory that knows how it was asked."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.asked: list[int | None] = []

    def read(self, size: int | None = -1, /) -> bytes:
        self.asked.append(size)
        return super().read(size)

    def __next__(self) -> bytes:
        raise AssertionError("it was read by line")


@pytest.fixture
def sync_client(cluster: InProcessCluster) -> Iterator[Client]:
    async def connect() -> AsyncClient:
        return cluster.client()

    with Client(connect) as made:
        yield made
    cluster.clients.clear()


async def nothing_is_stored(cluster: InProcessCluster, client: AsyncClient, key: str = "k") -> bool:
    await client.flush()
    with pytest.raises(NotFound):
        await client.get("b", key)
    return not sum([(await store.status()).live_bytes for store in cluster.stores.values()])


async def test_what_has_read_is_read_in_pieces_of_a_mib(cluster: InProcessCluster) -> None:
    client = cluster.client()
    source = Counting(LINES)
    info = await client.put("b", "k", source)
    assert info.size_bytes == len(LINES)
    assert set(source.asked) == {MIB}
    assert len(source.asked) <= len(LINES) // MIB + 2
    assert await client.get("b", "k") == LINES


def test_both_faces_read_files(sync_client: Client, tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(LINES)
    for source in (path.open("rb"), path.open("rb", buffering=0), Counting(LINES)):
        with source:
            assert sync_client.put("b", "k", source).size_bytes == len(LINES)
        assert sync_client.get("b", "k") == LINES


async def test_a_read_that_is_a_coroutine_is_awaited(cluster: InProcessCluster) -> None:
    class Upload:
        """As web frameworks have them; it can be iterated by line, too."""

        def __init__(self) -> None:
            self.file = Counting(LINES)

        async def read(self, size: int) -> bytes:
            await asyncio.sleep(0)
            return self.file.read(size)

        def __aiter__(self) -> AsyncIterator[bytes]:
            raise AssertionError("it was read by line")

    client = cluster.client()
    await client.put("b", "k", Upload())
    assert await client.get("b", "k") == LINES


async def test_a_file_without_line_ends_takes_constant_memory(cluster: InProcessCluster) -> None:
    class Zeros:
        """48 MiB without a line end."""

        left = 48

        def read(self, size: int) -> bytes:
            if not self.left:
                return b""
            self.left -= 1
            return bytes(size)

    client = cluster.client()
    tracemalloc.start()
    try:
        await client.put("b", "k", Zeros())
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < 40 * MIB


async def test_many_small_chunks_take_few_turns(
    cluster: InProcessCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = 0
    loop = asyncio.get_running_loop()
    call_soon_threadsafe = loop.call_soon_threadsafe

    def counted(*arguments: object, **options: object) -> asyncio.Handle:
        nonlocal turns
        turns += 1
        return call_soon_threadsafe(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "call_soon_threadsafe", counted)
    await cluster.client().put("b", "k", LINES.splitlines(keepends=True))
    assert turns < 50
    assert await cluster.client().get("b", "k") == LINES


@pytest.mark.parametrize(
    "make",
    [
        lambda: bytearray(LINES),
        lambda: memoryview(LINES),
        lambda: array.array("I", range(9)),
        lambda: memoryview(array.array("I", range(9))),
        lambda: memoryview(b"abcdefgh")[::2],
        lambda: iter([bytearray(b"abc"), memoryview(array.array("H", [1, 2])), b"", b"d"]),
    ],
    ids=["bytearray", "memoryview", "array", "items of four bytes", "with gaps", "iterable of buffers"],
)
async def test_whatever_is_a_row_of_bytes(cluster: InProcessCluster, make: Callable[[], object]) -> None:
    client = cluster.client()
    await client.put("b", "k", make())  # type: ignore[arg-type]
    given = make()
    wanted = b"".join(bytes(part) for part in given) if isinstance(given, Iterator) else None
    if wanted is None:
        wanted = given.tobytes() if isinstance(given, memoryview | array.array) else bytes(given)  # type: ignore[call-overload]
    assert await client.get("b", "k") == wanted


async def test_a_buffer_that_its_owner_fills_again(cluster: InProcessCluster) -> None:
    def filled() -> Iterator[bytes]:
        buffer = bytearray(1000)
        for i in range(5):
            buffer[:] = bytes([i]) * 1000
            yield buffer  # type: ignore[misc]  # any row of bytes

    client = cluster.client()
    await client.put("b", "k", filled())
    assert await client.get("b", "k") == b"".join(bytes([i]) * 1000 for i in range(5))


async def strange(value: object) -> AsyncIterator[object]:
    yield bytes(2 * MIB)
    yield value


NO_BYTES = {
    "text": lambda: "text",
    "none": lambda: None,
    "number": lambda: 7,
    "path": lambda: Path("/etc/hostname"),
    "file of text": lambda: io.StringIO("text" * MIB),
    "list of text": lambda: ["a", "b"],
    "list of numbers": lambda: [1, 2],
    "mapping": lambda: {"a": 1},
    "iterable that yields None": lambda: iter([bytes(2 * MIB), None, b"more"]),
    "iterable that yields text late": lambda: iter([bytes(3 * MIB), "text"]),
    "stream that yields text": lambda: strange("text"),
    "stream that yields None": lambda: strange(None),
}


@pytest.mark.parametrize("name", NO_BYTES)
async def test_what_gives_no_bytes_is_refused_and_nothing_is_stored(
    cluster: InProcessCluster, name: str
) -> None:
    client = cluster.client()
    with pytest.raises(InvalidArgument):
        await client.put("b", "k", NO_BYTES[name]())  # type: ignore[arg-type, no-untyped-call]
    assert await nothing_is_stored(cluster, client)


@pytest.mark.parametrize("name", [name for name in NO_BYTES if not name.startswith("stream")])
def test_the_sync_face_refuses_the_same(sync_client: Client, name: str) -> None:
    """An iterable that yields None is no end."""
    with pytest.raises(InvalidArgument):
        sync_client.put("b", "k", NO_BYTES[name]())  # type: ignore[arg-type, no-untyped-call]
    with pytest.raises(NotFound):
        sync_client.get("b", "k")


async def test_a_read_that_has_nothing_yet_is_no_end(cluster: InProcessCluster) -> None:
    """What a file without blocking gives."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    client = cluster.client()
    with (
        os.fdopen(reading, "rb", buffering=0) as source,
        os.fdopen(writing, "wb"),
        pytest.raises(InvalidArgument, match=r"read\(n\) gave None"),
    ):
        await client.put("b", "k", source)
    assert await nothing_is_stored(cluster, client)


async def test_a_source_whose_read_raises(cluster: InProcessCluster) -> None:
    class Broken:
        calls = 0

        def read(self, size: int) -> bytes:
            self.calls += 1
            if self.calls > 3:
                raise StopIteration if self.calls > 4 else ConnectionResetError("the peer is gone")
            return bytes(size)

    client, source = cluster.client(), Broken()
    with pytest.raises(ConnectionResetError, match="the peer is gone"):
        await client.put("b", "k", source)
    with pytest.raises(RuntimeError, match="StopIteration"):
        await client.put("b", "k", source)
    assert await nothing_is_stored(cluster, client)


async def test_a_source_that_waits_for_ever_keeps_nobody(cluster: InProcessCluster) -> None:
    """It is read in a thread that ends with the put, and that no interpreter waits for."""
    client, asked, go_on = cluster.client(), threading.Event(), threading.Event()

    class Silent:
        def read(self, size: int) -> bytes:
            asked.set()
            go_on.wait()
            return b""

    putting = asyncio.create_task(client.put("b", "k", Silent()))
    await asyncio.get_running_loop().run_in_executor(None, asked.wait)
    (thread,) = (each for each in threading.enumerate() if each.name == "coffre-source")
    assert thread.daemon
    putting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await putting
    go_on.set()
    await asyncio.get_running_loop().run_in_executor(None, thread.join)


# -------------------------------------------------------------------- files that change


CHANGES: dict[str, Callable[[Path], object]] = {
    "cut": lambda path: os.truncate(path, 100),
    "cut to what was read": lambda path: os.truncate(path, MIB),
    "grown": lambda path: os.truncate(path, 9 * MIB),
    "appended to": lambda path: path.open("ab").write(b"more"),
    "written to in place": lambda path: os.pwrite(os.open(path, os.O_WRONLY), b"x", 3 * MIB),
    "touched": lambda path: os.utime(path, (1, 1)),
}


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("size", [MIB, 4 * MIB, 4 * MIB + 5])
@pytest.mark.parametrize("change", CHANGES)
async def test_a_file_that_changes_while_it_is_read_is_not_stored(
    cluster: InProcessCluster, tmp_path: Path, change: str, size: int
) -> None:
    client, path, done = cluster.client(), tmp_path / "f", False
    path.write_bytes(random.Random(1).randbytes(size))
    os.utime(path, (1_000, 1_000))

    def progress(size_bytes: int) -> None:
        nonlocal done
        if not done:
            done = True
            CHANGES[change](path)

    with pytest.raises(InvalidArgument, match=r"changed while it was read .* nothing was stored"):
        await client.put_file("b", "k", path, progress=progress)
    assert await nothing_is_stored(cluster, client)


async def test_a_file_that_is_replaced_while_it_is_read_is_stored_as_it_was(
    cluster: InProcessCluster, tmp_path: Path
) -> None:
    client, path, content = cluster.client(), tmp_path / "f", random.Random(2).randbytes(3 * MIB + 1)
    path.write_bytes(content)

    def progress(size_bytes: int) -> None:
        (tmp_path / "new").write_bytes(b"new")
        (tmp_path / "new").replace(path)

    await client.put_file("b", "k", path, progress=progress)
    assert await client.get("b", "k") == content


async def test_what_is_no_regular_file_has_no_size(cluster: InProcessCluster, tmp_path: Path) -> None:
    client, fifo = cluster.client(), tmp_path / "fifo"
    os.mkfifo(fifo)
    writer = threading.Thread(target=lambda: fifo.write_bytes(LINES))
    writer.start()
    assert (await client.put_file("b", "k", fifo)).size_bytes == len(LINES)
    writer.join()
    assert (await client.put_file("b", "k", "/proc/self/status")).size_bytes > 0


async def test_files_that_cannot_be_read(cluster: InProcessCluster, tmp_path: Path) -> None:
    client = cluster.client()
    for path, reason in ((tmp_path, "Is a directory"), (tmp_path / "none", "No such file")):
        with pytest.raises(InvalidArgument, match=f"cannot read {path}: {reason}"):
            await client.put_file("b", "k", path)
    for no_path in (b"/etc/hostname", 7, None, "", "a\0b"):
        with pytest.raises(InvalidArgument, match="path"):
            await client.put_file("b", "k", no_path)  # type: ignore[arg-type]
    assert await nothing_is_stored(cluster, client)
