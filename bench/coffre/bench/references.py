"""What this machine can do without Coffre: the figures that every published figure is compared with.

    python -m coffre.bench.references measure DIRECTORY

measures each one once, with DIRECTORY on the disk in question. bench/README.md says what each one means. The other end
of the gRPC references is a raw bytes server in a process of its own, behind mutual TLS.
"""

from __future__ import annotations

import asyncio
import os
import random
import statistics
import struct
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter

import click
import grpc
import uvloop
from coffre.bench.codec import isal_encoder
from coffre.bench.processes import child, heard_lines, tell
from coffre.bench.result import Measurement
from coffre.bench.timing import Work, timed
from coffre.cluster.admin import one_line_errors
from coffre.cluster.clock import SystemClock
from coffre.cluster.errors import IntegrityError, InvalidArgument
from coffre.cluster.identity import (
    NodeAttributes,
    TlsFiles,
    channel_credentials,
    create_authority,
    issue_node,
    issue_operator,
    server_credentials,
    tls_name,
    write_authority,
    write_issued,
)
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

__all__ = [
    "OPEN",
    "SERVER_NAME",
    "ReferenceServer",
    "disk_append_sync_4k",
    "disk_write_sync",
    "grpc_gather_1m",
    "grpc_stream_1m",
    "grpc_stream_1m_reply",
    "grpc_unary",
    "in_cache",
    "measure_all",
    "reference_server",
    "serve",
]

SERVICE = "coffre.bench.Reference"
OPEN = struct.Struct(">QQ")
"""A request for data: size of each message in bytes, number of messages."""

_CLUSTER_ID = "00112233445566aa"
_SERVER = NodeAttributes("reference", "server", "site", "operator", "FR")
SERVER_NAME = tls_name(_CLUSTER_ID, _SERVER)
_OPTIONS = [("grpc.max_receive_message_length", 8 << 20), ("grpc.max_send_message_length", 8 << 20)]
_START_S = 30.0


@dataclass(frozen=True, slots=True)
class ReferenceServer:
    """A running server, and one channel to it. An idle one costs no CPU."""

    pid: int
    put: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]
    """Any bytes; answers with 8 bytes."""
    get: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]
    """`OPEN`; answers with one message of that size."""
    upload: grpc.aio.StreamUnaryMultiCallable[bytes, bytes]
    """A stream of bytes; answers with the total in 8 bytes, big-endian."""
    download: grpc.aio.UnaryStreamMultiCallable[bytes, bytes]
    """`OPEN`; answers with so many messages of that size."""


@asynccontextmanager
async def reference_server() -> AsyncIterator[ReferenceServer]:
    """Start the server process and one channel to it; both are gone after the block.

    Keep it open while the product is measured, so that reference and product can take turns. Raises `InternalError`
    when the process does not come up.
    """
    keys = tempfile.TemporaryDirectory(prefix="coffre-reference-")
    with keys as name:
        _write_certificates(Path(name))
        # Ends when its input does: no server outlives its client, even one that was killed.
        process = child("the reference server", "coffre.bench.references", "serve", name)
        async with process as server:
            port = (await asyncio.wait_for(server.hear(), _START_S) or {})["port"]
            channel = grpc.aio.secure_channel(
                f"127.0.0.1:{port}",
                channel_credentials(_files(Path(name), "client")),
                options=[*_OPTIONS, ("grpc.ssl_target_name_override", SERVER_NAME)],
            )
            async with channel:
                await asyncio.wait_for(channel.channel_ready(), _START_S)
                keys.cleanup()  # both sides have read them
                # No serializers: gRPC passes bytes as they are, so that protobuf is no part of the figure.
                yield ReferenceServer(
                    server.pid,
                    channel.unary_unary(f"/{SERVICE}/Put"),
                    channel.unary_unary(f"/{SERVICE}/Get"),
                    channel.stream_unary(f"/{SERVICE}/Upload"),
                    channel.unary_stream(f"/{SERVICE}/Download"),
                )


async def serve(directory: Path) -> None:
    """Serve with the certificates in `directory`; tell the port; end when the input ends."""
    server = grpc.aio.server(options=_OPTIONS)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, _handlers()),))
    port = server.add_secure_port("127.0.0.1:0", server_credentials(_files(directory, _SERVER.node_id)))
    await server.start()
    tell({"port": port})
    async for _ in heard_lines():
        pass
    await server.stop(None)


def _handlers() -> dict[str, grpc.RpcMethodHandler[bytes, bytes]]:
    bodies: dict[int, bytes] = {}

    def body(size_bytes: int) -> bytes:
        return bodies.setdefault(size_bytes, bytes(size_bytes))

    async def put(request: bytes, context: object) -> bytes:
        return len(request).to_bytes(8, "big")

    async def get(request: bytes, context: object) -> bytes:
        return body(OPEN.unpack(request)[0])

    async def upload(requests: AsyncIterator[bytes], context: object) -> bytes:
        total = 0
        async for request in requests:
            total += len(request)
        return total.to_bytes(8, "big")

    async def download(request: bytes, context: object) -> AsyncIterator[bytes]:
        size_bytes, messages = OPEN.unpack(request)
        for _ in range(messages):
            yield body(size_bytes)

    return {
        "Put": grpc.unary_unary_rpc_method_handler(put),
        "Get": grpc.unary_unary_rpc_method_handler(get),
        "Upload": grpc.stream_unary_rpc_method_handler(upload),
        "Download": grpc.unary_stream_rpc_method_handler(download),
    }


def _write_certificates(directory: Path) -> None:
    """Those of a cluster of one node: the references pay for the same kind of certificate as the product."""
    clock = SystemClock()
    authority = create_authority(_CLUSTER_ID, clock)
    write_authority(authority, directory)
    write_issued(issue_node(authority, _SERVER, clock), directory)
    write_issued(issue_operator(authority, "client", clock), directory)


