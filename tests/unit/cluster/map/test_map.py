"""The cluster map: valid or refused, signed by an operator or not believed."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from coffre.cluster.clock import ManualClock
from coffre.cluster.errors import (
    AlreadyExists,
    CoffreError,
    ConfigurationError,
    IntegrityError,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    StaleMap,
    Unauthenticated,
    Unsupported,
)
from coffre.cluster.identity import issue_operator, load_der, parse_certificate, parse_key
from coffre.cluster.map import (
    ClusterMap,
    Domain,
    MapNode,
    NodeState,
    Policy,
    create_map_file,
    newer_map,
    read_map,
    read_unverified_map,
    sign_map,
    verify_map,
    write_map,
)
from coffre.cluster.map.signed import decode_map, encode_map
from coffre.cluster.testing import Members
from coffre.proto import coffre_pb2 as pb
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

NODE = MapNode(1, "n1", "10.0.0.1:7000", "s1", "paris", "ovh", "FR", 1 << 40)
OTHER = MapNode(2, "n2", "[2001:db8::2]:7000", "s2", "lille", "scw", "FR", 2 << 40, NodeState.DRAINING)
POLICY = Policy("1+1", 1, 1, ("FR",), Domain.SITE, 0, 3)
MAP = ClusterMap("0123456789abcdef", 1, 64, (NODE, OTHER), (POLICY,), "1+1")


def certificate_of(members: Members, name: str) -> x509.Certificate:
    return parse_certificate(members.issued[name].certificate, name)


def authority_of(members: Members) -> x509.Certificate:
    return parse_certificate(members.authority.certificate, "authority")


def signed_by(members: Members, name: str, cluster_map: ClusterMap = MAP) -> bytes:
    key = parse_key(members.issued[name].key, name)
    return sign_map(cluster_map, certificate_of(members, name), key)


# ------------------------------------------------------------------ validity


@pytest.mark.parametrize(
    "change",
    [
        {"number": 0},
        {"number": 1 << 32},
        {"node_id": "N"},
        {"address": "10.0.0.1"},
        {"address": "10.0.0.1:0"},
        {"address": "10.0.0.1:65536"},
        {"address": ":7000"},
        {"address": "unix:///tmp/x"},
        {"address": "a b:7000"},
        {"address": "[::1]"},
        {"site": ""},
        {"jurisdiction": "France"},
        {"capacity_bytes": 0},
        {"capacity_bytes": 1 << 63},
    ],
)
def test_nodes_that_cannot_be(change: dict[str, object]) -> None:
    with pytest.raises(InvalidArgument):
        dataclasses.replace(NODE, **change)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change",
    [
        {"name": ""},
        {"name": "a b"},
        {"k": 0, "m": 0},
        {"k": 1, "m": 0},
        {"k": 2, "m": 3},
        {"k": 200, "m": 56},
        {"jurisdictions": ()},
        {"jurisdictions": ("FR", "FR")},
        {"jurisdictions": ("fr",)},
        {"k": 4, "operator_cap": 4},
        {"operator_cap": -1},
        {"versions_kept": 0},
    ],
)
def test_policies_that_cannot_be(change: dict[str, object]) -> None:
    with pytest.raises(InvalidArgument):
        dataclasses.replace(POLICY, **change)  # type: ignore[arg-type]


MOVED = dataclasses.replace(OTHER, number=3, node_id="n3", address="10.0.0.3:7000")
SECOND = dataclasses.replace(POLICY, name="other", k=2)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"cluster_id": "a/b"}, "cluster id"),
        ({"epoch": 0}, "epoch"),
        ({"partitions": 0}, "partitions"),
        ({"partitions": (1 << 16) + 1}, "partitions"),
        ({"nodes": ()}, "nodes"),
        ({"policies": ()}, "policies"),
        ({"default_policy": "2+1"}, "default policy"),
        ({"nodes": (NODE, dataclasses.replace(MOVED, number=1))}, "node number 1 "),
        ({"nodes": (NODE, dataclasses.replace(MOVED, node_id="n1"))}, "node id n1 "),
        ({"nodes": (NODE, dataclasses.replace(MOVED, address=NODE.address))}, "address"),
        ({"nodes": (NODE, dataclasses.replace(MOVED, server="s1"))}, "two sites, paris and lille"),
        ({"policies": (POLICY, dataclasses.replace(SECOND, name="1+1"))}, "policy 1"),
        ({"policies": (POLICY, dataclasses.replace(SECOND, k=1))}, r"k\+m 1\+1"),
        ({"policies": (POLICY,) * 65}, "64 policies"),
    ],
)
def test_maps_that_cannot_be(change: dict[str, object], why: str) -> None:
    with pytest.raises(InvalidArgument, match=why):
        dataclasses.replace(MAP, **change)  # type: ignore[arg-type]


def test_a_removed_node_frees_its_address_and_not_its_number() -> None:
    gone = dataclasses.replace(NODE, state=NodeState.REMOVED)
    new = dataclasses.replace(NODE, number=3, node_id="n3")
    assert dataclasses.replace(MAP, nodes=(gone, OTHER, new)).node(3) == new
    with pytest.raises(InvalidArgument):
        dataclasses.replace(MAP, nodes=(gone, OTHER, dataclasses.replace(new, number=1)))


def test_look_ups() -> None:
    assert MAP.node(2) == OTHER
    assert MAP.policy() == MAP.policy("1+1") == POLICY
    assert POLICY.n == 2
    with pytest.raises(NotFound):
        MAP.node(3)
    with pytest.raises(NotFound):
        MAP.policy("4+2")


def test_too_many_nodes_are_refused_before_they_are_read() -> None:
    message = pb.ClusterMap(format=1)
    for _ in range(10_001):
        message.nodes.add()
    with pytest.raises(InvalidArgument, match="10000 nodes"):
        decode_map(message.SerializeToString())


# ------------------------------------------------------------------ bytes


def test_payload_is_frozen() -> None:
    assert decode_map(encode_map(MAP)) == MAP
    assert encode_map(MAP).hex() == (
        "0801121030313233343536373839616263646566180120402a32080112026e311a0d31302e302e302e313a3730303022"
        "0273312a05706172697332036f76683a0246524080808080802048012a37080212026e321a125b323030313a6462383a"
        "3a325d3a37303030220273322a056c696c6c6532037363773a02465240808080808040480232110a03312b3110011801"
        "22024652280338033a03312b31"
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [("format", 0), ("format", 3), ("nodes.state", 0), ("nodes.state", 9), ("policies.survives", 0)],
)
def test_unknown_formats_and_enums(field: str, value: int) -> None:
    message = pb.ClusterMap.FromString(encode_map(MAP))
    if field == "format":
        message.format = value
    elif field == "nodes.state":
        message.nodes[0].state = value  # type: ignore[assignment]
    else:
        message.policies[0].survives = value  # type: ignore[assignment]
    with pytest.raises(Unsupported):
        decode_map(message.SerializeToString())


# ------------------------------------------------------------------ signatures


def test_signed_and_verified(members: Members) -> None:
    assert verify_map(signed_by(members, "alice"), authority_of(members)) == MAP


@pytest.mark.parametrize("name", ["hospital", "n1"])
def test_only_operators_sign(members: Members, name: str) -> None:
    with pytest.raises(PermissionDenied):
        signed_by(members, name)
    # A forger does not ask `sign_map`: the envelope is made by hand.
    genuine = pb.SignedMap.FromString(signed_by(members, "alice"))
    key = parse_key(members.issued[name].key, name)
    genuine.signer_certificate = certificate_of(members, name).public_bytes(Encoding.DER)
    genuine.signature = key.sign(b"coffre map v1\0" + genuine.payload, ec.ECDSA(hashes.SHA256()))
    with pytest.raises(PermissionDenied):
        verify_map(genuine.SerializeToString(), authority_of(members))


def test_a_foreign_authority_of_the_same_name(members: Members, strangers: Members) -> None:
    with pytest.raises(Unauthenticated):
        verify_map(signed_by(strangers, "alice"), authority_of(members))


def test_keys_and_clusters_must_fit(members: Members) -> None:
    alice = certificate_of(members, "alice")
    with pytest.raises(ConfigurationError):
        sign_map(MAP, alice, parse_key(members.issued["n1"].key, "n1"))
    with pytest.raises(PermissionDenied):
        signed_by(members, "alice", dataclasses.replace(MAP, cluster_id="other"))


def test_an_operator_signs_for_no_other_cluster(members: Members) -> None:
    """Nor with tools of its own: the envelope is made by hand."""
    signed = pb.SignedMap.FromString(signed_by(members, "alice"))
    signed.payload = encode_map(dataclasses.replace(MAP, cluster_id="other"))
    key = parse_key(members.issued["alice"].key, "alice")
    signed.signature = key.sign(b"coffre map v1\0" + signed.payload, ec.ECDSA(hashes.SHA256()))
    with pytest.raises(PermissionDenied, match="another cluster"):
        verify_map(signed.SerializeToString(), authority_of(members))


def test_a_bit_that_no_signature_covers(members: Members) -> None:
    """The count of unused bits before a certificate's signature, where the last bit happens to be 0."""
    certificate = certificate_of(members, "alice")
    while certificate.signature[-1] & 1:
        issued = issue_operator(members.authority, "alice", ManualClock(), 30)
        certificate = parse_certificate(issued.certificate, "alice")
    raw = certificate.public_bytes(Encoding.DER)
    position = len(raw) - len(certificate.signature) - 1
    assert load_der(raw) == certificate
    with pytest.raises(ValueError, match="signature"):
        load_der(raw[:position] + b"\x01" + raw[position + 1 :])


