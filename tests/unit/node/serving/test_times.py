"""What a node asks of time: how old a stamp, a message and an answer may be, and what its own clock must be like."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from coffre.cluster.clock import ManualClock
from coffre.cluster.errors import ClockSkew, Unavailable
from coffre.cluster.identity import Identity, Role
from coffre.cluster.manifest import MANIFEST_FORMAT
from coffre.cluster.map import ClusterMap, MapNode, Policy
from coffre.cluster.names import ObjectName
from coffre.cluster.versions import Stamp
from coffre.node.following import ClockAsking, MapHolder
from coffre.node.memory import MemoryStore
from coffre.node.serving import Handler
from coffre.node.store import Mutation, Outcome, State
from coffre.proto import coffre_pb2 as pb
from coffre.proto.batches import expanded

TENANT = Identity("00112233445566aa", Role.TENANT, "clinic")
NODES = tuple(MapNode(n, f"n{n}", f"h:{n}", f"s{n}", f"s{n}", f"o{n}", "FR", 1 << 40) for n in range(1, 7))
MAP = ClusterMap("00112233445566aa", 1, 16, NODES, (Policy("4+2", 4, 2, ("FR",)),), "4+2")
NAME = ObjectName("clinic", "b", "k")
MINUTE_MS = 60_000


class SlowStore(MemoryStore):
    """Stands still in the middle of a commit, with the whole machine, for so many seconds."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(clock)
        self.clock = clock
        self.stands_still_ms = 0

    async def apply(self, mutations: Sequence[Mutation]) -> list[Outcome]:
        self.clock.set_unixtime_ms(self.clock.unixtime_ms() + self.stands_still_ms)
        return await super().apply(mutations)


class Node:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.store = SlowStore(self.clock)
        self.handler = Handler(1, "n1", self.store, MapHolder(MAP, b""), self.clock)

    async def send(self, operation: pb.Operation, *, sent_ms: int = 0) -> pb.Outcome:
        request = pb.BatchRequest(
            epoch=1,
            tenant="clinic",
            operations=[operation],
            sent_unixtime_ms=self.clock.unixtime_ms() + sent_ms,
        )
        (outcome,) = expanded(await self.handler.batch(TENANT, request)).outcomes
        return outcome

    async def accept(
        self, stamp_ms: int, *, read_ms: int | None = None, lock: bool = False, sent_ms: int = 0
    ) -> int:
        """Bring a tombstone that was stamped, and read, so long ago (or ahead); the code of what became of it."""
        accept = pb.Accept(bucket="b", key="k", lock=lock, sealed=self.sealed(stamp_ms))
        if read_ms is not None:
            accept.read_unixtime_ms = self.clock.unixtime_ms() + read_ms
        return (await self.send(pb.Operation(accept=accept), sent_ms=sent_ms)).code

    def stamp(self, stamp_ms: int) -> bytes:
        return Stamp(self.clock.unixtime_ms() + stamp_ms << 16, 7).to_bytes()

    def sealed(self, stamp_ms: int) -> pb.SealedManifest:
        manifest = pb.Manifest(
            format=MANIFEST_FORMAT, kind=pb.KIND_TOMBSTONE, stamp=self.stamp(stamp_ms), data_id=bytes(16)
        )
        return pb.SealedManifest(manifest=manifest.SerializeToString(), mac=bytes(16))


@pytest.fixture
def node() -> Node:
    return Node()


@pytest.mark.parametrize(
    ("stamp_ms", "code"),
    [
        (0, 0),
        (-29 * MINUTE_MS, 0),
        (-31 * MINUTE_MS, ClockSkew.code),
        (-3 * 365 * 86_400_000, ClockSkew.code),
        (59_000, 0),
        (61_000, ClockSkew.code),
    ],
)
async def test_a_writers_version_is_as_old_as_its_stamp(node: Node, stamp_ms: int, code: int) -> None:
    assert await node.accept(stamp_ms) == code
    assert len(await node.store.read(NAME)) == (code == 0)


