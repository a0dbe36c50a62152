"""The first map of a cluster: from node certificates and wishes to signed bytes, and a survey of any map."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from coffre.cluster._files import read_file
from coffre.cluster.clock import Clock
from coffre.cluster.errors import ConfigurationError, InvalidArgument, Unauthenticated
from coffre.cluster.identity import (
    NodeAttributes,
    Role,
    authority_cluster_id,
    check_issuer,
    check_validity,
    identity_of_certificate,
    parse_key,
    read_certificate,
)
from coffre.cluster.map import ClusterMap, Domain, MapNode, Placement, Policy, sign_map

__all__ = [
    "OFFERED_PARTITIONS",
    "NodeOffer",
    "PolicyReport",
    "form_map",
    "offered_attributes",
    "parse_capacity",
    "parse_policy",
    "survey",
]

OFFERED_PARTITIONS = 4096
_CAPACITY = re.compile(r"([0-9]{1,19})(B|[KMGTP]B|[KMGTP]iB)?")
_CODING = re.compile(r"([0-9]{1,3})\+([0-9]{1,3})")


def parse_capacity(text: str) -> int:
    """Bytes in a text such as 4TB, 500GiB or 1000000000. Raises `InvalidArgument`."""
    found = _CAPACITY.fullmatch(text)
    if found is None:
        raise InvalidArgument(
            f"{text!r} is not a capacity: a whole number of B, KB, MB, GB, TB, PB, KiB, .. PiB"
        )
    unit = found[2] or "B"
    power = "BKMGTP".index(unit[0])
    return int(found[1]) * int((1024 if "i" in unit else 1000) ** power)


def parse_policy(
    text: str, survives: Domain, jurisdictions: Sequence[str], operator_cap: int, versions_kept: int
) -> Policy:
    """A policy from a text such as 4+2, which becomes its name too. Raises `InvalidArgument`."""
    found = _CODING.fullmatch(text)
    if found is None:
        raise InvalidArgument(f"{text!r} is not a policy: data and parity shards, such as 4+2")
    k, m = int(found[1]), int(found[2])
    return Policy(f"{k}+{m}", k, m, tuple(jurisdictions), survives, operator_cap, versions_kept)


@dataclass(frozen=True, slots=True)
class NodeOffer:
    """A node that shall be in the map; everything else is read from its certificate."""

    certificate: Path
    address: str
    capacity_bytes: int

    @classmethod
    def parse(cls, text: str, directory: Path) -> NodeOffer:
        """Read CERT=HOST:PORT=CAPACITY; CERT is a file, or the name of one in `directory`."""
        parts = text.rsplit("=", 2)
        if len(parts) != 3 or not all(parts):
            raise InvalidArgument(f"{text!r} is not a node: CERT=HOST:PORT=CAPACITY")
        named = directory / f"{parts[0]}.crt"
        path = named if named.is_file() else Path(parts[0])
        return cls(path, parts[1], parse_capacity(parts[2]))


def form_map(
    directory: Path,
    offers: Sequence[NodeOffer],
    policies: Sequence[Policy],
    partitions: int,
    signer: str,
    clock: Clock,
    coordinators: Sequence[str] = (),
) -> tuple[bytes, ClusterMap]:
    """The signed map of epoch 1, and the map. `directory` holds ca.crt, <signer>.crt and <signer>.key.
    `coordinators`: ids of the nodes that serve coordination.

    Raises `ConfigurationError`, `InvalidArgument`, `PermissionDenied`, or `PolicyViolation` when a policy
    cannot be kept on these nodes.
    """
    authority = read_certificate(directory / "ca.crt")
    nodes = []
    for number, offer in enumerate(offers, 1):
        attributes = offered_attributes(offer.certificate, directory / "ca.crt", clock)
        nodes.append(
            MapNode(
                number,
                attributes.node_id,
                offer.address,
                attributes.server,
                attributes.site,
                attributes.operator,
                attributes.jurisdiction,
                offer.capacity_bytes,
                generation=attributes.generation,
            )
        )
    numbers = {node.node_id: node.number for node in nodes}
    if unknown := [node_id for node_id in coordinators if node_id not in numbers]:
        raise InvalidArgument(f"coordinator {unknown[0]} is not among the nodes")
    cluster_map = ClusterMap(
        authority_cluster_id(authority),
        1,
        partitions,
        tuple(nodes),
        tuple(policies),
        policies[0].name,
        tuple(numbers[node_id] for node_id in coordinators),
    )
    for policy in policies:
        survey(cluster_map, policy)
    certificate = read_certificate(directory / f"{signer}.crt")
    check_issuer(certificate, authority)
    check_validity(certificate, clock.unixtime_ms(), f"{signer}.crt")
    key_path = directory / f"{signer}.key"
    return sign_map(cluster_map, certificate, parse_key(read_file(key_path), str(key_path))), cluster_map


def offered_attributes(path: Path, authority: Path, clock: Clock) -> NodeAttributes:
    """What a node's certificate says of it. Raises `ConfigurationError` unless it is valid, and of this authority."""
    certificate = read_certificate(path)
    try:
        check_issuer(certificate, read_certificate(authority))
        identity = identity_of_certificate(certificate)
    except Unauthenticated as error:
        raise ConfigurationError(f"{path}: {error}") from None
    check_validity(certificate, clock.unixtime_ms(), str(path))
    if identity.role is not Role.NODE or identity.attributes is None:
        raise ConfigurationError(f"{path} is a {identity.role.value}'s certificate, not a node's")
    return identity.attributes


@dataclass(frozen=True, slots=True)
class PolicyReport:
    """What one policy comes to on one map.

    `shards_max`: most shards of one object, by kind of domain. `spare_nodes_min`: substitutes that every
    shard has in every partition, counted up to m.
    """

    policy: Policy
    partitions: int
    shards_max: Mapping[str, int]
    spare_nodes_min: int


def survey(cluster_map: ClusterMap, policy: Policy) -> PolicyReport:
    """Place every partition. Raises `PolicyViolation` when one cannot be."""
    placement = Placement(cluster_map, policy)
    worst = Counter({"server": 0, "site": 0, "operator": 0})
    spares = []
    for partition in range(cluster_map.partitions):
        primaries = placement.primaries(partition)
        placement.check(primaries)
        nodes = [cluster_map.node(number) for number in primaries]
        for domain, groups in (
            ("server", Counter(node.server for node in nodes)),
            ("site", Counter(node.site for node in nodes)),
            ("operator", Counter(node.operator for node in nodes)),
        ):
            worst[domain] = max(worst[domain], *groups.values())
        spares.append(min(_substitutes(placement, partition, primaries)))
    return PolicyReport(policy, cluster_map.partitions, worst, min(spares))


def _substitutes(placement: Placement, partition: int, primaries: Sequence[int]) -> list[int]:
    enough = placement.policy.m
    return [
        len(list(islice(placement.substitutes(partition, primaries, shard_index), enough)))
        for shard_index in range(len(primaries))
    ]
