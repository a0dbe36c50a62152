"""What answers prove while the map changes: counted by hand, so that the arithmetic is seen."""

from __future__ import annotations

import pytest
from coffre.client.reading._evidence import never_acknowledged
from coffre.client.reading._replies import Replies
from coffre.client.sealing import OpenManifest
from coffre.cluster.map import Electorate, Voters
from coffre.cluster.names import ObjectName
from coffre.cluster.versions import Stamp
from coffre.proto import coffre_pb2 as pb

STAMP = Stamp(1 << 60, 7)
MOVING = Electorate((Voters((1, 2, 3, 4, 5, 6, 7, 8, 9), 6, 3), Voters((1, 2, 3, 4, 5, 6, 7, 8, 10), 6, 3)))
OPENED = OpenManifest(ObjectName("clinic", "b", "k"), pb.Manifest(kind=pb.KIND_OBJECT, k=6, m=3), b"", STAMP)


def said(node: int) -> list[pb.Version]:
    """Nodes 1 to 5 have locked it, each with a shard; the others have given it up."""
    if node > 5:
        return [pb.Version(state=pb.STATE_ABORTED, stamp=STAMP.to_bytes())]
    return [pb.Version(state=pb.STATE_LOCKED, stamp=STAMP.to_bytes(), shard_index=node)]


@pytest.mark.parametrize(
    ("silent", "departed", "expected"),
    [(set(), 0, True), ({9}, 0, False), (set(), 1, False)],
    ids=["all answer", "one may have a shard", "one was taken out that may have had one"],
)
def test_what_w_have_locked_is_skipped_when_nobody_can_ever_have_read_it(
    silent: set[int], departed: int, expected: bool
) -> None:
    """Its writer gave it up on four nodes while a reader locked it on five: W of both sets, and k is six."""
    replies: Replies = {node: said(node) for node in range(1, 11) if node not in silent}
    assert never_acknowledged(MOVING, OPENED, replies, {}, (11,), departed, refused=True) is False
    found = never_acknowledged(MOVING, OPENED, replies, {11: []}, (11,), departed, refused=True)
    assert found is expected
