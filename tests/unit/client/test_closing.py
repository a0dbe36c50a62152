"""The end of a client while it is at work: calls under way end with an error or their result, later ones say that it is
closed, and no thread, callback or garbage collector is left waiting."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from coffre.client import AsyncClient, Client
from coffre.cluster.errors import (
    Cancelled,
    CoffreError,
    DeadlineExceeded,
    InvalidArgument,
    OutcomeUnknown,
    RetryableError,
    WriteTimedOut,
)
from coffre.dev.in_process import InProcessCluster, Traffic, in_process_cluster

from tests.patience import PATIENCE_SECONDS

MIB = 1 << 20


class Hanging:
    """A network that takes everything and answers nothing, from when it is told to."""

    def __init__(self, cluster: InProcessCluster) -> None:
        self.begun = threading.Event()
        self._cluster = cluster

    def begin(self) -> None:
        async def hang(node: int, message: Traffic) -> None:
            self.begun.set()
            await asyncio.Event().wait()

        self._cluster.network.before = hang


@pytest.fixture
def network() -> InProcessCluster:
    return in_process_cluster(4, 2)


@pytest.fixture
def client(network: InProcessCluster) -> Iterator[Client]:
    async def connect() -> AsyncClient:
        return network.client()

    with Client(connect) as made:
        made.put("b", "small", b"x")
        made.put("b", "large", bytes(3 * MIB))
        made.flush()
        yield made


def threads() -> list[str]:
    """Those of clients, and of what they read; coders end in their own time, and soon."""
    names = [thread.name for thread in threading.enumerate()]
    return [name for name in names if name in {"coffre-client", "coffre-source"}]


def drained(source: Iterator[object]) -> list[object]:
    return list(source)


CALLS: dict[str, Callable[[Client], object]] = {
    "get": lambda client: client.get("b", "small"),
    "get of a large one": lambda client: client.get("b", "large"),
    "get_stream": lambda client: drained(client.get_stream("b", "large")),
    "get_many": lambda client: client.get_many("b", ["small", "large"]),
    "head": lambda client: client.head("b", "small"),
    "versions": lambda client: client.versions("b", "small"),
    "list": lambda client: drained(client.list("b")),
    "list_page": lambda client: client.list_page("b"),
    "locate": lambda client: client.locate("b", "small"),
    "put": lambda client: client.put("b", "new", b"y"),
    "put of a large one": lambda client: client.put("b", "new", bytes(5 * MIB)),
    "put of a stream": lambda client: client.put("b", "new", iter([bytes(MIB)] * 5)),
    "put_many": lambda client: client.put_many("b", [("a", b"1"), ("c", b"2")]),
    "delete": lambda client: client.delete("b", "small"),
}
WRITES = {"put", "put of a large one", "put of a stream", "put_many", "delete"}


def outcomes(call: Callable[[Client], object], client: Client) -> list[BaseException]:
    """The errors that a call ends with: those of its parts, or its own."""
    try:
        result = call(client)
    except BaseException as error:  # noqa: BLE001 - it is looked at
        return [error]
    return [part for part in result if isinstance(part, BaseException)] if isinstance(result, list) else []


@pytest.mark.parametrize("name", CALLS)
def test_a_call_of_another_thread_ends(network: InProcessCluster, client: Client, name: str) -> None:
    hanging = Hanging(network)
    hanging.begin()
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(outcomes, CALLS[name], client) for _ in range(4)]
        assert hanging.begun.wait(PATIENCE_SECONDS)
        client.close(timeout=0)
        for call in calls:
            errors = call.result(PATIENCE_SECONDS)
            assert errors
            for error in errors:
                # A thread may be late, and find the door closed; or its nodes may have been given up before.
                assert isinstance(error, RetryableError | InvalidArgument), error
                if isinstance(error, Cancelled):
                    assert name not in WRITES, "of a write it is not known"
    with pytest.raises(InvalidArgument, match="this client is closed"):
        CALLS[name](client)
    assert not threads()


def test_calls_under_way_get_their_time(network: InProcessCluster, client: Client) -> None:
    """`close` lets what is nearly done be done."""
    begun, go_on = threading.Event(), threading.Event()

    async def slow(node: int, message: Traffic) -> None:
        begun.set()
        await asyncio.get_running_loop().run_in_executor(None, go_on.wait)

    network.network.before = slow
    with ThreadPoolExecutor(2) as pool:
        getting = pool.submit(client.get, "b", "small")
        assert begun.wait(PATIENCE_SECONDS)
        closing = pool.submit(client.close, timeout=PATIENCE_SECONDS)
        go_on.set()
        assert getting.result(PATIENCE_SECONDS) == b"x"
        closing.result(PATIENCE_SECONDS)


@pytest.mark.parametrize(
    "begin",
    [
        lambda client: client.get_stream("b", "large"),
        lambda client: client.list("b", page_size=1),
        lambda client: client.list("b"),
        lambda client: client.list("b", delimiter="/"),
    ],
    ids=["stream", "list by page", "list", "list with a delimiter"],
)
def test_a_generator_that_is_half_consumed(
    client: Client, begin: Callable[[Client], Iterator[object]]
) -> None:
    half = begin(client)
    next(half)
    client.close()
    assert not threads()
    with pytest.raises(InvalidArgument, match="this client is closed"):
        next(half)
    other = begin
    with pytest.raises(InvalidArgument, match="this client is closed"):
        other(client)
    del half
    gc.collect()


def test_closing_twice_and_from_two_threads(client: Client) -> None:
    with ThreadPoolExecutor(4) as pool:
        for closing in [pool.submit(client.close) for _ in range(4)]:
            closing.result(PATIENCE_SECONDS)
    client.close()
    assert not threads()


def test_what_a_call_calls_does_not_wait_for_itself(
    client: Client, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A progress function runs in the client's own thread."""
    path = tmp_path_factory.mktemp("files") / "f"
    path.write_bytes(bytes(3 * MIB))
    with pytest.raises(InvalidArgument, match="it would wait for itself"):
        client.put_file("b", "f", path, progress=lambda size_bytes: client.flush())
    with pytest.raises(CoffreError):
        client.put_file("b", "f", path, progress=lambda size_bytes: client.close(timeout=0))
    with pytest.raises(InvalidArgument, match="closed"):
        client.get("b", "small")


