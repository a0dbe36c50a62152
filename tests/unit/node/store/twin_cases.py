"""Random batches of mutations, and all that a store shows of them: for a store beside its twin."""

from __future__ import annotations

import random
from collections.abc import Sequence

from coffre.cluster.names import ObjectName
from coffre.codec import blake3_128, crc32c
from coffre.node.store import (
    Abort,
    Accept,
    Collect,
    Condemn,
    Drop,
    DropRepair,
    Forget,
    Lock,
    Mark,
    Mutation,
    Outcome,
    QueueRepair,
    Refuse,
    Restore,
    Settle,
    ShardStore,
    StoredVersion,
)

__all__ = ["answers", "content", "mutation"]

_KEYS = ["a", "c/d", "x" * 401]


def _name_of(rng: random.Random) -> tuple[ObjectName, int]:
    key = rng.randrange(len(_KEYS))
    return ObjectName(rng.choice(["t", "u"]), "bucket", _KEYS[key]), key


def _stamp_of(rng: random.Random) -> bytes:
    return rng.randrange(1, 9).to_bytes(8, "big") + rng.randrange(2).to_bytes(8, "big")


def mutation(rng: random.Random) -> Mutation:
    """Anything that may happen to a few keys, in partitions 0 to 2."""
    (name, partition), stamp = _name_of(rng), _stamp_of(rng)
    kind = rng.choice(
        ["accept"] * 6
        + ["settle"] * 3
        + ["abort"] * 2
        + ["mark", "queue", "drop", "restore", "restore", "forget", "own", "own"]
    )
    if kind == "settle":
        return Settle(name, partition, stamp, rng.choice([(), (4, 5)]))
    if kind == "abort":
        return Abort(name, partition, stamp)
    if kind == "mark":
        return Mark(name.tenant, stamp)
    if kind == "queue":
        return QueueRepair(name, partition, stamp, rng.choice([None, 0, 1]))
    if kind == "drop":
        return DropRepair(name, partition, stamp, rng.choice([None, 0, 1]))
    if kind == "own":
        own: list[type[Refuse | Lock | Drop | Condemn | Collect]] = [Refuse, Lock, Drop, Condemn, Collect]
        return rng.choice(own)(name, partition, stamp)
    if kind == "forget":
        return Forget(name, partition, tuple(_stamp_of(rng) for _ in range(8)))
    tombstone = rng.random() < 0.15
    shard_index = None if tombstone else rng.choice([None, 0, 1])
    cell = b"" if shard_index is None else rng.randbytes(rng.randrange(90))
    manifest = b"manifest of " + stamp + bytes((tombstone,))
    lock = rng.random() < 0.3
    base = rng.choice([None, None, b"", (stamp[7] // 2).to_bytes(8, "big") + bytes(8)])
    accept = Accept(
        name, partition, stamp, tombstone, stamp, manifest, b"m" * 16, (1, 2, 3), shard_index, cell,
        crc32c(cell), blake3_128(cell), lock=lock, base=base,
    )  # fmt: skip
    return Restore(accept, rng.random() < 0.5) if kind == "restore" else accept


def answers(outcomes: Sequence[Outcome]) -> list[object]:
    """Outcomes, comparable."""
    return [(o.state, type(o.error), o.newest_stamp, o.has_shard, o.replaces) for o in outcomes]


async def content(store: ShardStore) -> list[object]:
    """All that a store shows of what `mutation` makes, with nothing of how it keeps it."""
    found: list[object] = []
    versions: dict[ObjectName, tuple[StoredVersion, ...]] = {}
    for partition in range(3):
        found.append(await store.partition_digest(partition))
        versions |= {row.name: row.versions async for rows in store.partition_rows(partition) for row in rows}
    for tenant in ("t", "u"):
        found.append([entry.key for entry in (await store.list(tenant, "bucket", "")).entries])
    for name in sorted(versions, key=ObjectName.context):
        every = await store.read(name, every=True, want_cell=True)
        assert [v.stamp for v in every] == [v.stamp for v in versions[name]]
        found += [name, every, await store.read(name)]
    found.append(sorted([repr(repair) async for repair in store.repair_queue()]))
    return found
