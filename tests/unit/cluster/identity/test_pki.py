"""Certificates: what is in them, and that forged ones are not believed."""

from __future__ import annotations

import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from coffre.cluster.clock import ManualClock
from coffre.cluster.errors import (
    AlreadyExists,
    CoffreError,
    ConfigurationError,
    InvalidArgument,
    Unauthenticated,
)
from coffre.cluster.identity import (
    UNREADABLE,
    NodeAttributes,
    Role,
    TlsFiles,
    create_authority,
    identity_of_certificate,
    identity_of_pem,
    issue_node,
    issue_tenant,
    load_der,
    load_identity,
    load_tls,
    parse_key,
    peer_identity,
    read_authority,
    server_credentials,
    tls_name,
    write_authority,
    write_issued,
)
from coffre.cluster.testing import Members
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

CLUSTER_ID = "0123456789abcdef"


def parsed(pem: bytes) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pem)


def test_what_a_node_certificate_says(members: Members) -> None:
    certificate = parsed(members.issued["n1"].certificate)
    extensions = certificate.extensions
    assert identity_of_certificate(certificate) == members.identity("n1")
    assert certificate.version is x509.Version.v3
    assert isinstance(certificate.public_key(), ec.EllipticCurvePublicKey)
    basic = extensions.get_extension_for_class(x509.BasicConstraints)
    assert basic.critical
    assert not basic.value.ca
    usage = extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical
    assert usage.value.digital_signature
    assert not usage.value.key_cert_sign
    assert set(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == {
        ExtendedKeyUsageOID.CLIENT_AUTH,
        ExtendedKeyUsageOID.SERVER_AUTH,
    }
    names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [tls_name(CLUSTER_ID, members.attributes("n1"))]
    start = datetime.fromtimestamp(ManualClock().unixtime_ms() / 1000, UTC)
    assert timedelta(0) < start - certificate.not_valid_before_utc < timedelta(hours=1)


def test_clients_cannot_serve(members: Members) -> None:
    for issued in (members.issued["hospital"], members.issued["alice"]):
        certificate = parsed(issued.certificate)
        usages = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        assert list(usages) == [ExtendedKeyUsageOID.CLIENT_AUTH]
        assert identity_of_certificate(certificate) == issued.identity


def test_what_the_authority_may(members: Members) -> None:
    certificate = parsed(members.authority.certificate)
    basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (basic.critical, basic.value.ca, basic.value.path_length) == (True, True, 0)
    usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    assert usage.key_cert_sign
    assert not usage.digital_signature
    with pytest.raises(Unauthenticated, match="authority"):
        identity_of_certificate(certificate)


def test_validity() -> None:
    clock = ManualClock()
    authority = create_authority("c", clock, 10)
    with pytest.raises(InvalidArgument, match="authority itself"):
        issue_tenant(authority, "t", clock, 11)
    for days in (0, -1, 10**6):
        with pytest.raises(InvalidArgument):
            issue_tenant(authority, "t", clock, days)
    issue_tenant(authority, "t", clock, 10)
    clock.advance(11 * 86400.0)
    with pytest.raises(ConfigurationError, match=r"expired: it was valid until 2023-11-24"):
        issue_tenant(authority, "t", clock, 1)


def test_no_secret_in_repr(members: Members) -> None:
    assert "PRIVATE" not in repr(members.authority) + repr(members.issued["n1"])
    assert "PRIVATE" not in repr(load_tls(members.files("n1")))


# ------------------------------------------------------------------ files


def test_files_are_private_and_never_overwritten(tmp_path: Path) -> None:
    directory = tmp_path / "new" / "pki"
    authority = create_authority("c", ManualClock())
    write_authority(authority, directory)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert stat.S_IMODE((directory / "ca.key").stat().st_mode) == 0o600
    assert read_authority(directory) == authority
    with pytest.raises(AlreadyExists):
        write_authority(create_authority("d", ManualClock()), directory)
    issued = issue_tenant(authority, "t", ManualClock())
    write_issued(issued, directory)
    with pytest.raises(AlreadyExists):
        write_issued(issue_tenant(authority, "t", ManualClock()), directory)
    with pytest.raises(AlreadyExists):  # a tenant named ca
        write_issued(issue_tenant(authority, "ca", ManualClock()), directory)
    (directory / "t.crt").unlink()
    with pytest.raises(AlreadyExists, match=r"t\.key"):
        write_issued(issued, directory)
    assert (directory / "t.key").read_bytes() == issued.key
    assert sorted(path.name for path in directory.iterdir()) == ["ca.crt", "ca.key", "t.key"]


def test_tls_files_that_do_not_do(members: Members, strangers: Members, tmp_path: Path) -> None:
    good = members.files("n1")
    assert load_identity(good) == members.identity("n1")
    assert load_identity(good, ManualClock()) == members.identity("n1")
    empty = tmp_path / "empty"
    empty.write_bytes(b"")
    late, early = ManualClock(1 << 45), ManualClock(1_000_000)
    cases: list[tuple[TlsFiles, ManualClock | None, str]] = [
        (TlsFiles(good.authority, good.certificate, tmp_path / "none"), None, "none: No such file"),
        (TlsFiles(good.authority, tmp_path, good.key), None, "Is a directory"),
        (TlsFiles(empty, good.certificate, good.key), None, "not a certificate"),
        (TlsFiles(good.authority, good.certificate, empty), None, "not a private key"),
        (TlsFiles(good.authority, good.certificate, members.files("n2").key), None, "does not belong"),
        (TlsFiles(strangers.files("n1").authority, good.certificate, good.key), None, "not issued by"),
        (
            TlsFiles(good.certificate, good.certificate, good.key),
            None,
            "not the certificate of a Coffre authority",
        ),
        (TlsFiles(good.authority, good.authority, members.directory / "ca.key"), None, "of an authority"),
        (good, late, "expired: it was valid until"),
        (good, early, "clock"),
    ]
    for files, clock, why in cases:
        with pytest.raises(ConfigurationError, match=why):
            server_credentials(files, clock)


# ------------------------------------------------------------------ attacks


def forge(members: Members, names: list[x509.GeneralName], *, ca: bool = False) -> bytes:
    """A certificate that the real authority signed, with whatever names."""
    issuer = parsed(members.authority.certificate)
    key = ec.generate_private_key(ec.SECP256R1())
    builder = x509.CertificateBuilder(
        issuer.subject,
        issuer.subject,
        key.public_key(),
        7,
        issuer.not_valid_before_utc,
        issuer.not_valid_after_utc,
    ).add_extension(x509.BasicConstraints(ca, None), critical=True)
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    signed = builder.sign(parse_key(members.authority.key, "key"), hashes.SHA256())
    return signed.public_bytes(Encoding.PEM)


NODE_URI = "coffre://0123456789abcdef/node/n1?server=s1&site=paris&operator=ovh&jurisdiction=FR"
TENANT_URI = "coffre://0123456789abcdef/tenant/hospital"


@pytest.mark.parametrize(
    "names",
    [
        [],
        [x509.DNSName("n1.node.coffre.internal")],
        [x509.UniformResourceIdentifier(NODE_URI)],
        [x509.UniformResourceIdentifier(NODE_URI), x509.DNSName("*.coffre.internal")],
        [
            x509.UniformResourceIdentifier(NODE_URI.replace("paris", "lille")),
            x509.DNSName(tls_name(CLUSTER_ID, NodeAttributes("n1", "s1", "paris", "ovh", "FR"))),
        ],
        [x509.UniformResourceIdentifier(TENANT_URI), x509.UniformResourceIdentifier(NODE_URI)],
        [x509.UniformResourceIdentifier(TENANT_URI), x509.UniformResourceIdentifier(TENANT_URI + "2")],
        [x509.UniformResourceIdentifier(TENANT_URI), x509.DNSName("hospital")],
        [x509.UniformResourceIdentifier(TENANT_URI), x509.RFC822Name("a@b.fr")],
        [x509.UniformResourceIdentifier("https://example.org/")],
    ],
)
def test_odd_names_are_nobody(members: Members, names: list[x509.GeneralName]) -> None:
    with pytest.raises(Unauthenticated):
        identity_of_pem(forge(members, names))


def test_an_authority_is_no_member(members: Members) -> None:
    with pytest.raises(Unauthenticated):
        identity_of_pem(forge(members, [x509.UniformResourceIdentifier(TENANT_URI)], ca=True))


def test_a_tenant_is_no_node(members: Members) -> None:
    assert identity_of_pem(members.issued["hospital"].certificate).role is Role.TENANT
    assert identity_of_pem(members.issued["hospital"].certificate).attributes is None


def test_peers(members: Members) -> None:
    context = {"x509_pem_cert": [members.issued["hospital"].certificate], "transport_security_type": [b"ssl"]}
    assert peer_identity(context, CLUSTER_ID) == members.identity("hospital")
    bad_ones: list[dict[str, list[bytes]]] = [
        {},
        {"x509_pem_cert": []},
        {"x509_pem_cert": [members.issued["hospital"].certificate] * 2},
    ]
    for bad in bad_ones:
        with pytest.raises(Unauthenticated):
            peer_identity(bad, CLUSTER_ID)
    with pytest.raises(Unauthenticated, match="another cluster"):
        peer_identity(context, "fedcba9876543210")


def test_damaged_certificates_raise_nothing_else(members: Members) -> None:
    der = parsed(members.issued["n1"].certificate).public_bytes(Encoding.DER)
    for position in range(len(der)):
        damaged = der[:position] + bytes([der[position] ^ 0x55]) + der[position + 1 :]
        try:
            certificate = load_der(damaged)
        except UNREADABLE:
            continue
        try:
            identity_of_certificate(certificate)
        except CoffreError:
            continue  # the others differ where identities do not look; TLS checks the signature


def test_a_node_keeps_its_attributes_when_issued_anew(members: Members) -> None:
    again = issue_node(members.authority, members.attributes("n1"), ManualClock(), 30)
    assert again.identity == members.identity("n1")
    assert again.key != members.issued["n1"].key