def test_a_source_that_waits_for_ever(client: Client) -> None:
    asked, let_go = threading.Event(), threading.Event()

    class Silent:
        def read(self, size: int) -> bytes:
            asked.set()
            let_go.wait()
            return b""

    with ThreadPoolExecutor(1) as pool:
        putting = pool.submit(client.put, "b", "k", Silent())
        assert asked.wait(PATIENCE_SECONDS)
        client.close(timeout=0)
        with pytest.raises(OutcomeUnknown, match="the client was closed"):
            putting.result(PATIENCE_SECONDS)
    (source,) = (each for each in threading.enumerate() if each.name == "coffre-source")
    let_go.set()
    source.join(PATIENCE_SECONDS)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_client_that_is_let_go_ends_its_thread(network: InProcessCluster) -> None:
    async def connect() -> AsyncClient:
        return network.client()

    client = Client(connect)
    client.put("b", "k", b"x")
    half = client.get_stream("b", "k")
    (thread,) = (each for each in threading.enumerate() if each.name == "coffre-client")
    network.clients.clear()
    holder = [client, half]
    del client, half
    with pytest.warns(ResourceWarning, match="was not closed"):
        holder.clear()
    thread.join(PATIENCE_SECONDS)
    assert not thread.is_alive()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_finalizer_may_close(network: InProcessCluster) -> None:
    """In whatever order the garbage collector comes to it and to the client itself."""

    class Holder:
        def __init__(self, client: Client) -> None:
            self.client = client
            self.me = self  # a circle: the garbage collector ends it

        def __del__(self) -> None:
            self.client.close()

    async def connect() -> AsyncClient:
        return network.client()

    Holder(Client(connect))
    (thread,) = (each for each in threading.enumerate() if each.name == "coffre-client")
    gc.collect()
    thread.join(PATIENCE_SECONDS)
    assert not thread.is_alive()


