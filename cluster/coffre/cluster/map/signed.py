"""The cluster map, and how it is signed, verified and kept. Every byte: docs/formats/map.md."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from coffre.cluster._files import create_file, read_file, replace_file
from coffre.cluster.errors import (
    CoffreError,
    ConfigurationError,
    IntegrityError,
    InvalidArgument,
    PermissionDenied,
    Unauthenticated,
    Unsupported,
)
from coffre.cluster.identity import (
    UNREADABLE,
    Role,
    authority_cluster_id,
    check_issuer,
    check_validity,
    identity_of_certificate,
    load_der,
    read_certificate,
)
from coffre.cluster.map._bytes import decode_map, encode_map
from coffre.cluster.map._model import (
    BUCKET_POLICIES_MAX,
    MAP_BYTES_MAX,
    NODES_MAX,
    POLICIES_MAX,
    PRIOR_MAX,
    SHARDS_MAX,
    BucketPolicy,
    ClusterMap,
    Domain,
    MapNode,
    NodeState,
    Policy,
)
from coffre.cluster.map.succession import newer_map
from coffre.proto import coffre_pb2 as pb
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from google.protobuf.message import DecodeError

__all__ = [
    "BUCKET_POLICIES_MAX",
    "MAP_BYTES_MAX",
    "NODES_MAX",
    "POLICIES_MAX",
    "PRIOR_MAX",
    "SHARDS_MAX",
    "BucketPolicy",
    "ClusterMap",
    "Domain",
    "MapNode",
    "NodeState",
    "Policy",
    "create_map_file",
    "decode_map",
    "encode_map",
    "newer_map",
    "read_certificate",
    "read_file",
    "read_map",
    "read_unverified_map",
    "sign_map",
    "verify_map",
    "write_map",
]

SIGNED_MAP_FORMAT = 1
_CONTEXT = b"coffre map v1\0"
_ALGORITHM = ec.ECDSA(hashes.SHA256())


def sign_map(
    cluster_map: ClusterMap, signer: x509.Certificate, signer_key: ec.EllipticCurvePrivateKey
) -> bytes:
    """A serialized coffre.v1.SignedMap.

    Raises `PermissionDenied` unless `signer` is an operator of this map's cluster, `ConfigurationError` when
    the key is not the certificate's, `InvalidArgument` when the map is too large.
    """
    if signer_key.public_key() != signer.public_key():
        raise ConfigurationError("the signer's key does not belong to the signer's certificate")
    _check_signer(signer, cluster_map.cluster_id)
    payload = encode_map(cluster_map)
    signed = pb.SignedMap(
        format=SIGNED_MAP_FORMAT,
        payload=payload,
        signer_certificate=signer.public_bytes(Encoding.DER),
        signature=signer_key.sign(_CONTEXT + payload, _ALGORITHM),
    ).SerializeToString(deterministic=True)
    if len(signed) > MAP_BYTES_MAX:
        raise InvalidArgument(f"the signed map has {len(signed)} bytes; at most {MAP_BYTES_MAX} are allowed")
    return signed


def verify_map(raw: bytes, authority: x509.Certificate, unixtime_ms: int | None = None) -> ClusterMap:
    """The map in `raw`, once it is shown that an operator of `authority`'s cluster signed it.

    A map holds until a newer one replaces it, however long that takes, so the dates of the signer's
    certificate do not matter when a member reads a map it has. A member that *adopts* a map from elsewhere
    gives the time, and the certificate must then be valid: the key of a former operator signs no new maps.

    Raises `IntegrityError` (damaged or forged), `Unsupported` (a later format), `Unauthenticated` (no
    certificate of this authority), `PermissionDenied` (not an operator's), `InvalidArgument` (it contradicts
    itself).
    """
    signed = _parse_signed(raw)
    try:
        signer = load_der(signed.signer_certificate)
    except UNREADABLE:
        raise IntegrityError("the certificate of the map's signer is damaged") from None
    check_issuer(signer, authority)
    _check_signer(signer, authority_cluster_id(authority))
    if unixtime_ms is not None:
        _check_dates(signer, unixtime_ms)
    _check_signature(signer, signed)
    cluster_map = decode_map(signed.payload)
    if cluster_map.cluster_id != authority_cluster_id(authority):
        raise PermissionDenied(f"the map is of another cluster ({cluster_map.cluster_id}) than its signer")
    return cluster_map


def _parse_signed(raw: bytes) -> pb.SignedMap:
    if len(raw) > MAP_BYTES_MAX:
        raise InvalidArgument(f"the signed map has {len(raw)} bytes; at most {MAP_BYTES_MAX} are allowed")
    if not raw:
        raise IntegrityError(
            "the signed cluster map is empty: take it from where it was made, or from a node"
        )
    try:
        signed = pb.SignedMap.FromString(raw)
    except DecodeError:
        raise IntegrityError("this is not a signed cluster map, or it is damaged") from None
    if signed.format != SIGNED_MAP_FORMAT:
        raise Unsupported(f"signed map format {signed.format} is not known to this release")
    return signed


def _check_signer(signer: x509.Certificate, cluster_id: str) -> None:
    identity = identity_of_certificate(signer)
    if identity.role is not Role.OPERATOR:
        raise PermissionDenied(
            f"a {identity.role.value}'s certificate cannot sign cluster maps; an operator's can"
        )
    if identity.cluster_id != cluster_id:
        raise PermissionDenied(f"operator {identity.name} is of another cluster ({identity.cluster_id})")


def _check_dates(signer: x509.Certificate, unixtime_ms: int) -> None:
    try:
        check_validity(signer, unixtime_ms, "the certificate of the map's signer")
    except ConfigurationError as error:
        raise Unauthenticated(str(error)) from None


def _check_signature(signer: x509.Certificate, signed: pb.SignedMap) -> None:
    try:
        key = signer.public_key()
    except (ValueError, UnsupportedAlgorithm):
        raise IntegrityError("the key of the map's signer cannot be read") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise Unsupported("maps are signed with ECDSA on P-256")
    try:
        key.verify(signed.signature, _CONTEXT + signed.payload, _ALGORITHM)
    except InvalidSignature:
        raise IntegrityError(
            "the signature of the cluster map is wrong: it was changed or is damaged"
        ) from None


# ------------------------------------------------------------------ files


def read_map(path: Path, authority_path: Path) -> tuple[ClusterMap, bytes]:
    """The verified map in a file, and the signed bytes. Raises `ConfigurationError`, or as `verify_map`."""
    raw = read_file(path, MAP_BYTES_MAX)
    authority = read_certificate(authority_path)
    with _named(path):
        return verify_map(raw, authority), raw


def read_unverified_map(path: Path) -> ClusterMap:
    """The map in a file, on nobody's word: to be looked at, never to be acted on. Raises as `verify_map`."""
    raw = read_file(path, MAP_BYTES_MAX)
    with _named(path):
        return decode_map(_parse_signed(raw).payload)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Errors say which file it is."""
    try:
        yield
    except CoffreError as error:
        if str(path) in str(error):
            raise
        raise type(error)(f"{path}: {error}") from None


def write_map(path: Path, signed: bytes) -> None:
    """Replace the file by `signed`: whole or not at all, and on the disk when this returns."""
    replace_file(path, signed)


def create_map_file(path: Path, signed: bytes) -> None:
    """`write_map` that raises `AlreadyExists` rather than overwrite."""
    create_file(path, signed, 0o644)
