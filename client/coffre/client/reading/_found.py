"""What a reader found of an object."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from coffre.client.nodes import View
from coffre.client.sealing import CellSet, OpenManifest
from coffre.proto import coffre_pb2 as pb

__all__ = ["Found"]


@dataclass(slots=True)
class Found:
    """An established version, and what the nodes that were asked said of it."""

    opened: OpenManifest
    sealed: pb.SealedManifest  # the copy that was verified
    versions: Mapping[int, pb.Version]  # by node number
    cells: CellSet = field(default_factory=CellSet)

    @property
    def hint(self) -> tuple[int, ...]:
        """Where the shards went, as somebody notes it who knows that the version is established; else as its writer
        meant it; empty when that names nodes that are not there any more."""
        n = self.opened.manifest.k + self.opened.manifest.m
        noted = [version for version in self.versions.values() if len(version.sealed.placement) == n]
        noted.sort(key=lambda version: version.state != pb.STATE_SETTLED)
        return tuple(noted[0].sealed.placement) if noted else ()

    def placement(self, view: View) -> tuple[int, ...]:
        """The node of each shard: who says to hold it, else the manifest's hint, else where it belongs."""
        k, m = self.opened.manifest.k, self.opened.manifest.m
        n = k + m
        places = list(self.hint or view.homes(self.opened.name, k, m))
        for node, version in self.versions.items():
            if version.HasField("shard_index") and version.shard_index < n:
                places[version.shard_index] = node
        return tuple(places)
