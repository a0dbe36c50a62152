"""The Accepts of one round on their way: to the nodes that a version is placed on, and to their substitutes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from coffre.client._began import Began
from coffre.client.nodes import View
from coffre.client.sealing import Draft
from coffre.client.writing._rounds import Part, Round
from coffre.cluster.errors import RetryableError
from coffre.cluster.names import partition_of
from coffre.cluster.versions import Stamp
from coffre.proto import coffre_pb2 as pb
from coffre.proto.batches import accept_operation, accept_operations

__all__ = ["Sender", "Shards"]


@dataclass(slots=True)
class Shards:
    """The data of a version: one cell for each node, or shards that were staged there before."""

    placement: list[int]  # node number by shard index
    cells: Sequence[bytes | memoryview] = ()
    cell_crcs: Sequence[int] = ()
    staged: frozenset[int] = (
        frozenset()
    )  # indexes that are staged and synced; the others were lost on the way

    @property
    def is_staged(self) -> bool:
        """Whether the nodes have the cells already, from a stream."""
        return not self.cells


class Sender:
    """Sends the Accepts of one round, to substitutes too."""

    def __init__(
        self,
        view: View,
        round_: Round,
        draft: Draft,
        shards: Shards | None,
        stamp: Stamp,
        *,
        lock: Began | None,
    ) -> None:
        self._view = view
        self._round = round_
        self._draft = draft
        self._shards = shards
        self._stamp = stamp
        self._lock = lock
        self._tried: set[int] = set()
        self._to_retry: list[tuple[int, int | None]] = []
        round_.on_failure = self._on_failure

    def send_all(self) -> None:
        """To every node that decides, and to those that a shard is placed on."""
        shards, electorate = self._shards, self._round.electorate
        common = self._common()
        if shards is None:
            for node in electorate.everyone:
                self._send(node, None, common)
            return
        self._tried.update(electorate.primaries, shards.placement)
        if shards.is_staged:
            for index, node in enumerate(shards.placement):
                if node in self._view.peers:  # or it left the cluster after the shard was staged there
                    self._send(node, index if index in shards.staged else None, common)
        else:
            operations = accept_operations(common, shards.cells, shards.cell_crcs)
            for index, (node, operation) in enumerate(zip(shards.placement, operations, strict=True)):
                self._post(node, index, operation)
        for node in electorate.everyone:
            if node not in shards.placement:
                self._send(node, None, common)

    def _common(self) -> bytes:
        """What every node gets: an Accept without a shard."""
        name, shards = self._draft.name, self._shards
        sealed = self._draft.seal(self._stamp, shards.placement if shards is not None else ())
        accept = pb.Accept(bucket=name.bucket, key=name.key, sealed=sealed)
        if self._lock is not None:
            accept.lock, accept.read_unixtime_ms = True, self._lock.unixtime_ms
        return accept.SerializeToString()

    def _send(self, node: int, index: int | None, common: bytes) -> None:
        shards = self._shards
        if index is None or shards is None:
            operation = accept_operation(common)
        elif shards.is_staged:
            operation = accept_operation(common, index, staged=True)
        else:
            operation = accept_operation(common, index, shards.cells[index], shards.cell_crcs[index])
        self._post(node, index, operation)

    def _post(self, node: int, index: int | None, operation: bytes) -> None:
        self._round.expect(node)
        self._view.peers[node].writes.post(operation, Part(self._round, node, index))

    def _on_failure(self, node: int, index: int | None) -> None:
        """A node did not take its part: a substitute takes the shard, and the node may be asked again."""
        if self._round.is_stale:
            return
        if isinstance(self._round.errors[node], RetryableError):
            self._to_retry.append((node, index))
        shards = self._shards
        if index is None or shards is None or shards.is_staged:
            return
        name = self._draft.name
        allowed, placement = self._view.substitutes(name), self._view.placement(name)
        partition = partition_of(name, self._view.map.partitions)
        for substitute in placement.substitutes(partition, shards.placement, index):
            if substitute not in self._tried and substitute in allowed:
                self._tried.add(substitute)
                shards.placement[index] = substitute
                self._send(substitute, index, self._common())
                return

    def can_retry(self) -> bool:
        """Whether a node failed that may be asked again."""
        return bool(self._to_retry)

    def retry(self) -> None:
        """Ask the nodes that failed once more, with a new chance for the round to be decided."""
        again, self._to_retry = self._to_retry, []
        self._round.reopen()
        placement = self._shards.placement if self._shards else ()
        common = self._common()
        for node, index in again:
            moved = index is not None and placement[index] != node
            self._send(node, None if moved else index, common)

    def waits_in_vain(self, seconds: float) -> bool:
        """Whether every node still to answer failed recently, or has kept an earlier message for so long already."""
        peers = (self._view.peers[node] for node in self._round.unanswered)
        return all(peer.suspect or peer.writes.lags(seconds) for peer in peers)
