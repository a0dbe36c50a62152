"""Files and values that were damaged: what reads them says so, or finds what was written, and raises nothing else."""

from __future__ import annotations

import base64
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from coffre.client import KeyRing
from coffre.client.config import load_client_config
from coffre.client.reading import parse_token
from coffre.client.sealing import Sealer
from coffre.cluster.admin.operator import load_operator_config
from coffre.cluster.coordination._values import decode, encode
from coffre.cluster.errors import CoffreError
from coffre.cluster.identity import (
    REQUEST_BYTES_MAX,
    CertificateRequest,
    Identity,
    NodeAttributes,
    Role,
    TlsFiles,
    load_identity,
    make_request,
    parse_request,
)
from coffre.cluster.map import ClusterMap, read_map
from coffre.cluster.names import ObjectName
from coffre.cluster.versions import Stamp
from coffre.dev.local_cluster import ClusterShape, LocalCluster
from coffre.node.config import load_node_config
from coffre.node.disk.records import decode_record, encode_record
from coffre.node.disk.rows import decode_mark, decode_repair, encode_mark, encode_repair
from coffre.node.repair.messages import row_of_message, unpack_digests
from coffre.node.store import Accept, QueueRepair
from coffre.proto import coffre_pb2 as pb
from coffre.proto import coordination_pb2 as cpb
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from google.protobuf.message import DecodeError

from tests.fuzz.mangle import mangled_bytes

_TRIES = 25
_PASSPHRASE = b"a passphrase for tests"
_NAME = ObjectName("clinic", "b", "k")
_STAMP = bytes(range(16))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> LocalCluster:
    """The files of a cluster that never starts."""
    return LocalCluster.create(tmp_path_factory.mktemp("files") / "cluster", ClusterShape())


def _tries(rng: random.Random, raw: bytes, read: Callable[[bytes], object]) -> list[object]:
    """What `read` makes of damaged copies, where it makes anything of them."""
    found = []
    for _ in range(_TRIES):
        try:
            found.append(read(mangled_bytes(rng, raw)))
        except CoffreError:
            continue
    return found


def test_what_is_signed_or_sealed_is_read_as_it_was_or_not_at_all(
    seed: int, cluster: LocalCluster, tmp_path: Path
) -> None:
    rng, copy = random.Random(seed), tmp_path / "copy"
    accept = Accept(_NAME, 3, _STAMP, False, _STAMP, b"manifest", b"m" * 16, (1, 2, 3), 0, b"cell", 7)
    record = encode_record(accept, _NAME.context(), 0, None)
    repair = encode_repair(b"key", QueueRepair(_NAME, 3, _STAMP, 1), found_here=True)
    authority = cluster.directory / "pki" / "ca.crt"

    def map_of(raw: bytes) -> ClusterMap:
        copy.write_bytes(raw)
        return read_map(copy, authority)[0]

    def same(raw: bytes, read: Callable[[bytes], object]) -> None:
        assert all(found == read(raw) for found in _tries(rng, raw, read))

    same((cluster.directory / "cluster.map").read_bytes(), map_of)
    same(record, lambda raw: decode_record(raw, len(raw)))
    same(encode_mark(b"key", _STAMP), lambda raw: decode_mark(b"key", raw))
    same(repair, lambda raw: decode_repair(b"key", raw))


async def test_a_manifest_is_opened_as_it_was_sealed_or_not_at_all(seed: int) -> None:
    rng = random.Random(seed)
    sealer = Sealer(KeyRing.generate(rng.randbytes), rng.randbytes)
    draft = await sealer.draft(_NAME, pb.KIND_OBJECT, content_type="text/plain", metadata={"a": "b"})
    sealed = draft.seal(Stamp.from_bytes(_STAMP), (1, 2, 3))
    written = await sealer.open(_NAME, sealed)
    for _ in range(_TRIES):
        raw, mac = sealed.manifest, sealed.mac
        if rng.random() < 0.8:
            raw = mangled_bytes(rng, raw)
        else:
            mac = mangled_bytes(rng, mac)
        try:
            opened = await sealer.open(_NAME, pb.SealedManifest(manifest=raw, mac=mac))
        except CoffreError:
            continue
        assert opened == written


def test_damaged_configuration_is_refused_in_one_line(
    seed: int, cluster: LocalCluster, tmp_path: Path
) -> None:
    rng = random.Random(seed)
    loaders: dict[Path, Callable[[Path], object]] = {
        cluster.config(1): load_node_config,
        cluster.client_config(): load_client_config,
        cluster.directory / "operator.toml": load_operator_config,
    }
    for path, load in loaders.items():
        copy = tmp_path / path.name

        def read(raw: bytes, copy: Path = copy, load: Callable[[Path], object] = load) -> object:
            copy.write_bytes(raw)
            return load(copy)

        _tries(rng, path.read_bytes(), read)