# -------------------------------------------------------------------- the asynchronous face


@pytest.fixture
async def hanging(cluster: InProcessCluster) -> AsyncIterator[AsyncClient]:
    client = cluster.client()
    await client.put("b", "k", bytes(3 * MIB))
    await client.flush()
    Hanging(cluster).begin()
    yield client
    cluster.network.heal()


async def begun(call: asyncio.Task[object]) -> None:
    for _ in range(20):
        await asyncio.sleep(0)
    assert not call.done()


async def test_tasks_in_calls_end_when_the_client_is_closed(hanging: AsyncClient) -> None:
    async def streamed() -> None:
        async for _ in hanging.get_stream("b", "k"):
            pass

    reading = [
        asyncio.create_task(call) for call in (hanging.get("b", "k"), hanging.head("b", "k"), streamed())
    ]
    writing = [asyncio.create_task(call) for call in (hanging.put("b", "n", b"1"), hanging.delete("b", "k"))]
    for task in (*reading, *writing):
        await begun(task)
    await hanging.aclose(timeout=0)
    for task in reading:
        with pytest.raises(Cancelled, match="the client was closed during the call") as read:
            await task
        assert (read.value.bucket, read.value.key) == ("b", "k")
    for task in writing:
        with pytest.raises(OutcomeUnknown, match="the client was closed during the call"):
            await task
    with pytest.raises(InvalidArgument, match="closed"):
        await hanging.get("b", "k")
    await hanging.aclose()


async def test_timeouts(hanging: AsyncClient) -> None:
    with pytest.raises(DeadlineExceeded, match=r"not done within 0\.05 s") as read:
        await hanging.get("b", "k", timeout=0.05)
    assert not isinstance(read.value, OutcomeUnknown)
    assert (read.value.bucket, read.value.key) == ("b", "k")
    with pytest.raises(WriteTimedOut) as written:
        await hanging.put("b", "n", b"1", timeout=0.05)
    assert isinstance(written.value, DeadlineExceeded)
    assert isinstance(written.value, OutcomeUnknown)
    for parts in (
        await hanging.put_many("b", [("x", b"1"), ("y", bytes(2 * MIB))], timeout=0.05),
        await hanging.get_many("b", ["k"] * 300, timeout=0.05),
    ):
        assert all(isinstance(part, DeadlineExceeded) for part in parts)
    stream = hanging.get_stream("b", "k", timeout=0.05)
    with pytest.raises(DeadlineExceeded):
        await anext(stream)
    for wrong in (0, -1, float("nan"), float("inf"), "1", True):
        with pytest.raises(InvalidArgument, match="timeout"):
            await hanging.get("b", "k", timeout=wrong)  # type: ignore[arg-type]


async def test_a_timeout_is_no_cancellation_of_the_task(hanging: AsyncClient) -> None:
    """And one who cancels is told so, whatever the timeout."""
    with pytest.raises(DeadlineExceeded):
        await hanging.get("b", "k", timeout=0.01)
    task = asyncio.current_task()
    assert task is not None
    assert not task.cancelling()
    call = asyncio.create_task(hanging.get("b", "k", timeout=PATIENCE_SECONDS))
    await begun(call)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call


async def test_streams_that_are_half_consumed(cluster: InProcessCluster) -> None:
    client = cluster.client()
    await client.put("b", "k", bytes(3 * MIB))
    stream, entries = client.get_stream("b", "k"), client.list("b")
    await anext(stream)
    await anext(entries)
    before = len(asyncio.all_tasks())
    await client.aclose()
    assert len(asyncio.all_tasks()) <= before
    with pytest.raises((InvalidArgument, StopAsyncIteration)):
        await anext(stream)
    with pytest.raises((InvalidArgument, StopAsyncIteration)):
        await anext(entries)
    await stream.aclose()


def test_one_event_loop_for_each_client(network: InProcessCluster) -> None:
    client = network.client()

    async def put() -> None:
        await client.put("b", "k", b"x")

    asyncio.run(put())
    with pytest.raises(InvalidArgument, match="belongs to another event loop"):
        asyncio.run(put())
