"""Programs that fork, or end, with clients in hand; test_processes.py runs each of them in a process of its own.

`python forking.py NAME CONFIG` prints what it found, a line each. A hang ends by SIGALRM.
"""

from __future__ import annotations

import asyncio
import atexit
import gc
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from pathlib import Path

from coffre.client import AsyncClient, Client, connect, connect_sync
from coffre.cluster.errors import CoffreError, InvalidArgument

ALARM_SECONDS = 60
CONFIG = Path(sys.argv[-1])
RECORD = b"parent's"
_own: Client | None = None


def say(*words: object) -> None:
    print(*words, flush=True)


def child(work: Callable[[], object]) -> str:
    """What a forked child finds; it ends as programs end, with all that the interpreter tidies up."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        signal.alarm(ALARM_SECONDS)
        os.close(reading)
        try:
            found = str(work())
        except InvalidArgument as error:
            found = f"InvalidArgument {error}"
        os.write(writing, found.encode())
        sys.exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        found = pipe.read().decode()
    return f"{os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])} {found}"


def inherited() -> None:
    """A client that was used before the fork, in the child: nothing hangs, nothing crashes, all use is refused."""
    client = connect_sync(CONFIG)
    client.put("forks", "k", RECORD)
    client.put("forks", "large", bytes(3 << 20))
    half = client.get_stream("forks", "large")
    next(half)
    holder = [client]

    def dropped() -> None:
        nonlocal client, half
        del client, half
        holder.clear()
        gc.collect()

    def in_a_thread() -> str:
        found: list[str] = []

        def use() -> None:
            try:
                found.append(str(client.get("forks", "k")))
            except InvalidArgument as error:
                found.append(f"InvalidArgument {error}")

        thread = threading.Thread(target=use)
        thread.start()
        thread.join()
        return found[0]

    def closed() -> None:
        with client:
            pass

    for name, work in {
        "get": lambda: client.get("forks", "k"),
        "put": lambda: client.put("forks", "k", b"child's"),
        "list": lambda: list(client.list("forks")),
        "stream": lambda: client.get_stream("forks", "k"),
        "next": lambda: next(half),
        "thread": in_a_thread,
        "own": lambda: connect_sync(CONFIG),
    }.items():
        say(name, child(work))
    for name, quietly in {"exit": lambda: None, "close": closed, "drop": dropped}.items():
        say(name, child(quietly))
    say("parent", client.get("forks", "k") == RECORD, sum(map(len, half)))
    client.close()
    say("after the close", child(lambda: connect_sync(CONFIG)))


def busy() -> None:
    """Forks while other threads are in calls."""
    client = connect_sync(CONFIG)
    client.put("forks", "k", RECORD)
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            client.get("forks", "k")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(10):
        say("child", child(lambda: client.get("forks", "k")))
    stop.set()
    for thread in threads:
        thread.join()
    client.close()


def step(client: AsyncClient) -> None:
    try:
        client.get("forks", "k").send(None)
    except InvalidArgument as error:
        say("child", error)


def within_a_loop() -> None:
    """The asynchronous face."""

    async def main() -> None:
        async with await connect(CONFIG) as client:
            await client.put("forks", "k", RECORD)

            context = multiprocessing.get_context("fork")
            process = context.Process(target=step, args=(client,))
            process.start()
            process.join()
            say("parent", process.exitcode, await client.get("forks", "k") == RECORD)

    asyncio.run(main())


# -------------------------------------------------------------------- docs/client.md, "Processes"


def mine() -> Client:
    """The client of this worker, connected with its first call."""
    global _own
    if _own is None:
        _own = connect_sync(CONFIG)
        atexit.register(_own.close)
    return _own


def fetch(number: int) -> bytes:
    return mine().get("forks", f"p{number}")


def begin_worker() -> None:
    mine()


def store() -> None:
    """From a process of its own, so that this one has not used a client."""
    assert child(lambda: [mine().put("forks", f"p{number}", b"%d" % number) for number in range(8)])[0] == "0"


def forked_one_by_one() -> None:
    """As gunicorn does: a master that never connects forks workers, and another one for one that died."""
    store()

    def worker() -> list[bytes]:
        return [fetch(number) for number in range(8)]

    for _ in range(3):
        say("worker", child(worker))


def forked_pool() -> None:
    """As Celery does: a pool of forked workers, each of which connects when it begins, and takes task after task."""
    store()
    with multiprocessing.get_context("fork").Pool(2, initializer=begin_worker, maxtasksperchild=4) as pool:
        say("tasks", pool.map(fetch, range(8), chunksize=1))


def spawned() -> None:
    """Whoever needs a client in the parent, too, starts its workers anew."""
    client = connect_sync(CONFIG)
    for number in range(8):
        client.put("forks", f"p{number}", b"%d" % number)
    for method in ("spawn", "forkserver"):
        context = multiprocessing.get_context(method)
        with ProcessPoolExecutor(2, mp_context=context, initializer=begin_worker) as pool:
            say(method, list(pool.map(fetch, range(8))))
    client.close()


# -------------------------------------------------------------------- the end of the interpreter


def open_at_exit() -> None:
    """Nothing was closed: threads are in calls, a stream is half read, a source waits for ever."""
    client = connect_sync(CONFIG)
    client.put("forks", "large", bytes(8 << 20))
    half = client.get_stream("forks", "large")
    next(half)
    globals()["kept"] = half
    begun, asked = threading.Barrier(4), threading.Event()

    def work() -> None:
        client.get("forks", "large")
        begun.wait()
        with suppress(CoffreError):
            while True:
                client.get("forks", "large")

    def put() -> None:
        with suppress(CoffreError):
            client.put("forks", "n", Silent())

    class Silent:
        def read(self, size: int) -> bytes:
            asked.set()
            threading.Event().wait()
            return b""

    for _ in range(3):
        threading.Thread(target=work, daemon=True).start()
    threading.Thread(target=put, daemon=True).start()
    begun.wait()
    asked.wait()
    say("the end")


def threads_after_main() -> None:
    """The main thread ends first, and leaves the work to others."""
    client = connect_sync(CONFIG)
    main = threading.main_thread()

    def work() -> None:
        main.join()
        client.put("forks", "late", bytes(5 << 20))
        say(len(client.get("forks", "late")), sum(map(len, client.get_stream("forks", "late"))))
        say("the end")

    threading.Thread(target=work).start()


def closed_at_exit() -> None:
    """By the program's own hands at its very end."""
    client = connect_sync(CONFIG)
    client.put("forks", "k", RECORD)
    atexit.register(client.close)

    class Holder:
        def __del__(self) -> None:
            client.close()

    globals()["kept"] = Holder()
    say("the end")


if __name__ == "__main__":
    signal.alarm(ALARM_SECONDS)
    globals()[sys.argv[1]]()
