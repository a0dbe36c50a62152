"""The repair of one node: rounds, the queue, walks over its own rows, and what an operator sees of them.

Drives itself by the clock it is given, over the transport it is given, in the event loop of its caller; docs/repair.md.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Sequence

from coffre.cluster.clock import Clock
from coffre.cluster.errors import CoffreError, ConfigurationError, InvalidArgument
from coffre.cluster.map import ClusterMap
from coffre.cluster.transport import Transport
from coffre.node.following import EpochFence, MapHolder, PeerClocks
from coffre.node.repair.asking import Asking
from coffre.node.repair.census import Census
from coffre.node.repair.electorate import Electorates
from coffre.node.repair.healing import Healer, Outcome
from coffre.node.repair.options import RepairOptions
from coffre.node.repair.pace import Pace
from coffre.node.repair.queue import RepairQueue
from coffre.node.repair.reports import Reports
from coffre.node.repair.rounds import Difference, compare, differing
from coffre.node.repair.scene import Ahead, Bare, Scene, Task
from coffre.node.repair.scrub import Scrub
from coffre.node.repair.sweep import Sweep
from coffre.node.repair.testimony import check_memory
from coffre.node.store import PartitionDigest, ShardStore, window_start_ms
from coffre.proto import coffre_pb2 as pb

__all__ = ["Repairer"]

_log = logging.getLogger(__name__)
BATCH_NAMES = 64  # reads wait behind those of a batch, and larger ones do not repair faster
_WORKERS = 3
_BUSY_ROUNDS = 10  # between two looks at the rows of a partition that is written, or that has been moved here
_HANDOFF_ROUNDS = 20  # between two tries to hand over what is held for others
# How far a stamp may be ahead of this node's clock: nodes refuse more than 60 s, and differ by two minutes at most.
_STAMPS_AHEAD_MS = 300_000
_WATCH_SECONDS = 1.0  # how soon a report, a resume or a new map is noticed


class Repairer:
    """`run` for ever, or `round` and `walk` step by step, as tests and the simulator do.

    `on_forgotten` is called when this node's disk is found to be older than what others have seen of it: it must serve
    no more.
    """

    def __init__(
        self,
        number: int,
        store: ShardStore,
        maps: MapHolder,
        transport: Transport,
        clock: Clock,
        options: RepairOptions | None = None,
        clocks: PeerClocks | None = None,
    ) -> None:
        """`clocks`: what this node's handler goes by, too."""
        self._number = number
        self._store = store
        self._maps = maps
        self._transport = transport
        self._clock = clock
        self._fence = EpochFence(store, maps)
        self.on_forgotten: Callable[[ConfigurationError], None] = lambda _: None
        self._clocks = clocks or PeerClocks(clock)
        self._options = options or RepairOptions()
        self._pace = Pace(clock, self._options.bytes_per_second)
        self._queue = RepairQueue(clock)
        self._healer = Healer(store, self._options, self._pace, clock)
        self._reports = Reports(store, self._queue)
        self._census = Census()
        self._sweep = Sweep(store, self._options, self._queue, clock)
        self.scrub = Scrub(store, self._options, clock)
        self._electorates: Electorates | None = None
        self._answered: frozenset[int] = frozenset()
        self._status = pb.RepairStatusReply(paused=self._options.paused)
        self._failed: set[int] = set()  # partitions of which something could not be done in this round
        self._moved: set[int] = set()
        # By partition: the digests of the last round, and in which one rows were compared last. At most one of each.
        self._looked: dict[int, tuple[object, int]] = {}
        self._swept_at = clock.monotonic()
        self._walk_due = False
        self._fresh_ms = 0
        self._back_ms = clock.unixtime_ms()  # when this node began, or another one answered again
        self._bare = Bare()
        self._ahead = Ahead()
        self._busy_since = clock.monotonic()

    # ---------------------------------------------------------------- for ever

    async def run(self) -> None:
        """Repair until cancelled. A failure of one round is logged, and the next one begins anew."""
        scrubbing = asyncio.create_task(self.scrub.run())
        try:
            while True:
                if not self._status.paused:
                    try:
                        again = await self.round()
                    except CoffreError as error:
                        _log.warning("a round of repair failed: %s", error)
                        again = False
                    except Exception as error:  # noqa: BLE001 - a bug must not end repair for good
                        # The text may hold a name: only the class and the place are logged.
                        _log.error("internal error", extra={"error": type(error).__name__}, exc_info=True)
                        again = False
                    if again:
                        continue
                await self._rest()
        finally:
            scrubbing.cancel()
            await asyncio.gather(scrubbing, return_exceptions=True)

    async def _rest(self) -> None:
        """Wait for the next round: less long when something was reported, or the map changed."""
        until = self._clock.monotonic() + self._options.round_seconds
        epoch, paused = self._maps.map.epoch, self._status.paused
        waiting = (await self._store.status()).repair_queue
        while self._clock.monotonic() < until:
            await self._clock.sleep(min(_WATCH_SECONDS, self._options.round_seconds))
            if self._maps.map.epoch != epoch or (paused and not self._status.paused):
                return
            if not self._status.paused and (await self._store.status()).repair_queue > waiting:
                return

    # ---------------------------------------------------------------- one round

    async def round(self) -> bool:
        """Compare everything once and repair what differs. True when there is more to do at once."""
        scene = await self._scene()
        own = dict(await self._store.digests(scene.before_ms))
        partitions = scene.electorates.own_partitions(self._number)
        found = [differing(scene, own, partition) for partition in partitions]
        for difference in found:
            if not difference.others:
                held = own.get(difference.partition, PartitionDigest())
                self._census.note_alike(scene, difference.partition, held, len(difference.empty))
        self._failed = set()
        self._busy_since = self._clock.monotonic()
        await self._reports.take(scene)
        # Where most primaries deviate, fewest good shards are left.
        behind = sorted(
            (d for d in found if d.others and self._is_worth_rows(scene, own, d)),
            key=lambda d: -d.deviating,
        )
        overflowed = await self._fill_and_work(scene, behind)
        await self._walk_if_due(scene)
        self._note_round(scene, found)
        return overflowed

    def _is_worth_rows(self, scene: Scene, own: dict[int, PartitionDigest], found: Difference) -> bool:
        """Whether to look at the rows of a partition whose digests differ: not in every round while it is written, nor
        while the map changes and this node has what it needs of it."""
        mine = own.get(found.partition, PartitionDigest())
        digests = mine.digest, tuple(held.digest for held, _ in found.others)
        before, looked = self._looked.get(found.partition, (None, 0))
        rounds = self._status.rounds
        if any(electorate.is_moving for electorate in scene.electorates.in_partition(found.partition)):
            # Rows are compared for votes, whatever the digests say.
            worth = found.partition not in self._moved
        else:
            worth = before == digests
        worth |= before is None or rounds - looked >= _BUSY_ROUNDS
        self._looked[found.partition] = digests, rounds if worth else looked
        if not worth:
            found.pending = True
        return worth

    async def _scene(self) -> Scene:
        await self._fence.wait()
        cluster_map = self._maps.map
        if self._electorates is None or self._electorates.map is not cluster_map:
            self._electorates = Electorates(cluster_map)
            self._moved.clear()
            self._looked.clear()
            self._bare = Bare()
            self._census.clear()
            self._fresh_ms = 0
            self._queue.unpark()
            self._walk_due = True  # what it held until now may be somebody else's from now on
        identity = await self._store.identity()
        asking = Asking(
            self._transport,
            cluster_map.epoch,
            self._options.timeout,
            self._clock,
            identity,
            {node.number: node.node_id for node in cluster_map.nodes}.__getitem__,
        )
        others = [node for node in self._electorates.nodes() if node != self._number]
        before_ms = self._before_ms(cluster_map)
        digests = await asking.digests(others, before_ms)
        await self._check_memory(asking)
        punctual = self._clocks.compare(asking.ahead_ms, others, asking.asked)
        self._ahead.compared()
        if digests.keys() - self._answered:
            self._queue.unpark()  # a node that came back may have what was missing
            self._looked.clear()
            self._back_ms = self._clock.unixtime_ms()
        if not punctual.issuperset(digests):
            self._fresh_ms = 0  # what others took before may be stamped by any time
        elif frozenset(digests) != self._answered or not self._fresh_ms:
            self._fresh_ms = self._clock.unixtime_ms() + _STAMPS_AHEAD_MS
        self._answered = frozenset(digests)
        return Scene(
            self._number,
            self._electorates,
            asking,
            digests,
            before_ms,
            self._fresh_ms or None,
            self._bare,
            lambda: self._maps.map is cluster_map,
            self._clocks,
            punctual,
            self._ahead,
        )

    async def _check_memory(self, asking: Asking) -> None:
        """Raise `ConfigurationError` when somebody has seen more of this node's store than it has, having told
        `on_forgotten`. Who answered at start may have seen less of it than others have, which were down then."""
        identity = await self._store.identity()
        try:
            check_memory(identity, identity.store_id, asking.testimonies)
        except ConfigurationError as error:
            _log.critical("%s", error)
            self.on_forgotten(error)
            raise

    def _before_ms(self, cluster_map: ClusterMap) -> int | None:
        """What is younger is not compared, since it may be on its way; while the map changes, everything counts."""
        if cluster_map.prior:
            return None
        return window_start_ms(self._clock.unixtime_ms() - int(self._options.settling_seconds * 1000))

    async def _fill_and_work(self, scene: Scene, behind: Sequence[Difference]) -> bool:
        """Rows are compared while workers take from the queue what was found. True when not all of it fit."""
        filling = True
        changed = asyncio.Condition()
        overflowed = False

        async def work() -> None:
            while True:
                async with changed:
                    await changed.wait_for(lambda: len(self._queue) or not filling)
                    tasks = self._queue.pop(BATCH_NAMES)
                if not tasks:
                    return
                await self._heal(scene, tasks)
                async with changed:
                    changed.notify_all()

        async with asyncio.TaskGroup() as group:
            for _ in range(_WORKERS):
                group.create_task(work())
            try:
                for difference in behind:
                    overflowed |= await self._fill(scene, difference, changed)
            finally:
                filling = False
                async with changed:
                    changed.notify_all()
        return overflowed

    async def _fill(self, scene: Scene, difference: Difference, changed: asyncio.Condition) -> bool:
        """Queue what a partition lacks here. True when the queue was full."""
        overflowed = False
        now_ms = self._clock.unixtime_ms()
        if self._census.is_ours(scene, difference.partition):
            difference.counts = Counter()
        try:
            async for task in compare(self._store, scene, self._options, difference, now_ms):
                if self._queue.is_parked(task.name) or not self._queue.push(task):
                    overflowed |= not self._queue.has_room
                    self._failed.add(task.partition)
                if len(self._queue) % BATCH_NAMES == 0:
                    async with changed:
                        changed.notify_all()
            if difference.counts is not None:
                self._census.note_rows(difference.partition, difference.counts)
        except CoffreError as error:
            _log.warning("a partition cannot be compared: %s", error)
            self._failed.add(difference.partition)
        async with changed:
            changed.notify_all()
        return overflowed

    async def _heal(self, scene: Scene, tasks: Sequence[Task]) -> None:
        try:
            outcomes = await self._healer.heal(scene, tasks)
        except CoffreError as error:
            _log.warning("a batch of repairs failed: %s", error)
            outcomes = [Outcome(task, type(error).__name__) for task in tasks]
        self._status.received_bytes += scene.asking.take_received_bytes()
        for outcome in outcomes:
            self._note(outcome)

    def _note(self, outcome: Outcome) -> None:
        task = outcome.task
        self._status.restored_objects += outcome.restored
        self._status.restored_bytes += outcome.bytes
        if outcome.again:
            self._queue.push(task)
        elif outcome.reason:
            self._failed.add(task.partition)
            self._queue.park(task, outcome.reason)
        else:
            self._queue.done(task)

    # ---------------------------------------------------------------- walks

    async def _walk_if_due(self, scene: Scene) -> None:
        interval = self._options.sweep_seconds
        if self._status.held_for_others:
            interval = min(interval, _HANDOFF_ROUNDS * self._options.round_seconds)
        if self._walk_due or self._clock.monotonic() - self._swept_at >= interval:
            self._walk_due = False
            await self.walk(scene)

    async def walk(self, scene: Scene | None = None) -> None:
        """Go over this node's own rows once: tombstones, what was never decided, and what it holds for others."""
        self._swept_at = self._clock.monotonic()
        scene = scene or await self._scene()
        swept = await self._sweep.walk(scene)
        self._status.held_for_others = swept.held_for_others
        del self._status.violations[:]
        for reason, objects in sorted(swept.breaches.items()):
            self._status.violations.add(reason=reason, objects=objects)
        self._status.tombstones_collected += swept.collected
        await self._fill_and_work(scene, ())

    # ---------------------------------------------------------------- what operators see

    def _note_round(self, scene: Scene, found: Sequence[Difference]) -> None:
        status = self._status
        status.rounds += 1
        status.round_unixtime_ms = self._clock.unixtime_ms()
        status.partitions = len(found)
        status.partitions_in_step = sum(d.in_step and d.complete for d in found)
        status.caught_up = scene.before_ms is None or scene.before_ms >= self._back_ms
        down = set(scene.electorates.nodes()) - scene.digests.keys() - {self._number}
        status.nodes_down[:] = sorted(down)
        if scene.asking.epoch == self._maps.map.epoch:
            self._moved |= {
                d.partition for d in found if d.complete and not d.pending and d.partition not in self._failed
            }
            status.moved_epoch = scene.asking.epoch

    def moved(self, epoch: int) -> frozenset[int]:
        """The partitions of which this node has everything that was complete before `epoch`."""
        return frozenset(self._moved) if self._status.moved_epoch == epoch else frozenset()

    def status(self) -> pb.RepairStatusReply:
        reply = pb.RepairStatusReply()
        reply.CopyFrom(self._status)
        reply.bytes_per_second = int(self._pace.bytes_per_second)
        k = self._maps.map.policy().k
        for spare, objects in sorted(self._queue.by_spare_shards(k).items()):
            reply.queue.add(spare_shards=spare, objects=objects)
        for reason, objects in sorted(self._queue.parked_by_reason().items()):
            reply.parked.add(reason=reason, objects=objects)
        for spare, versions in sorted(self._census.by_spare_shards().items()):
            reply.census.add(spare_shards=spare, objects=versions)
        reply.census_partitions = self._census.partitions
        waiting = len(self._queue)
        restored = self._status.restored_objects
        if waiting:
            mean_bytes = self._status.restored_bytes / restored if restored else 0.0
            reply.bytes_left = int(waiting * mean_bytes)
            seconds = max(self._clock.monotonic() - self._busy_since, 0.001)
            reply.seconds_left = waiting * seconds / restored if restored else -1.0
        reply.moved[:] = sorted(self._moved)
        self.scrub.tell(reply)
        return reply

    def control(self, request: pb.RepairControlRequest) -> None:
        """Start, pause, or set the rate. Raises `InvalidArgument`."""
        if request.action not in (pb.REPAIR_ACTION_START, pb.REPAIR_ACTION_PAUSE):
            raise InvalidArgument("repair is started or paused; there is nothing else")
        self._status.paused = request.action == pb.REPAIR_ACTION_PAUSE
        if request.bytes_per_second:
            self._pace.bytes_per_second = request.bytes_per_second
