"""What this machine can do without Coffre: the figures that every published figure is compared with.

    python -m coffre.bench.references measure DIRECTORY

measures each one once, with DIRECTORY on the disk in question. bench/README.md says what each one means.
"""

from __future__ import annotations

import asyncio
import os
import random
import statistics
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import click
import uvloop
from coffre.bench import _isal
from coffre.bench._reference_server import OPEN, ReferenceServer, serve
from coffre.cluster.admin import one_line_errors
from coffre.cluster.errors import IntegrityError, InvalidArgument
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

__all__ = [
    "Measurement",
    "ReferenceServer",
    "aes_gcm",
    "disk_append_sync_4k",
    "disk_write_sync",
    "grpc_gather_1m",
    "grpc_stream_1m",
    "grpc_stream_1m_reply",
    "grpc_unary_4k",
    "grpc_unary_4k_c1",
    "grpc_unary_4k_reply",
    "grpc_unary_64k",
    "isal_encode_4_2",
    "measure_all",
    "memcpy",
]

_KIB, _MIB = 1 << 10, 1 << 20
_WARMUP_S = 0.5
_CALLERS = 64
_SEED = 42


@dataclass(frozen=True, slots=True)
class Measurement:
    """One figure: `value` in `unit`, and in `detail` the conditions it was measured under."""

    id: str
    value: float
    unit: str
    detail: str


async def grpc_unary_4k(
    server: ReferenceServer, *, duration_s: float = 3.0, warmup_s: float = _WARMUP_S
) -> Measurement:
    """Calls/s of 4 KiB requests with 8-byte replies, 64 at a time on one channel."""
    body = _random_bytes(4 * _KIB)
    rate = await _call_rate(lambda: server.put(body), duration_s, warmup_s, _CALLERS)
    return Measurement("grpc_unary_4k", rate, "calls/s", _conditions(f"4 KiB up, {_CALLERS} callers"))


async def grpc_unary_4k_reply(
    server: ReferenceServer, *, duration_s: float = 3.0, warmup_s: float = _WARMUP_S
) -> Measurement:
    """Calls/s of 16-byte requests with 4 KiB replies, 64 at a time on one channel."""
    ask = OPEN.pack(4 * _KIB, 1)
    rate = await _call_rate(lambda: server.get(ask), duration_s, warmup_s, _CALLERS)
    return Measurement("grpc_unary_4k_reply", rate, "calls/s", _conditions(f"4 KiB down, {_CALLERS} callers"))


async def grpc_unary_4k_c1(
    server: ReferenceServer, *, duration_s: float = 1.0, warmup_s: float = _WARMUP_S
) -> Measurement:
    """Median latency in seconds of a 4 KiB request with an 8-byte reply, one at a time."""
    body = _random_bytes(4 * _KIB)
    median_s, calls = await _call_latency(lambda: server.put(body), duration_s, warmup_s)
    return Measurement("grpc_unary_4k_c1", median_s, "s", _conditions(f"4 KiB up, median of {calls}"))


async def grpc_unary_64k(
    server: ReferenceServer, *, duration_s: float = 1.0, warmup_s: float = _WARMUP_S
) -> Measurement:
    """Median latency in seconds of a call that returns 64 KiB, one at a time."""
    ask = OPEN.pack(64 * _KIB, 1)
    median_s, calls = await _call_latency(lambda: server.get(ask), duration_s, warmup_s)
    return Measurement("grpc_unary_64k", median_s, "s", _conditions(f"64 KiB down, median of {calls}"))


async def grpc_stream_1m(server: ReferenceServer, *, size_bytes: int = 256 * _MIB) -> Measurement:
    """Bytes/s of one stream of 1 MiB messages from client to server, until the server counted them all."""
    body, messages = _random_bytes(_MIB), _messages(size_bytes)

    async def bodies(number: int) -> AsyncIterator[bytes]:
        for _ in range(number):
            yield body

    await server.upload(bodies(1))
    start = perf_counter()
    counted = int.from_bytes(await server.upload(bodies(messages)), "big")
    elapsed_s = perf_counter() - start
    _check_total(counted, messages * _MIB)
    detail = _conditions(f"{messages} MiB up")
    return Measurement("grpc_stream_1m", counted / elapsed_s, "bytes/s", detail)


