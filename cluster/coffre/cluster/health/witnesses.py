"""What nodes say of each other, put together: one that lies or is badly connected brands nobody. Pure functions."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from coffre.proto import coffre_pb2 as pb

__all__ = ["Testimony", "lonely_accusers", "testimonies"]

_WORDS = {
    pb.PEER_CONDITION_SLOW: "slow",
    pb.PEER_CONDITION_FLAPPING: "flapping",
    pb.PEER_CONDITION_DOWN: "down",
}
_LONELY_ACCUSATIONS = 2  # of so many others, which most do not share: look at the one who says it


@dataclass(frozen=True, slots=True)
class Testimony:
    """What others say of one node that does not look well to some of them. `seconds`: for how long, by the median."""

    number: int
    condition: str  # slow, flapping or down: what most of the witnesses say
    witnesses: tuple[int, ...]  # who say so, or something as bad
    asked: int  # nodes that answered and could have said so
    seconds: float
    lost: bool  # most of the witnesses have waited for it long enough

    @property
    def is_shared(self) -> bool:
        """Whether more than half of those that could say so do."""
        return 2 * len(self.witnesses) > self.asked

    @property
    def text(self) -> str:
        """For people: who says what of whom, and for how long."""
        minutes, seconds = divmod(round(self.seconds), 60)
        time = f"{minutes} min" if minutes else f"{seconds} s"
        return f"{self.condition}, say {len(self.witnesses)} of {self.asked} nodes, for {time}"


def testimonies(statuses: Mapping[int, pb.StatusReply]) -> dict[int, Testimony]:
    """By node, what the others say of it. `statuses`: what nodes answered, by number."""
    watching = {number for number, status in statuses.items() if status.peers_watched}
    said: dict[int, dict[int, pb.SeenPeer]] = {}
    for number in watching:
        for peer in statuses[number].peers:
            if peer.node_number != number and peer.condition in _WORDS:
                said.setdefault(peer.node_number, {})[number] = peer
    found: dict[int, Testimony] = {}
    for number, by_witness in sorted(said.items()):
        peers = by_witness.values()
        (condition, _), *_ = Counter(peer.condition for peer in peers).most_common(1)
        found[number] = Testimony(
            number,
            _WORDS[condition],
            tuple(sorted(by_witness)),
            len(watching - {number}),
            statistics.median(peer.seconds for peer in peers),
            2 * sum(peer.lost for peer in peers) > len(by_witness),
        )
    return found


def lonely_accusers(found: Mapping[int, Testimony]) -> dict[int, int]:
    """Nodes that do not see several others well which most see well, and how many."""
    counts = Counter(
        w for testimony in found.values() if not testimony.is_shared for w in testimony.witnesses
    )
    return {number: count for number, count in counts.items() if count >= _LONELY_ACCUSATIONS}
