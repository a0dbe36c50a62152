"""What a node sees of the others, from their answers alone, by the clock of the test."""

from __future__ import annotations

import asyncio

import pytest
from coffre.cluster.clock import ManualClock
from coffre.cluster.errors import PermissionDenied, Unavailable
from coffre.cluster.identity import Identity, Role
from coffre.cluster.map import ClusterMap, Domain, MapNode, Policy
from coffre.cluster.transport import LoopbackTransport
from coffre.node.following import MapHolder, PeerWatch, WatchOptions
from coffre.node.following.peer_watch import ASK_TIMEOUT_SECONDS
from coffre.proto import coffre_pb2 as pb

CLUSTER_ID = "00112233445566aa"
OPTIONS = WatchOptions()


def cluster_map(epoch: int, nodes: int) -> ClusterMap:
    made = tuple(
        MapNode(n, f"n{n}", f"127.0.0.1:{7000 + n}", f"s{n}", "x", "o", "FR", 1 << 40)
        for n in range(1, nodes + 1)
    )
    return ClusterMap(CLUSTER_ID, epoch, 16, made, (Policy("2+1", 2, 1, ("FR",), Domain.NODE),), "2+1")


class Nodes(LoopbackTransport):
    """Answers as each node is told to. Questions are asked at once: time passes after all of them."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(Identity(CLUSTER_ID, Role.OPERATOR, "n1"), {})
        self._clock = clock
        self.late: dict[int, float] = {}
        self.down: set[int] = set()
        self.refusing: set[int] = set()
        self.started_ms: dict[int, int] = {}
        self.in_order: set[int] = set()
        self.epochs: dict[int, int] = {}

    async def status(self, node: int, timeout: float) -> pb.StatusReply:
        until = self._clock.monotonic() + min(self.late.get(node, 0.002), timeout)
        while self._clock.monotonic() < until:  # noqa: ASYNC110 - the test moves the clock
            await asyncio.sleep(0)
        if node in self.refusing:
            raise PermissionDenied("not you")
        if node in self.down or self.late.get(node, 0) > timeout:
            raise Unavailable("no answer")
        started_ms = self.started_ms.get(node, 1)
        return pb.StatusReply(
            epoch=self.epochs.get(node, 1),
            started_unixtime_ms=started_ms,
            ended_in_order=node in self.in_order,
        )


class Watched:
    """A watch of node 1, and what it tells."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.nodes = Nodes(self.clock)
        self.maps = MapHolder(cluster_map(1, 6), b"")
        self.watch = PeerWatch(1, self.maps, self.nodes, self.clock, OPTIONS)

    async def look(self, times: int = 1) -> None:
        for _ in range(times):
            looking = asyncio.ensure_future(self.watch.look())
            while not looking.done():
                await asyncio.sleep(0)
                self.clock.advance(0.001)
            looking.result()
            self.clock.advance(OPTIONS.ask_seconds)

    def told(self) -> dict[int, pb.SeenPeer]:
        reply = pb.StatusReply()
        self.watch.tell(reply)
        return {peer.node_number: peer for peer in reply.peers}

    def conditions(self) -> dict[int, int]:
        return {number: peer.condition for number, peer in self.told().items()}


@pytest.fixture
def watched() -> Watched:
    return Watched()


async def test_a_map_that_another_node_has_is_asked_for(watched: Watched) -> None:
    """Whatever coordination tells, or does not."""
    await watched.look()
    assert not watched.maps.behind.is_set()
    watched.nodes.epochs[3] = 2
    await watched.look()
    assert watched.maps.behind.is_set()


async def test_a_slow_node_is_told_and_then_no_more(watched: Watched) -> None:
    await watched.look(3)
    assert watched.told() == {}
    watched.nodes.late[4] = 0.2
    await watched.look(12)
    told = watched.told()[4]
    assert told.condition == pb.PEER_CONDITION_SLOW
    assert told.latency_seconds == pytest.approx(0.2, abs=0.01)
    assert told.seconds > 0
    del watched.nodes.late[4]
    await watched.look(12)
    assert watched.told() == {}


