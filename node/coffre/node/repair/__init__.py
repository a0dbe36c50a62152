"""Repair and scrub: what this node lacks, what it rebuilds, what it hands on (docs/repair.md).

It decides what this node does with itself; no node changes another.
May import: store, following.
"""

from coffre.node.repair.messages import RepairSwitch, pack_digests, row_message
from coffre.node.repair.options import RETENTION_SECONDS_MIN, UNFINISHED_SECONDS_MIN, RepairOptions
from coffre.node.repair.repairer import Repairer
from coffre.node.repair.testimony import await_testimony, check_unknown, witness

__all__ = [
    "RETENTION_SECONDS_MIN",
    "UNFINISHED_SECONDS_MIN",
    "RepairOptions",
    "RepairSwitch",
    "Repairer",
    "await_testimony",
    "check_unknown",
    "pack_digests",
    "row_message",
    "witness",
]