def test_old_maps_are_read_for_ever_and_new_ones_need_a_valid_signer(members: Members) -> None:
    signed, authority = signed_by(members, "alice"), authority_of(members)
    assert verify_map(signed, authority, 1_700_000_000_000) == MAP
    for unixtime_ms in (1_000_000, 1 << 45):
        with pytest.raises(Unauthenticated):
            verify_map(signed, authority, unixtime_ms)
    assert verify_map(signed, authority) == MAP


def test_a_changed_payload(members: Members) -> None:
    signed = pb.SignedMap.FromString(signed_by(members, "alice"))
    signed.payload = encode_map(dataclasses.replace(MAP, epoch=2))
    with pytest.raises(IntegrityError, match="signature"):
        verify_map(signed.SerializeToString(), authority_of(members))


def test_every_flipped_bit_is_noticed(members: Members) -> None:
    signed, authority = signed_by(members, "alice"), authority_of(members)
    for position in range(len(signed)):
        for bit in range(8):
            damaged = bytearray(signed)
            damaged[position] ^= 1 << bit
            with pytest.raises(CoffreError):
                verify_map(bytes(damaged), authority)


def test_every_cut_is_noticed(members: Members) -> None:
    signed, authority = signed_by(members, "alice"), authority_of(members)
    for size_bytes in range(len(signed)):
        with pytest.raises(CoffreError):
            verify_map(signed[:size_bytes], authority)