async def grpc_stream_1m_reply(server: ReferenceServer, *, size_bytes: int = 256 * _MIB) -> Measurement:
    """Bytes/s of one stream of 1 MiB messages from server to client."""
    rate = await _gather((server,), size_bytes)
    detail = _conditions(f"{_messages(size_bytes)} MiB down")
    return Measurement("grpc_stream_1m_reply", rate, "bytes/s", detail)


async def grpc_gather_1m(servers: Sequence[ReferenceServer], *, size_bytes: int = 256 * _MIB) -> Measurement:
    """Bytes/s that one client receives of all servers at once, a stream of 1 MiB messages and `size_bytes` from each.

    So much is the most that anything built of k nodes' streams can be read with here.
    """
    rate = await _gather(servers, size_bytes)
    detail = _conditions(f"{_messages(size_bytes)} MiB down from each of {len(servers)}")
    return Measurement("grpc_gather_1m", rate, "bytes/s", detail)


async def _gather(servers: Sequence[ReferenceServer], size_bytes: int) -> float:
    """Bytes/s of one stream from each server, side by side, until the last one has ended."""
    messages = _messages(size_bytes)

    async def receive(server: ReferenceServer, count: int) -> int:
        received = 0
        async for body in server.download(OPEN.pack(_MIB, count)):
            received += len(body)
        return received

    await asyncio.gather(*(receive(server, 1) for server in servers))
    start = perf_counter()
    received = sum(await asyncio.gather(*(receive(server, messages) for server in servers)))
    elapsed_s = perf_counter() - start
    _check_total(received, messages * _MIB * len(servers))
    return received / elapsed_s


def disk_write_sync(directory: Path, *, size_bytes: int = 256 * _MIB) -> Measurement:
    """Bytes/s of a new file in `directory`: writes of 1 MiB in order, then one fdatasync, timed with them.

    Blocks; no other task of the loop runs meanwhile.
    """
    writes = _messages(size_bytes)
    body = bytearray(_random_bytes(_MIB))
    with tempfile.TemporaryFile(dir=directory, buffering=0) as sink:
        handle = sink.fileno()
        start = perf_counter()
        for number in range(writes):
            body[:8] = number.to_bytes(8, "big")  # no two writes alike, for storage that would merge them
            _write_whole(handle, body)
        os.fdatasync(handle)
        elapsed_s = perf_counter() - start
    detail = f"{writes} writes of 1 MiB, one fdatasync at the end"
    return Measurement("disk_write_sync", writes * _MIB / elapsed_s, "bytes/s", detail)


def disk_append_sync_4k(directory: Path, *, duration_s: float = 2.0) -> tuple[Measurement, Measurement]:
    """Append 4 KiB and fdatasync, over and over: `disk_append_sync_4k` (median seconds), and
    `disk_append_sync_4k_rate` (syncs/s over the whole time). Blocks.
    """
    body = _random_bytes(4 * _KIB)
    latencies_s: list[float] = []
    with tempfile.TemporaryFile(dir=directory, buffering=0) as sink:
        handle = sink.fileno()
        start = previous = perf_counter()
        while not latencies_s or previous - start < duration_s:
            _write_whole(handle, body)
            os.fdatasync(handle)
            now = perf_counter()
            latencies_s.append(now - previous)
            previous = now
    detail = f"{len(latencies_s)} appends, each with its fdatasync, one at a time"
    median = Measurement("disk_append_sync_4k", statistics.median(latencies_s), "s", detail)
    rate = len(latencies_s) / (previous - start)
    return median, Measurement("disk_append_sync_4k_rate", rate, "syncs/s", detail)


def memcpy(*, duration_s: float = 0.5) -> Measurement:
    """Bytes/s copied (counted once, not as read plus write) between two buffers of 1 MiB, in cache."""
    source, target = memoryview(bytearray(_random_bytes(_MIB))), memoryview(bytearray(_MIB))

    def copy() -> None:
        target[:] = source

    rate = _repeat_rate(copy, duration_s)
    return Measurement("memcpy", rate * _MIB, "bytes/s", "1 MiB, in cache, one thread")


def aes_gcm(*, duration_s: float = 0.5) -> Measurement:
    """Bytes/s of AES-256-GCM over 1 MiB buffers, each under its own nonce, output allocated each time."""
    cipher, body, number = AESGCM(_random_bytes(32)), _random_bytes(_MIB), 0

    def encrypt() -> None:
        nonlocal number
        number += 1
        cipher.encrypt(number.to_bytes(12, "big"), body, None)

    rate = _repeat_rate(encrypt, duration_s)
    return Measurement("aes_gcm", rate * _MIB, "bytes/s", "AES-256-GCM, 1 MiB, one thread")


