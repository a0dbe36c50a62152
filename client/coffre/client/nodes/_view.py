"""What a client knows of the cluster while it works at one epoch of the map, and how it comes to the next one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from itertools import islice

from coffre.client.nodes._maps import MapSource
from coffre.client.nodes._peers import Peers
from coffre.cluster.errors import CoffreError
from coffre.cluster.map import ClusterMap, Electorate, Electorates, Placement, newer_map
from coffre.cluster.names import ObjectName, partition_of
from coffre.cluster.transport import Transport

__all__ = ["View", "Views"]

CONFIRMED_SECONDS = 5.0
CONFIRM_SECONDS = 0.25  # so long an upload waits for nodes to say that they have no newer map


class View:
    """One epoch: who holds what, and the lanes to the nodes. What was begun at an epoch is sent at that epoch alone.

    A node serves one epoch at a time, so no operation that counted on these electorates is carried out at another.
    """

    def __init__(self, cluster_map: ClusterMap, peers: Peers) -> None:
        self.map = cluster_map
        self.peers = peers
        self._electorates = Electorates(cluster_map)

    def electorate(self, name: ObjectName) -> Electorate:
        """Who decides about an object."""
        partition = partition_of(name, self.map.partitions)
        return self._electorates.of(name.tenant, name.bucket, partition)

    def partition_electorate(self, tenant: str, bucket: str, partition: int) -> Electorate:
        """Who decides about the objects of one partition of a bucket."""
        return self._electorates.of(tenant, bucket, partition)

    def placement(self, name: ObjectName) -> Placement:
        """The rules by which new shards of an object are placed."""
        return self._electorates.placement(name.tenant, name.bucket)

    def rules(self, k: int, m: int) -> Placement | None:
        """The rules by which the shards of a version are placed that is coded so; None when the map has none."""
        return self._electorates.rules(k, m)

    def silent_max(self, tenant: str, bucket: str) -> int:
        """So many nodes may be silent, whichever they are, without any object of the bucket being out of reach."""
        return self._electorates.silent_max(tenant, bucket)

    def homes(self, name: ObjectName, k: int, m: int) -> tuple[int, ...]:
        """k + m nodes to look at for the shards of a version that is coded so: where they belong.

        When the map has no such policy they are only where to begin, and repeat.
        """
        homes = self._electorates.homes(k, m, partition_of(name, self.map.partitions))
        return homes or (self.electorate(name).primaries * (k + m))[: k + m]

    def elsewhere(self, name: ObjectName) -> tuple[int, ...]:
        """Nodes that decide nothing about an object and may hold a shard: understudies, and those that keep what is
        coded otherwise than the bucket's policy says."""
        keepers = self._electorates.keepers(name.tenant, name.bucket, partition_of(name, self.map.partitions))
        return tuple(
            dict.fromkeys((*self.understudies(name), *sorted(keepers - self.electorate(name).everyone)))
        )

    def everywhere(self, name: ObjectName) -> frozenset[int]:
        """All nodes that the map consults and that decide nothing about an object: while the map changes, each of them
        may hold a shard, as a substitute of some epoch."""
        return self.map.consulted - self.electorate(name).everyone

    def understudies(self, name: ObjectName) -> tuple[int, ...]:
        """The n nodes after the primaries in a partition's order: shards go nowhere else, so readers need to ask
        nobody else."""
        electorate, placement = self.electorate(name), self.placement(name)
        order = placement.order(partition_of(name, self.map.partitions))
        others = (node for node in order if node not in electorate.everyone)
        return tuple(islice(others, placement.policy.n))

    def substitutes(self, name: ObjectName) -> frozenset[int]:
        """The nodes that may take a shard that is meant for another: all of them are asked by readers."""
        electorate = self.electorate(name)
        return electorate.everyone.difference(electorate.primaries).union(self.understudies(name))


class Views:
    """The view that new work is begun with, and the way to the next one."""

    def __init__(
        self,
        cluster_map: ClusterMap,
        peers_of: Callable[[ClusterMap], Peers],
        transport: Transport,
        maps: MapSource | None,
    ) -> None:
        self._peers_of = peers_of
        self._transport = transport
        self._maps = maps
        self.current = View(cluster_map, peers_of(cluster_map))
        self._left: list[Peers] = []
        self._adopting = asyncio.Lock()
        self._renewing: asyncio.Task[None] | None = None
        self._moving: set[asyncio.Task[None]] = set()
        self._confirming: asyncio.Task[None] | None = None
        self._confirmed_until = 0.0

    async def renew(self, stale: View) -> bool:
        """After a node called `stale` out of date: move to a newer view. False when none is to be had yet."""
        if self.current is stale and self._maps is not None:
            if self._renewing is None:
                self._renewing = asyncio.create_task(self._renew(self._maps))
                self._renewing.add_done_callback(self._renewed)
            await asyncio.shield(self._renewing)
        return self.current is not stale

    async def confirm(self) -> None:
        """Ask the nodes for a newer map, and move to it, before what is long and may not be possible twice. Not again
        within some seconds, nor for long: who does not answer soon has it found on the way."""
        now = self.current.peers.clock.monotonic()
        if self._maps is not None and now >= self._confirmed_until:
            self._confirmed_until = now + CONFIRMED_SECONDS
            self._confirming = asyncio.create_task(self._confirm())
        if self._confirming is not None:
            await asyncio.wait([self._confirming], timeout=CONFIRM_SECONDS)

    async def _confirm(self) -> None:
        with suppress(CoffreError):  # a map of no use here: what there is goes on
            await self.renew(self.current)

    def _renewed(self, task: asyncio.Task[None]) -> None:
        self._renewing = None

    async def _renew(self, maps: MapSource) -> None:
        newer = await maps.newer(self.current.map)
        if newer is not None:
            await self.adopt(newer.map)

    async def adopt(self, candidate: ClusterMap) -> None:
        """Begin everything from now on at the epoch of this map, unless a newer one is known: who asks nodes and who
        watches may come in any order. Raises as `newer_map` else; then nothing has changed."""
        async with self._adopting:
            old = self.current
            if candidate.epoch < old.map.epoch or newer_map(old.map, candidate) is old.map:
                return
            moving = asyncio.create_task(self._transport.update_map(candidate))
            self._moving.add(moving)
            moving.add_done_callback(self._moving.discard)
            await asyncio.sleep(
                0
            )  # it has the map; connections that are not needed any more close in their own time
            self._left.append(old.peers)
            self.current = View(candidate, self._peers_of(candidate))

    async def drain(self) -> None:
        """Return when no lane has anything waiting or under way, those of epochs that were left included."""
        left, self._left = self._left, []
        await asyncio.gather(*(peers.drain() for peers in (*left, self.current.peers)), *self._moving)
