"""The other end of the gRPC references: a raw bytes server in a process of its own, behind mutual TLS."""

from __future__ import annotations

import asyncio
import struct
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
from coffre.bench.processes import child, heard_lines, tell
from coffre.cluster.clock import SystemClock
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

__all__ = ["OPEN", "SERVER_NAME", "ReferenceServer", "reference_server", "serve"]

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