def _files(directory: Path, name: str) -> TlsFiles:
    return TlsFiles(directory / "ca.crt", directory / f"{name}.crt", directory / f"{name}.key")


_KIB, _MIB = 1 << 10, 1 << 20
_WARMUP_S = 0.5
_CALLERS = 64
_SEED = 42
# Bytes up, bytes down, and how many callers.
_UNARY = {
    "grpc_unary_4k": (4 * _KIB, 0, _CALLERS),
    "grpc_unary_4k_reply": (0, 4 * _KIB, _CALLERS),
    "grpc_unary_4k_c1": (4 * _KIB, 0, 1),
    "grpc_unary_64k": (0, 64 * _KIB, 1),
}


async def grpc_unary(
    name: str, server: ReferenceServer, *, duration_s: float = 2.0, warmup_s: float = _WARMUP_S
) -> Measurement:
    """`grpc_unary_...`: calls/s of 64 callers on one channel, or of one caller the median latency in seconds.

    What goes up is answered with 8 bytes, what comes down was asked for with 16.
    """
    up_bytes, down_bytes, callers = _UNARY[name]
    call = (
        partial(server.put, _random_bytes(up_bytes))
        if up_bytes
        else partial(server.get, OPEN.pack(down_bytes, 1))
    )
    detail = _conditions(f"{up_bytes >> 10} KiB up, {down_bytes >> 10} KiB down, {callers} at once")
    if callers == 1:
        return Measurement(name, await _call_latency(call, duration_s, warmup_s), "s", detail)
    return Measurement(name, await _call_rate(call, duration_s, warmup_s, callers), "calls/s", detail)


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
    _check_total(counted, size_bytes)
    return Measurement("grpc_stream_1m", counted / elapsed_s, "bytes/s", _conditions(f"{messages} MiB up"))


async def grpc_stream_1m_reply(server: ReferenceServer, *, size_bytes: int = 256 * _MIB) -> Measurement:
    """Bytes/s of one stream of 1 MiB messages from server to client."""
    return await _gather("grpc_stream_1m_reply", (server,), size_bytes)


async def grpc_gather_1m(servers: Sequence[ReferenceServer], *, size_bytes: int = 256 * _MIB) -> Measurement:
    """Bytes/s that one client receives of all servers at once, a stream of 1 MiB messages and `size_bytes` from each.

    So much is the most that anything built of k nodes' streams can be read with here.
    """
    return await _gather("grpc_gather_1m", servers, size_bytes)


async def _gather(name: str, servers: Sequence[ReferenceServer], size_bytes: int) -> Measurement:
    """One stream from each server, side by side, until the last one has ended."""
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
    _check_total(received, size_bytes * len(servers))
    detail = _conditions(f"{messages} MiB down from each of {len(servers)}")
    return Measurement(name, received / elapsed_s, "bytes/s", detail)


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
    return Measurement("disk_write_sync", size_bytes / elapsed_s, "bytes/s", detail)


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
    name, detail = (
        "disk_append_sync_4k",
        f"{len(latencies_s)} appends, each with its fdatasync, one at a time",
    )
    rate = len(latencies_s) / (previous - start)
    median = Measurement(name, statistics.median(latencies_s), "s", detail)
    return median, Measurement(f"{name}_rate", rate, "syncs/s", detail)


def in_cache(*, rounds: int = 25) -> list[Measurement]:
    """Bytes/s of one thread on buffers of 1 MiB: a copy (counted once, not as read plus write), AES-256-GCM, and ISA-L
    coding 4+2 (data bytes counted). Raises `IsalMissing`, which says how to get it."""
    source, target = _random_bytes(_MIB), memoryview(bytearray(_MIB))
    data = [bytearray(_random_bytes(_MIB, _SEED + number)) for number in range(4)]
    cipher, nonces = AESGCM(_random_bytes(32)), iter(range(1 << 32))
    work: dict[str, tuple[Callable[[], object], int]] = {
        "memcpy": (partial(target.__setitem__, slice(None), source), _MIB),
        "aes_gcm": (lambda: cipher.encrypt(next(nonces).to_bytes(12, "big"), source, None), _MIB),
        "isal_encode_4_2": (
            isal_encoder(4, 2, data, [bytearray(_MIB) for _ in range(2)], _MIB),
            4 * _MIB,
        ),
    }
    calls = 16  # in a turn, so that reading the clock does not count
    turns = zip(*timed([Work(run, calls) for run, _ in work.values()], rounds), strict=True)
    return [
        Measurement(name, calls * size_bytes / statistics.median(seconds), "bytes/s", "1 MiB, one thread")
        for (name, (_, size_bytes)), seconds in zip(work.items(), turns, strict=True)
    ]


async def measure_all(directory: Path) -> list[Measurement]:
    """Every reference once, at full length (about 15 s), one after the other."""
    async with reference_server() as server:
        found = [await grpc_unary(name, server) for name in _UNARY]
        found += [await grpc_stream_1m(server), await grpc_stream_1m_reply(server)]
    return [*found, disk_write_sync(directory), *disk_append_sync_4k(directory), *in_cache()]


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


async def _call_latency(call: Callable[[], Awaitable[bytes]], duration_s: float, warmup_s: float) -> float:
    """Median latency in seconds of at least one call."""
    begin = perf_counter() + warmup_s
    latencies_s: list[float] = []
    while True:
        start = perf_counter()
        if latencies_s and start >= begin + duration_s:
            return statistics.median(latencies_s)
        await call()
        if start >= begin:
            latencies_s.append(perf_counter() - start)


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
    """For `reference_server`."""
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