async def test_an_outage_is_down_and_lost_only_after_the_grace(watched: Watched) -> None:
    await watched.look()
    watched.nodes.down.add(2)
    await watched.look()
    assert watched.told() == {}, "one lost answer is nothing"
    await watched.look()
    assert watched.conditions() == {2: pb.PEER_CONDITION_DOWN}
    assert not watched.told()[2].lost
    watched.clock.advance(OPTIONS.grace_seconds)
    assert watched.told()[2].lost
    watched.nodes.down.clear()
    await watched.look()
    assert watched.told() == {}


async def test_pauses_again_and_again_are_flapping(watched: Watched) -> None:
    for _ in range(OPTIONS.flaps):
        assert watched.told() == {}
        watched.nodes.late[3] = ASK_TIMEOUT_SECONDS + 1
        await watched.look()
        del watched.nodes.late[3]
        await watched.look(3)
    assert watched.conditions() == {3: pb.PEER_CONDITION_FLAPPING}
    assert watched.told()[3].falls == OPTIONS.flaps
    watched.clock.advance(OPTIONS.flap_window_seconds)
    await watched.look()
    assert watched.told() == {}


async def test_restarts_between_two_looks_are_flapping(watched: Watched) -> None:
    for turn in range(OPTIONS.flaps + 1):
        assert watched.told() == {}
        watched.nodes.started_ms[5] = turn + 1
        await watched.look(2)
    assert watched.conditions() == {5: pb.PEER_CONDITION_FLAPPING}


async def test_a_node_that_hears_nobody_accuses_nobody(watched: Watched) -> None:
    """It was paused itself, or is cut off."""
    await watched.look()
    for _ in range(OPTIONS.flaps + 1):
        watched.nodes.late = dict.fromkeys(range(2, 7), 1.5)
        await watched.look()
        watched.nodes.late = {}
        await watched.look()
    watched.nodes.down = set(range(2, 7))
    await watched.look(5)
    assert watched.told() == {}


async def test_a_node_that_refuses_is_there(watched: Watched) -> None:
    watched.nodes.refusing.add(2)
    await watched.look(3)
    assert watched.told() == {}


async def test_who_left_the_map_is_forgotten(watched: Watched) -> None:
    watched.nodes.down.add(6)
    await watched.look(3)
    assert watched.conditions() == {6: pb.PEER_CONDITION_DOWN}
    watched.maps.adopt(cluster_map(2, 5), b"")
    await watched.look()
    assert watched.told() == {}
    reply = pb.StatusReply()
    watched.watch.tell(reply)
    assert reply.peers_watched == 4


@pytest.mark.parametrize("away", [0, 1, 3])
async def test_restarts_that_somebody_planned_are_not_called_flapping(watched: Watched, away: int) -> None:
    """`away`: how many questions it misses each time. The same restarts after crashes are flapping."""
    watched.nodes.in_order = {2}
    await watched.look(4)
    for restart in range(OPTIONS.flaps + 1):
        for number in (2, 3):
            watched.nodes.down.add(number)
        await watched.look(away)
        watched.nodes.down.clear()
        watched.nodes.started_ms.update({2: restart + 2, 3: restart + 2})
        await watched.look(2)
    assert watched.conditions() == {3: pb.PEER_CONDITION_FLAPPING}


async def test_a_crash_between_planned_restarts_counts(watched: Watched) -> None:
    await watched.look(2)
    for restart in range(2 * OPTIONS.flaps):
        watched.nodes.in_order = {2} if restart % 2 else set()
        watched.nodes.down = {2}
        await watched.look(2)
        watched.nodes.down.clear()
        watched.nodes.started_ms[2] = restart + 2
        await watched.look()
    assert watched.conditions() == {2: pb.PEER_CONDITION_FLAPPING}
