"""How a node takes a newer map, and what it does at another epoch than its callers."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from coffre.cluster.clock import ManualClock
from coffre.cluster.coordination import MemoryCoordination
from coffre.cluster.errors import ConfigurationError, IntegrityError, StaleMap
from coffre.cluster.identity import Identity, Role, read_certificate
from coffre.cluster.map import ClusterMap, Domain, MapNode, Policy, write_map
from coffre.cluster.membership import ClusterMaps, VerifiedMap
from coffre.cluster.testing import make_members
from coffre.cluster.transport import LoopbackTransport
from coffre.node.following import MapFollower, MapHolder
from coffre.node.memory import MemoryStore
from coffre.node.serving import Handler
from coffre.proto import coffre_pb2 as pb

from tests.contract.coordination_stores import seeded_entropy

CLINIC = Identity("test", Role.TENANT, "clinic")
NODE = MapNode(1, "a1", "127.0.0.1:7400", "alpha", "rennes", "ovh", "FR", 1 << 40)
MAP = ClusterMap("test", 5, 16, (NODE,), (Policy("1-1", 1, 1, ("FR",), Domain.NODE),), "1-1")
STAMP = (1_000_000_000_000 << 80).to_bytes(16, "big")


@pytest.fixture
def maps() -> MapHolder:
    return MapHolder(MAP, b"signed 5")


@pytest.fixture
def follower(maps: MapHolder, tmp_path: Path) -> MapFollower:
    clock = ManualClock()
    members = make_members(tmp_path / "pki", "test", [NODE.attributes])
    store = MemoryCoordination(clock, seeded_entropy("following"))
    authority = read_certificate(members.directory / "ca.crt")
    source = ClusterMaps(LoopbackTransport(CLINIC, {}), store, authority, clock)
    return MapFollower(maps, source, partial(write_map, tmp_path / "cluster.map"), clock, own=NODE)


def test_a_newer_map_is_in_the_file_and_in_use(
    follower: MapFollower, maps: MapHolder, tmp_path: Path
) -> None:
    follower.adopt(VerifiedMap(replace(MAP, epoch=7), b"signed 7"))
    assert (maps.map.epoch, maps.signed) == (7, b"signed 7")
    assert (tmp_path / "cluster.map").read_bytes() == b"signed 7"


@pytest.mark.parametrize("epoch", [4, 5])
def test_an_older_map_changes_nothing(
    follower: MapFollower, maps: MapHolder, tmp_path: Path, epoch: int
) -> None:
    follower.adopt(VerifiedMap(replace(MAP, epoch=epoch), b"signed"))
    assert (maps.map.epoch, maps.signed) == (5, b"signed 5")
    assert not (tmp_path / "cluster.map").exists()


def test_a_map_that_breaks_a_rule_is_refused(follower: MapFollower, maps: MapHolder, tmp_path: Path) -> None:
    moved = replace(NODE, site="lille")
    for changed, error in (
        (replace(MAP, epoch=6, partitions=32), IntegrityError),
        (replace(MAP, epoch=6, nodes=(replace(NODE, node_id="b1"),)), IntegrityError),
        (replace(MAP, epoch=6, nodes=(moved,), prior=(MAP.as_prior(),)), ConfigurationError),
    ):
        with pytest.raises(error):
            follower.adopt(VerifiedMap(changed, b"signed 6"))
    assert maps.map is MAP
    assert not (tmp_path / "cluster.map").exists()


def test_a_map_that_cannot_be_kept_is_not_used(
    follower: MapFollower, maps: MapHolder, tmp_path: Path
) -> None:
    (tmp_path / "cluster.map").mkdir()  # nothing can be written there
    with pytest.raises(ConfigurationError):
        follower.adopt(VerifiedMap(replace(MAP, epoch=6), b"signed 6"))
    assert maps.map is MAP


def batch(epoch: int, *operations: pb.Operation) -> pb.BatchRequest:
    return pb.BatchRequest(epoch=epoch, tenant="clinic", operations=operations, settled=[STAMP])


READ = pb.Operation(read=pb.Read(bucket="b", key="k"))
ABORT = pb.Operation(abort=pb.Abort(bucket="b", key="k", stamp=STAMP))


@pytest.mark.parametrize("epoch", [4, 6])
async def test_at_another_epoch_only_a_vote_to_give_up_is_taken(maps: MapHolder, epoch: int) -> None:
    store = MemoryStore(ManualClock())
    handler = Handler(1, "a1", store, maps, ManualClock())
    with pytest.raises(StaleMap):
        await handler.batch(CLINIC, batch(epoch, READ))
    reply = await handler.batch(CLINIC, batch(epoch, ABORT, READ))
    assert reply.votes[0] & 7 == pb.STATE_ABORTED
    assert reply.outcomes[0].code == StaleMap.code
    assert not store._marks
    assert maps.behind.is_set() is (epoch == 6)
    reply = await handler.batch(CLINIC, batch(5, READ))
    assert reply.outcomes[0].versions[0].state == pb.STATE_ABORTED
    assert store._marks