def test_damaged_certificates_and_keys_are_refused(seed: int, cluster: LocalCluster, tmp_path: Path) -> None:
    rng = random.Random(seed)
    files = load_client_config(cluster.client_config()).tls
    whole = load_identity(files)
    for name in ("authority", "certificate", "key"):
        copy = tmp_path / name

        def read(raw: bytes, copy: Path = copy, name: str = name) -> object:
            copy.write_bytes(raw)
            paths = {
                "authority": files.authority,
                "certificate": files.certificate,
                "key": files.key,
                name: copy,
            }
            return load_identity(TlsFiles(**paths))

        assert all(found == whole for found in _tries(rng, getattr(files, name).read_bytes(), read))


_KEY = ec.generate_private_key(ec.SECP256R1())
_NODE = Identity("0123456789abcdef", Role.NODE, "a1", NodeAttributes("a1", "alpha", "rennes", "ovh", "FR", 3))
_ECDSA_WITH_SHA256 = bytes.fromhex("300a06082a8648ce3d040302")


def _der(tag: int, content: bytes) -> bytes:
    length = len(content)
    return bytes([tag, *([length] if length < 128 else [0x82, length >> 8, length & 255])]) + content


def _armoured(der: bytes) -> bytes:
    lines = base64.encodebytes(der)
    return b"-----BEGIN CERTIFICATE REQUEST-----\n" + lines + b"-----END CERTIFICATE REQUEST-----\n"


def _signed_anew(body: bytes) -> bytes:
    """Whatever a holder of a key may send: the signature is good, what it is of need not be."""
    signature = _KEY.sign(body, ec.ECDSA(hashes.SHA256()))
    return _armoured(_der(0x30, body + _ECDSA_WITH_SHA256 + _der(0x03, b"\0" + signature)))


def test_a_damaged_request_for_a_certificate_is_refused(seed: int) -> None:
    rng, pem = random.Random(seed), make_request(_NODE, _KEY)
    request = x509.load_pem_x509_csr(pem)

    def found(whole: bytes, finish: Callable[[bytes], bytes]) -> list[object]:
        return _tries(rng, whole, lambda raw: parse_request(finish(raw), "it"))

    same = parse_request(pem, "it")
    for one in (*found(pem, bytes), *found(request.public_bytes(Encoding.DER), _armoured)):
        assert one == same
    body = request.tbs_certrequest_bytes
    assert parse_request(_signed_anew(body), "it") == same
    for one in found(body, _signed_anew):  # the holder of a key may ask for another place
        assert isinstance(one, CertificateRequest)
        asked = one.identity
        assert (asked.cluster_id, asked.role, asked.name) == (_NODE.cluster_id, _NODE.role, _NODE.name)
        assert one.key == same.key
    _tries(rng, rng.randbytes(REQUEST_BYTES_MAX), lambda raw: parse_request(raw, "it"))


def test_a_damaged_key_ring_is_refused(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    path, copy = tmp_path / "ring.json", tmp_path / "copy.json"
    ring = KeyRing.generate(rng.randbytes)
    ring.save(path, _PASSPHRASE)

    def read(raw: bytes) -> tuple[str, ...]:
        copy.write_bytes(raw)
        return KeyRing.load(copy, _PASSPHRASE).key_ids

    for _ in range(2):  # each that gets far enough derives a key, which is slow by design
        try:
            assert read(mangled_bytes(rng, path.read_bytes())) == ring.key_ids
        except CoffreError:
            continue


def _read_row(raw: bytes) -> object:
    try:
        return row_of_message(pb.NameRow.FromString(raw))
    except DecodeError:  # gRPC refuses it
        return None


def test_damaged_values_of_others_are_refused(seed: int) -> None:
    rng = random.Random(seed)
    row = pb.NameRow(tenant="clinic", bucket="b", key="k")
    row.versions.add(stamp=_STAMP, state=pb.STATE_SETTLED, shard_index=2)
    bucket = encode(cpb.Bucket(tenant="clinic", name="b", policy="4-2"))
    _tries(rng, row.SerializeToString(), _read_row)
    _tries(rng, bucket, lambda raw: decode(cpb.Bucket, raw))
    _tries(rng, bytes(52), unpack_digests)
    _tries(rng, str(Stamp.from_bytes(_STAMP)).encode(), lambda raw: Stamp.parse(raw.decode("latin-1")))
    _tries(rng, b"bmFtZQ==", lambda raw: parse_token(raw.decode("latin-1")))
