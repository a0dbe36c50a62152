"""Who is refused: no certificate, an expired one, a foreign one, another tenant's; and what never leaves."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from coffre.client import AsyncClient, KeyRing, connect
from coffre.cluster.clock import SystemClock
from coffre.cluster.errors import (
    ConfigurationError,
    KeyUnavailable,
    NotFound,
    PermissionDenied,
)
from coffre.cluster.identity import (
    Authority,
    Identity,
    NodeAttributes,
    Role,
    TlsFiles,
    create_authority,
    issue_node,
    issue_tenant,
    read_authority,
    tls_name,
    uri_of_identity,
    write_issued,
)
from coffre.cluster.transport import GrpcTransport
from coffre.dev.local_cluster import LocalCluster
from coffre.proto import coffre_pb2 as pb
from coffre.proto import coffre_pb2_grpc as pb_grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests.integration.conftest import QUICK
from tests.patience import PATIENCE_SECONDS


def expired_tenant(authority: Authority, name: str, unixtime_ms: int) -> tuple[bytes, bytes]:
    """A certificate that was good until yesterday. `issue_tenant` refuses to go behind the authority's own start."""
    now = datetime.fromtimestamp(unixtime_ms / 1000, UTC)
    issuer = x509.load_pem_x509_certificate(authority.certificate)
    issuer_key = load_pem_private_key(authority.key, None)
    assert isinstance(issuer_key, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    uri = uri_of_identity(Identity(authority.cluster_id, Role.TENANT, name, None))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=2))
        .not_valid_after(now - timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)]), critical=False)
        .sign(issuer_key, hashes.SHA256())
    )
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return certificate.public_bytes(Encoding.PEM), pem


async def raw_status(cluster: LocalCluster, credentials: grpc.ChannelCredentials) -> grpc.StatusCode:
    """Call node 1 with these credentials; return how it ends."""
    node = cluster.map.node(1)
    options = [("grpc.ssl_target_name_override", tls_name(cluster.map.cluster_id, node.attributes))]
    async with grpc.aio.secure_channel(node.address, credentials, options) as channel:
        stub = pb_grpc.NodeStub(channel)
        request = pb.BatchRequest(epoch=1, tenant="clinic")
        request.operations.add().read.bucket = "b"
        request.operations[0].read.key = "k"
        try:
            call = stub.Exchange(timeout=PATIENCE_SECONDS)
            await call.write(request)
            reply = await call.read()
            assert isinstance(reply, pb.BatchReply)
            if reply.code:
                return next(status for status in grpc.StatusCode if status.value[0] == reply.code)
        except grpc.aio.AioRpcError as error:
            return error.code()
        return grpc.StatusCode.OK


def credentials(
    cluster: LocalCluster, certificate: bytes | None, key: bytes | None
) -> grpc.ChannelCredentials:
    authority = (cluster.directory / "pki" / "ca.crt").read_bytes()
    return grpc.ssl_channel_credentials(authority, key, certificate)


async def test_the_right_certificate_is_served(running_cluster: LocalCluster) -> None:
    pki = running_cluster.directory / "pki"
    good = credentials(running_cluster, (pki / "clinic.crt").read_bytes(), (pki / "clinic.key").read_bytes())
    assert await raw_status(running_cluster, good) is grpc.StatusCode.OK


async def test_no_certificate(running_cluster: LocalCluster) -> None:
    assert (
        await raw_status(running_cluster, credentials(running_cluster, None, None))
        is grpc.StatusCode.UNAVAILABLE
    )


async def test_an_expired_certificate(running_cluster: LocalCluster) -> None:
    """Issued by the cluster's own authority two days ago, for one day."""
    authority = read_authority(running_cluster.directory / "pki")
    expired = expired_tenant(authority, "clinic", SystemClock().unixtime_ms())
    bad = credentials(running_cluster, *expired)
    assert await raw_status(running_cluster, bad) is grpc.StatusCode.UNAVAILABLE


async def test_a_foreign_certificate(running_cluster: LocalCluster) -> None:
    clock = SystemClock()
    foreign = issue_tenant(create_authority(running_cluster.map.cluster_id, clock), "clinic", clock)
    bad = credentials(running_cluster, foreign.certificate, foreign.key)
    assert await raw_status(running_cluster, bad) is grpc.StatusCode.UNAVAILABLE


