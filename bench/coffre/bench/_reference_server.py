"""The other end of the gRPC references: a raw bytes server in a process of its own, behind mutual TLS."""

from __future__ import annotations

import asyncio
import os
import struct
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType

import grpc
from coffre.cluster.clock import SystemClock
from coffre.cluster.errors import ConfigurationError
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

__all__ = ["OPEN", "SERVER_NAME", "ReferenceServer", "serve"]

SERVICE = "coffre.bench.Reference"
OPEN = struct.Struct(">QQ")
"""A request for data: size of each message in bytes, number of messages."""

_CLUSTER_ID = "00112233445566aa"
_SERVER = NodeAttributes("reference", "server", "site", "operator", "FR")
SERVER_NAME = tls_name(_CLUSTER_ID, _SERVER)
_OPTIONS = [("grpc.max_receive_message_length", 8 << 20), ("grpc.max_send_message_length", 8 << 20)]
_START_S = 30.0
_STOP_S = 10.0


class ReferenceServer:
    """Async context manager: starts the server process and one channel to it; both are gone after the block.

    Keep it open while the product is measured, so that reference and product can take turns. An idle one
    costs no CPU. Raises `ConfigurationError` when the process does not come up.
    """

    put: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]
    """Any bytes; answers with 8 bytes."""
    get: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]
    """`OPEN`; answers with one message of that size."""
    upload: grpc.aio.StreamUnaryMultiCallable[bytes, bytes]
    """A stream of bytes; answers with the total in 8 bytes, big-endian."""
    download: grpc.aio.UnaryStreamMultiCallable[bytes, bytes]
    """`OPEN`; answers with so many messages of that size."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None
        self._exits = AsyncExitStack()

    @property
    def pid(self) -> int:
        """Process id of the server, while it runs."""
        if self._process is None:
            raise ConfigurationError("the reference server is not running")
        return self._process.pid

    async def __aenter__(self) -> ReferenceServer:
        # The keys are on the disk only until both sides have read them.
        with tempfile.TemporaryDirectory(prefix="coffre-reference-") as name:
            return await self._start(Path(name))

    async def _start(self, directory: Path) -> ReferenceServer:
        async with AsyncExitStack() as exits:
            _write_certificates(directory)
            # Ends when its standard input does: no server outlives its client, even one that was killed.
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "coffre.bench.references", "serve", str(directory)),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
            )
            exits.push_async_callback(self._stop)
            port = await self._port()
            channel = grpc.aio.secure_channel(
                f"127.0.0.1:{port}",
                channel_credentials(_files(directory, "client")),
                options=[*_OPTIONS, ("grpc.ssl_target_name_override", SERVER_NAME)],
            )
            exits.push_async_callback(channel.close, None)
            self._connect(channel)
            await asyncio.wait_for(channel.channel_ready(), _START_S)
            self._exits = exits.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._exits.aclose()

    def _connect(self, channel: grpc.aio.Channel) -> None:
        # No serializers: gRPC passes bytes as they are, so that protobuf is no part of the figure.
        self.put = channel.unary_unary(f"/{SERVICE}/Put")
        self.get = channel.unary_unary(f"/{SERVICE}/Get")
        self.upload = channel.stream_unary(f"/{SERVICE}/Upload")
        self.download = channel.unary_stream(f"/{SERVICE}/Download")

    async def _port(self) -> int:
        assert self._process is not None
        assert self._process.stdout is not None
        line = await asyncio.wait_for(self._process.stdout.readline(), _START_S)
        if not line.strip().isdigit():
            raise ConfigurationError("the reference server did not start; what it said is above")
        return int(line)

    async def _stop(self) -> None:
        process, self._process = self._process, None
        assert process is not None
        assert process.stdin is not None
        process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), _STOP_S)
        except TimeoutError:
            process.kill()
            await process.wait()


async def serve(directory: Path) -> None:
    """Serve with the certificates in `directory`; print the port; end when standard input ends."""
    server = grpc.aio.server(options=_OPTIONS)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, _handlers()),))
    port = server.add_secure_port("127.0.0.1:0", server_credentials(_files(directory, _SERVER.node_id)))
    await server.start()
    sys.stdout.write(f"{port}\n")
    sys.stdout.flush()
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin.fileno(), _on_input, ended)
    await ended.wait()
    await server.stop(None)


def _on_input(ended: asyncio.Event) -> None:
    if not os.read(sys.stdin.fileno(), 4096):
        ended.set()
        asyncio.get_running_loop().remove_reader(sys.stdin.fileno())


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
