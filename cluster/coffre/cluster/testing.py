"""For tests: a cluster's authority and members, in one call; and nodes that say what they are told to.

The certificates are made against a `ManualClock`, start in 2023 and outlast any test run, since TLS compares
them with the clock of the machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from coffre.cluster.clock import ManualClock
from coffre.cluster.errors import Unavailable
from coffre.cluster.identity import (
    Authority,
    Identity,
    IssuedCertificate,
    NodeAttributes,
    TlsFiles,
    create_authority,
    issue_node,
    issue_operator,
    issue_tenant,
    write_authority,
    write_issued,
)
from coffre.cluster.membership import MoveReport

__all__ = ["CERTIFICATE_DAYS", "Members", "MemoryMoveReports", "make_members"]

CERTIFICATE_DAYS = 30_000


@dataclass(frozen=True, slots=True)
class Members:
    """The authority of a cluster, its members by name, and the folder with their files."""

    directory: Path
    authority: Authority
    issued: dict[str, IssuedCertificate]

    def files(self, name: str) -> TlsFiles:
        """What the member `name` starts TLS with."""
        base = self.directory
        return TlsFiles(base / "ca.crt", base / f"{name}.crt", base / f"{name}.key")

    def identity(self, name: str) -> Identity:
        """Who the member is whose certificate has this file name."""
        return self.issued[name].identity

    def attributes(self, name: str) -> NodeAttributes:
        """Of a node."""
        attributes = self.issued[name].identity.attributes
        assert attributes is not None, f"{name} is not a node"
        return attributes


def make_members(
    directory: Path,
    cluster_id: str,
    nodes: Sequence[NodeAttributes],
    tenants: Sequence[str] = (),
    operators: Sequence[str] = (),
) -> Members:
    """Make an authority and certificates for everybody, and write them into `directory`."""
    clock = ManualClock()
    authority = create_authority(cluster_id, clock, CERTIFICATE_DAYS)
    everybody = [
        *(issue_node(authority, attributes, clock, CERTIFICATE_DAYS) for attributes in nodes),
        *(issue_tenant(authority, name, clock, CERTIFICATE_DAYS) for name in tenants),
        *(issue_operator(authority, name, clock, CERTIFICATE_DAYS) for name in operators),
    ]
    write_authority(authority, directory)
    for issued in everybody:
        write_issued(issued, directory)
    return Members(directory, authority, {issued.identity.name: issued for issued in everybody})


class MemoryMoveReports:
    """The twin of what nodes report of a move (`MoveReports`, membership/moves.py). Nodes in `down` do not answer."""

    def __init__(self) -> None:
        self.reports: dict[int, MoveReport] = {}
        self.down: set[int] = set()

    async def moved(self, node: int, timeout: float) -> MoveReport:
        if node in self.down:
            raise Unavailable(f"node {node} does not answer")
        return self.reports.get(node, MoveReport(0, frozenset()))