def test_size_is_bounded(members: Members) -> None:
    with pytest.raises(InvalidArgument, match="bytes"):
        verify_map(bytes((64 << 20) + 1), authority_of(members))


# ------------------------------------------------------------------ epochs and files


def test_newer_maps() -> None:
    later = dataclasses.replace(MAP, epoch=2)
    assert newer_map(MAP, later) is later
    assert newer_map(MAP, dataclasses.replace(MAP)) is MAP
    with pytest.raises(StaleMap):
        newer_map(later, MAP)
    with pytest.raises(IntegrityError, match="two different"):
        newer_map(MAP, dataclasses.replace(MAP, nodes=(OTHER, NODE)))
    with pytest.raises(ConfigurationError):
        newer_map(MAP, dataclasses.replace(later, cluster_id="other"))
    with pytest.raises(IntegrityError, match="partitions"):
        newer_map(MAP, dataclasses.replace(later, partitions=128))
    with pytest.raises(IntegrityError, match="forgets node 2"):
        newer_map(MAP, dataclasses.replace(later, nodes=(NODE,)))
    with pytest.raises(IntegrityError, match="another"):
        newer_map(MAP, dataclasses.replace(later, nodes=(NODE, dataclasses.replace(OTHER, node_id="x"))))


def test_files(members: Members, tmp_path: Path) -> None:
    path, authority = tmp_path / "cluster.map", members.directory / "ca.crt"
    signed = signed_by(members, "alice")
    create_map_file(path, signed)
    with pytest.raises(AlreadyExists):
        create_map_file(path, signed)
    assert read_map(path, authority) == (MAP, signed)
    later = signed_by(members, "alice", dataclasses.replace(MAP, epoch=2))
    write_map(path, later)
    assert read_map(path, authority)[0].epoch == read_unverified_map(path).epoch == 2
    assert [entry.name for entry in tmp_path.iterdir()] == ["cluster.map"]
    with pytest.raises(ConfigurationError, match="No such file"):
        read_map(tmp_path / "none", authority)
    with pytest.raises(ConfigurationError, match="cannot write"):
        write_map(members.directory / "ca.crt" / "map", signed)
