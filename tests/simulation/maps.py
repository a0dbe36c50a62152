"""Changes of the map in the simulated world: what a seed draws of them, the operator's key, and every map there was.

Maps are signed and verified as outside. Signatures and the authority are the same in every process, since they are in
the messages of a run, and a run is the same to the byte.
"""

from __future__ import annotations

import enum
import itertools
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any
from unittest.mock import patch

from coffre.cluster.clock import ManualClock
from coffre.cluster.coordination import maps as coordinated_maps
from coffre.cluster.identity import parse_certificate, parse_key, pki
from coffre.cluster.map import ClusterMap, MapNode
from coffre.cluster.map import signed as signed_maps
from coffre.cluster.membership import MapSigner, VerifiedMap, map_source, publishing
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

__all__ = [
    "CLUSTER_ID",
    "OPERATOR",
    "Change",
    "ChangePlan",
    "MapBook",
    "authority",
    "draw_changes",
    "same_signatures",
    "with_recoding",
]

CLUSTER_ID = "51a1bead0000c0de"
OPERATOR = "alice"
DAYS = 10_000  # of certificates: no run lasts longer, whatever the clocks say


class Change(enum.Enum):
    """What an administrator wishes. tests/simulation/administration.py says how each is made."""

    JOIN = "join"
    DRAIN = "drain"
    REPLACE = "replace"
    LOSE = "lose"
    RESIZE = "resize"
    RECODE = "recode"


@dataclass(frozen=True, slots=True)
class ChangePlan:
    """What a seed draws about its map. Times in seconds of the world."""

    storm: tuple[Change, ...]  # one after the other while clients work and everything else fails
    calm: tuple[Change, ...]  # once all that has ended
    pause: float  # mean between two of them
    patience: (
        float  # part of the commands that wait for the move; others are followed by the next one at once
    )
    deaths: float  # part of the commands that die, and are repeated by somebody else
    second_thoughts: float  # part of the nodes that leave, and are taken back while data moves


def draw_changes(seed: int, hurry: float) -> ChangePlan | None:
    """Which changes of the map a run sees that repairs; None when its map stays as it is."""
    rng = random.Random(f"{seed}/map")
    if rng.random() < 0.6:
        return None
    return ChangePlan(
        storm=tuple(_draw_kinds(rng, rng.choice([1, 1, 2, 3]))),
        calm=tuple(_draw_kinds(rng, rng.choice([0, 0, 0, 1, 2]))),
        pause=hurry * rng.choice([0.5, 2.0, 5.0]),
        patience=rng.choice([0.0, 0.5, 1.0]),
        deaths=rng.choice([0.0, 0.3, 0.6]),
        second_thoughts=rng.choice([0.0, 0.0, 0.5]),
    )


def with_recoding(changes: ChangePlan, seed: int) -> ChangePlan:
    """The same, in a part of the runs with a change of the policy somewhere between."""
    rng = random.Random(f"{seed}/coding")
    if rng.random() < 0.7:
        return changes
    place = rng.randrange(len(changes.storm) + 1)
    return replace(changes, storm=(*changes.storm[:place], Change.RECODE, *changes.storm[place:]))


def _draw_kinds(rng: random.Random, count: int) -> Iterator[Change]:
    """At most one node is lost: what was written last has one shard to spare."""
    kinds = [kind for kind in Change if kind is not Change.RECODE]
    for _ in range(count):
        kind = rng.choice(kinds)
        if kind is Change.LOSE:
            kinds.remove(kind)
        yield kind


# -------------------------------------------------------------------- who signs


@dataclass(frozen=True, slots=True)
class SimulatedAuthority:
    """The authority of all simulated clusters, and the operator that it knows."""

    certificate: x509.Certificate
    signer: MapSigner


@lru_cache(maxsize=1)
def authority() -> SimulatedAuthority:
    """Made as by the commands, from keys that are the same in every process."""
    clock, secrets = ManualClock(), itertools.count(1)
    sign = x509.CertificateBuilder.sign

    def same_sign(builder: x509.CertificateBuilder, key: Any, algorithm: Any) -> x509.Certificate:
        return sign(builder, key, algorithm, ecdsa_deterministic=True)

    with ExitStack() as stack:
        for target, name, instead in (
            (ec, "generate_private_key", lambda curve: ec.derive_private_key(next(secrets), curve)),
            (x509, "random_serial_number", lambda: next(secrets)),
            (x509.CertificateBuilder, "sign", same_sign),
        ):
            stack.enter_context(patch.object(target, name, instead))
        made = pki.create_authority(CLUSTER_ID, clock, DAYS)
        issued = pki.issue_operator(made, OPERATOR, clock, DAYS)
    signer = MapSigner(parse_certificate(issued.certificate, OPERATOR), parse_key(issued.key, OPERATOR))
    return SimulatedAuthority(parse_certificate(made.certificate, "authority"), signer)


_verified = lru_cache(maxsize=1024)(signed_maps.verify_map)


def _verify_once(raw: bytes, authority: x509.Certificate, unixtime_ms: int | None = None) -> ClusterMap:
    """As shipped, once in a process for the same bytes: the certificates of a run are valid whatever its clocks say."""
    del unixtime_ms
    return _verified(raw, authority, ManualClock().unixtime_ms())


@contextmanager
def same_signatures() -> Iterator[None]:
    """Let a map that is signed twice have one signature, and what all members look at be looked at once."""
    with ExitStack() as stack:
        deterministic = ec.ECDSA(hashes.SHA256(), deterministic_signing=True)
        stack.enter_context(patch.object(signed_maps, "_ALGORITHM", deterministic))
        for module in (map_source, publishing, coordinated_maps):
            stack.enter_context(patch.object(module, "verify_map", _verify_once))
        yield


# -------------------------------------------------------------------- every map there was


class MapBook:
    """Every map that a node took or an administrator published. There is one of each epoch, or the run has failed."""

    def __init__(self, first: VerifiedMap, fail: Callable[[str], None]) -> None:
        self._by_epoch = {first.map.epoch: first}
        self._fail = fail
        self.nodes: dict[int, MapNode] = {}
        self._enter(first)

    def take(self, found: VerifiedMap) -> None:
        known = self._by_epoch.get(found.map.epoch)
        if known is None:
            self._enter(found)
        elif known.map != found.map:
            self._fail(f"there are two maps of epoch {found.map.epoch}")

    def _enter(self, found: VerifiedMap) -> None:
        self._by_epoch[found.map.epoch] = found
        self.nodes |= {node.number: node for node in found.map.nodes}

    @property
    def newest(self) -> VerifiedMap:
        return self._by_epoch[max(self._by_epoch)]

    @property
    def all(self) -> list[VerifiedMap]:
        """The oldest first."""
        return [self._by_epoch[epoch] for epoch in sorted(self._by_epoch)]

    def of(self, epoch: int) -> ClusterMap:
        return self._by_epoch[epoch].map