@pytest.mark.parametrize(
    ("read_ms", "code"),
    [
        (0, 0),
        (-14 * MINUTE_MS, 0),
        (-16 * MINUTE_MS, ClockSkew.code),
        (-21 * 86_400_000, ClockSkew.code),
        (2 * MINUTE_MS, ClockSkew.code),
    ],
)
@pytest.mark.parametrize("lock", [True, False])
async def test_what_a_reader_completes_is_as_old_as_what_it_read(
    node: Node, read_ms: int, code: int, lock: bool
) -> None:
    assert await node.accept(-3_600_000, read_ms=read_ms, lock=lock) == code


async def test_a_promise_without_a_time_of_reading_is_as_old_as_its_message(node: Node) -> None:
    assert await node.accept(-3_600_000, lock=True) == 0
    assert await node.accept(-3_600_000, lock=True, sent_ms=-16 * MINUTE_MS) == ClockSkew.code


async def test_an_abort_that_was_long_under_way_is_refused(node: Node) -> None:
    assert await node.accept(0) == 0
    abort = pb.Operation(abort=pb.Abort(bucket="b", key="k", stamp=node.stamp(0)))
    assert (await node.send(abort, sent_ms=-16 * MINUTE_MS)).code == ClockSkew.code
    assert (await node.store.read(NAME))[0].state is State.ACCEPTED
    assert (await node.send(abort)).state == pb.STATE_ABORTED


async def test_whoever_is_not_its_writer_may_ask_for_a_refusal_where_nothing_is_held(node: Node) -> None:
    held, lacking = node.stamp(0), node.stamp(5)
    assert await node.accept(0) == 0
    for stamp, state in ((held, pb.STATE_ACCEPTED), (lacking, pb.STATE_ABORTED)):
        abort = pb.Abort(bucket="b", key="k", stamp=stamp, unless_held=True)
        assert (await node.send(pb.Operation(abort=abort))).state == state
    assert await node.accept(5) != 0


async def test_a_node_whose_clock_is_wrong_takes_no_new_version_and_says_so(node: Node) -> None:
    node.handler.clocks.compare(
        dict.fromkeys(range(2, 7), 3_660_000.0), range(2, 7), ClockAsking.begin(node.handler.clocks.clock)
    )
    assert await node.accept(0) == ClockSkew.code
    assert await node.accept(0, lock=True) == ClockSkew.code
    status = await node.handler.status(Identity("00112233445566aa", Role.OPERATOR, "o"))
    assert status.clock_ahead_seconds == 3660
    abort = pb.Operation(abort=pb.Abort(bucket="b", key="k", stamp=node.stamp(0)))
    assert (await node.send(abort)).state == pb.STATE_ABORTED  # votes it gives all the same
    node.handler.clocks.compare(
        dict.fromkeys(range(2, 7), 0.0), range(2, 7), ClockAsking.begin(node.handler.clocks.clock)
    )
    assert await node.accept(5) == 0


@pytest.mark.parametrize("compared", [True, False])
async def test_what_is_durable_too_late_is_not_acknowledged(node: Node, compared: bool) -> None:
    """The check passed; then the process stood still with the message in its hand."""
    if compared:
        node.handler.clocks.compare(
            dict.fromkeys(range(2, 7), 0.0), range(2, 7), ClockAsking.begin(node.handler.clocks.clock)
        )
    node.store.stands_still_ms = 31 * MINUTE_MS
    assert await node.accept(0) == Unavailable.code
    assert (await node.store.read(NAME))[0].state is State.ACCEPTED  # nobody counts on it


async def test_digests_say_what_time_it_is(node: Node) -> None:
    peer = Identity("00112233445566aa", Role.NODE, "n2", NODES[1].attributes)
    reply = await node.handler.digests(peer, pb.DigestsRequest(epoch=1, store_id=bytes(16), commits=1))
    assert reply.unixtime_ms == node.clock.unixtime_ms()
