"""What a process takes in memory, outside Python too, while it leaves reads in mid-air. Runs as a process of its own.

    python -m tests.integration.native_memory reads COUNT        of a bare gRPC server, left at random moments
    python -m tests.integration.native_memory CLIENT.TOML L G    L streams of a cluster left early, then G whole gets

Each prints the growth in MiB after a warm-up, by itself on a line.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import random
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, suppress
from pathlib import Path

import grpc
from coffre.client import AsyncClient, connect
from coffre.cluster.transport.reading import answer_of, replies_of
from grpc import aio

__all__ = ["main"]

MESSAGE = bytes(2 << 20)
MESSAGES = 6
PACE_SECONDS = 0.002  # of the server
LEFT_AFTER_PACES = 8  # at most
WARM_UP = 0.3  # of all rounds: until the memory pools of threads are as large as they get
AT_ONCE = 4
LOOKS, CALLS_BETWEEN = 8, 4  # the least that a process takes in so many looks is what it keeps
_LIBC = ctypes.CDLL("libc.so.6")


def resident_bytes() -> int:
    """What this process takes, with all that could be given back given back."""
    gc.collect()
    _LIBC.malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


class _Service(grpc.GenericRpcHandler):
    """Streams and single answers of 2 MiB, each a moment after the other."""

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        if details.method == "/one":
            return grpc.unary_unary_rpc_method_handler(self.one)
        return grpc.unary_stream_rpc_method_handler(self.many)

    async def many(self, request: bytes, context: object) -> AsyncIterator[bytes]:
        for _ in range(MESSAGES):
            yield MESSAGE
            await asyncio.sleep(PACE_SECONDS)

    async def one(self, request: bytes, context: object) -> bytes:
        await asyncio.sleep(PACE_SECONDS)
        return MESSAGE


async def serve(port_to: int) -> None:
    server = aio.server()
    server.add_generic_rpc_handlers((_Service(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    os.write(port_to, b"%d\n" % port)
    await server.wait_for_termination()


async def leave_reads(port: int, count: int) -> int:
    """Leave `count` streams, and as many single answers, at random moments; the growth in bytes."""
    rng = random.Random(7)
    options = [("grpc.max_receive_message_length", 4 << 20)]
    async with aio.insecure_channel(f"127.0.0.1:{port}", options) as channel:
        many: aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream("/many")
        one: aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/one")

        async def stream() -> None:
            async with aclosing(replies_of(many(b""))) as replies:
                async for _ in replies:
                    pass

        async def answer() -> None:
            await answer_of(one(b""))

        async def leave(call: Callable[[], Awaitable[None]]) -> None:
            task = asyncio.ensure_future(call())
            await asyncio.sleep(rng.random() * LEFT_AFTER_PACES * PACE_SECONDS)
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

        return await _grown(count, lambda: asyncio.gather(leave(stream), leave(answer)), answer)


async def _grown(
    count: int, one_round: Callable[[], Awaitable[object]], last: Callable[[], Awaitable[object]]
) -> int:
    """`last`: a whole call; what was left and is still on its way comes in meanwhile, and goes."""

    async def quiet_bytes() -> int:
        least = resident_bytes()
        for _ in range(LOOKS):
            for _ in range(CALLS_BETWEEN):
                await last()
            least = min(least, resident_bytes())
        return least

    begun = 0
    for number in range(count):
        if number == int(count * WARM_UP):
            begun = await quiet_bytes()
        await one_round()
    return await quiet_bytes() - begun


async def use_cluster(config: Path, streams: int, gets: int) -> tuple[int, int]:
    """Leave streams of a cluster's objects early, then get objects whole; the growth of each in bytes."""
    async with await connect(config) as client:
        await client.put("memory", "large", os.urandom(6 << 20))
        await client.put("memory", "middle", os.urandom(2 << 20))
        left = await _grown(streams // AT_ONCE, lambda: _at_once(client, _leave), lambda: _get(client))
        got = await _grown(gets // AT_ONCE, lambda: _at_once(client, _get), lambda: _get(client))
    return left, got


async def _at_once(client: AsyncClient, call: Callable[[AsyncClient], Awaitable[None]]) -> None:
    await asyncio.gather(*(call(client) for _ in range(AT_ONCE)))


async def _leave(client: AsyncClient) -> None:
    async with aclosing(client.get_stream("memory", "large")) as pieces:
        async for _ in pieces:
            break


async def _get(client: AsyncClient) -> None:
    await client.get("memory", "middle")


def main(arguments: list[str]) -> None:
    """See the module."""
    if arguments[0] != "reads":
        grown = asyncio.run(use_cluster(Path(arguments[0]), int(arguments[1]), int(arguments[2])))
        print(*(size_bytes >> 20 for size_bytes in grown))
        return
    reader, writer = os.pipe()
    server = os.fork()
    if not server:
        asyncio.run(serve(writer))
    try:
        print(asyncio.run(leave_reads(int(os.read(reader, 20)), int(arguments[1]))) >> 20)
    finally:
        os.kill(server, 9)
        os.waitpid(server, 0)


if __name__ == "__main__":
    main(sys.argv[1:])