def isal_encode_4_2(*, duration_s: float = 0.5) -> Measurement:
    """Bytes/s of data shards that ISA-L codes 4+2, shards of 1 MiB. Raises `IsalMissing`, which says how to get it."""
    data = [bytearray(_random_bytes(_MIB, _SEED + number)) for number in range(4)]
    rate = _repeat_rate(_isal.encoder(4, 2, data, [bytearray(_MIB) for _ in range(2)], _MIB), duration_s)
    return Measurement("isal_encode_4_2", rate * 4 * _MIB, "bytes/s", "4+2, shards of 1 MiB, one thread")


async def measure_all(directory: Path) -> list[Measurement]:
    """Every reference once, at full length (about 15 s), one after the other."""
    async with ReferenceServer() as server:
        found = [
            await grpc_unary_4k(server),
            await grpc_unary_4k_reply(server),
            await grpc_unary_4k_c1(server),
            await grpc_unary_64k(server),
            await grpc_stream_1m(server),
            await grpc_stream_1m_reply(server),
        ]
    return [
        *found,
        disk_write_sync(directory),
        *disk_append_sync_4k(directory),
        memcpy(),
        aes_gcm(),
        isal_encode_4_2(),
    ]


async def _call_rate(
    call: Callable[[], Awaitable[bytes]], duration_s: float, warmup_s: float, callers: int
) -> float:
    """Calls that ended in the window, per second; callers are busy before it opens and until it closes."""
    begin = perf_counter() + warmup_s
    end = begin + duration_s
    done = 0

    async def caller() -> None:
        nonlocal done
        while (now := perf_counter()) < end:
            await call()
            now = perf_counter()
            if begin <= now < end:
                done += 1

    async with asyncio.TaskGroup() as group:
        for _ in range(callers):
            group.create_task(caller())
    return done / duration_s


async def _call_latency(
    call: Callable[[], Awaitable[bytes]], duration_s: float, warmup_s: float
) -> tuple[float, int]:
    """Median latency in seconds, and how many calls it is the median of (at least one)."""
    begin = perf_counter() + warmup_s
    latencies_s: list[float] = []
    while True:
        start = perf_counter()
        if latencies_s and start >= begin + duration_s:
            return statistics.median(latencies_s), len(latencies_s)
        await call()
        if start >= begin:
            latencies_s.append(perf_counter() - start)


def _repeat_rate(work: Callable[[], None], duration_s: float) -> float:
    """How often `work` runs per second, in rounds of 16 so that reading the clock does not count."""
    rounds = 0
    for _ in range(16):
        work()
    start = now = perf_counter()
    while not rounds or now - start < duration_s:
        for _ in range(16):
            work()
        rounds += 1
        now = perf_counter()
    return rounds * 16 / (now - start)


def _random_bytes(size: int, seed: int = _SEED) -> bytes:
    return random.Random(seed).randbytes(size)


def _messages(size_bytes: int) -> int:
    if size_bytes < _MIB or size_bytes % _MIB:
        raise InvalidArgument(f"a reference moves a whole number of MiB, not {size_bytes} bytes")
    return size_bytes // _MIB


def _check_total(found: int, expected: int) -> None:
    if found != expected:
        raise IntegrityError(f"{found} bytes arrived where {expected} were sent; the figure would be wrong")


def _write_whole(handle: int, body: bytes | bytearray) -> None:
    if os.write(handle, body) != len(body):
        raise IntegrityError("the disk took only a part of a write; is it full?")


def _conditions(what: str) -> str:
    loop = type(asyncio.get_running_loop()).__module__.partition(".")[0]
    return f"{what}, mutual TLS, loopback, one process each side, {loop}"


@click.group()
def main() -> None:
    """What this machine can do without Coffre."""


@main.command("serve", hidden=True)
@click.argument("directory", type=click.Path(path_type=Path))
def _serve(directory: Path) -> None:
    """For `ReferenceServer`."""
    uvloop.run(serve(directory))


@main.command("measure")
@click.argument("directory", type=click.Path(path_type=Path, exists=True, file_okay=False))
@one_line_errors
def _measure(directory: Path) -> None:
    """Measure every reference once, with DIRECTORY on the disk in question."""
    for found in uvloop.run(measure_all(directory)):
        click.echo(f"{found.id:26} {found.value:16,.6g} {found.unit:8} {found.detail}")


if __name__ == "__main__":
    main()
