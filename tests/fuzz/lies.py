"""Nodes of a cluster in this process whose answers are almost right."""

from __future__ import annotations

import random

from coffre.dev.in_process import InProcessCluster, Traffic
from coffre.proto import coffre_pb2 as pb
from coffre.proto.shard_stream import ShardChunk, decode_read, encode_read
from google.protobuf.message import DecodeError

from tests.fuzz.mangle import mangle, mangled_bytes

__all__ = ["lie"]


def lie(cluster: InProcessCluster, liars: set[int], rng: random.Random) -> None:
    """From now on most answers of these nodes are mangled; what they keep, and do, is right.

    What they say to have seen of the one that asks is left alone: a single lie about that stops it, and loses nothing
    (docs/repair.md, "A node that forgot").
    """

    async def after(node: int, reply: Traffic) -> None:
        if node not in liars or rng.random() < 0.3:
            return
        if isinstance(reply, ShardChunk):
            try:
                reply.cells = decode_read(mangled_bytes(rng, encode_read(reply))).cells
            except DecodeError:
                return  # gRPC would end the call; here the right cells are as good as any
            return
        seen = (
            (reply.witnessed_store_id, reply.witnessed_commits)
            if isinstance(reply, pb.DigestsReply)
            else None
        )
        for _ in range(rng.choice([1, 1, 2, 4])):
            mangle(rng, reply)
        if isinstance(reply, pb.DigestsReply) and seen is not None:
            reply.witnessed_store_id, reply.witnessed_commits = seen

    cluster.network.after = after