async def test_another_tenants_certificate(running_cluster: LocalCluster) -> None:
    pki = running_cluster.directory / "pki"
    lab = credentials(running_cluster, (pki / "lab.crt").read_bytes(), (pki / "lab.key").read_bytes())
    assert await raw_status(running_cluster, lab) is grpc.StatusCode.PERMISSION_DENIED


async def test_an_operator_reads_no_data(running_cluster: LocalCluster) -> None:
    pki = running_cluster.directory / "pki"
    operator = credentials(
        running_cluster, (pki / "operator.crt").read_bytes(), (pki / "operator.key").read_bytes()
    )
    assert await raw_status(running_cluster, operator) is grpc.StatusCode.PERMISSION_DENIED


async def test_tenants_do_not_meet(running_cluster: LocalCluster, client: AsyncClient) -> None:
    await client.put("shared-name", "key", b"of the clinic")
    async with await connect(running_cluster.client_config("lab"), options=QUICK) as lab:
        with pytest.raises(NotFound):
            await lab.get("shared-name", "key")
        assert [entry async for entry in lab.list("shared-name")] == []
        await lab.put("shared-name", "key", b"of the lab")
        await lab.delete("shared-name", "key")
    assert await client.get("shared-name", "key") == b"of the clinic"


async def test_a_tenant_sees_no_counters(running_cluster: LocalCluster) -> None:
    pki = running_cluster.directory / "pki"
    transport = GrpcTransport(
        running_cluster.map, TlsFiles(pki / "ca.crt", pki / "clinic.crt", pki / "clinic.key")
    )
    with pytest.raises(PermissionDenied):
        await transport.status(1, 5.0)
    await transport.close()
    operator = GrpcTransport(running_cluster.map, running_cluster.operator_tls())
    assert (await operator.status(1, 5.0)).node_id == "node-1"
    await operator.close()


async def test_another_node_cannot_stand_in(running_cluster: LocalCluster, tmp_path: Path) -> None:
    """A node's certificate for other attributes than the map's does not pass the client's handshake."""
    clock = SystemClock()
    authority = read_authority(running_cluster.directory / "pki")
    moved = NodeAttributes("node-1", "server-1", "site-3", "operator-1", "FR")
    write_issued(issue_node(authority, moved, clock), tmp_path)
    config = running_cluster.config(1).read_text().replace("../../pki/node-1", str(tmp_path / "node-1"))
    config = config.replace("../../", f"{running_cluster.directory}/")
    config = config.replace('map = "', f'map = "{running_cluster.directory}/')
    (tmp_path / "node.toml").write_text(config)
    from coffre.node.config import load_node_config
    from coffre.node.server import serve

    with pytest.raises(ConfigurationError, match="another server, site, operator or jurisdiction"):
        await serve(load_node_config(tmp_path / "node.toml"), clock, os.urandom)


async def test_another_key_ring_opens_nothing(running_cluster: LocalCluster, client: AsyncClient) -> None:
    await client.put("ring", "key", b"secret")
    async with await connect(
        running_cluster.client_config(), keys=KeyRing.generate(), options=QUICK
    ) as other:
        with pytest.raises(KeyUnavailable):
            await other.get("ring", "key")


async def test_nodes_keep_no_plaintext_and_log_no_names(own_cluster: LocalCluster) -> None:
    marker, key = b"Jeanne Moreau, 1928-01-23 ", "patient-jeanne-moreau"
    async with await connect(own_cluster.client_config(), options=QUICK) as connected:
        await connected.put("private", key, marker * 50)
        await connected.put("private", key + "-large", marker * 100_000)
        await connected.get("private", key)
        with pytest.raises(NotFound):
            await connected.get("private", key + "-none")
        await connected.flush()
    own_cluster.stop()
    ring = json.loads((own_cluster.directory / "keyring.json").read_text())
    for number in own_cluster.numbers:
        for path in own_cluster.data(number).rglob("*"):
            if path.is_file():
                assert marker[:12] not in path.read_bytes(), path
        log = own_cluster.log(number).read_text()
        assert key not in log
        assert "private" not in log
        assert ring["sealed"][:20] not in log
        for line in log.splitlines():
            assert json.loads(line)["event"]
