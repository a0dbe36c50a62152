"""The cluster's own authority and the certificates it issues. Every field: docs/formats/certificates.md."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from coffre.cluster._files import create_file, read_file
from coffre.cluster.clock import Clock
from coffre.cluster.errors import AlreadyExists, ConfigurationError, InvalidArgument
from coffre.cluster.identity._certificates import (
    authority_cluster_id,
    check_validity,
    datetime_of_ms,
    parse_certificate,
    parse_key,
)
from coffre.cluster.identity.identity import (
    Identity,
    NodeAttributes,
    Role,
    tls_name,
    uri_of_authority,
    uri_of_identity,
)
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

__all__ = [
    "AUTHORITY_DAYS",
    "MEMBER_DAYS",
    "Authority",
    "IssuedCertificate",
    "certify",
    "create_authority",
    "issue_node",
    "issue_operator",
    "issue_tenant",
    "key_pem",
    "read_authority",
    "subject_of",
    "write_authority",
    "write_issued",
]

AUTHORITY_DAYS = 3650
MEMBER_DAYS = 825
_DAYS_MAX = 36500
_BACKDATED = timedelta(minutes=5)  # a member whose clock is a little behind must not refuse a new certificate


@dataclass(frozen=True, slots=True)
class Authority:
    """The authority of one cluster: certificate and private key, PEM."""

    cluster_id: str
    certificate: bytes
    key: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class IssuedCertificate:
    """One member's certificate and private key, PEM: of a cluster for tests and development (requests.py)."""

    identity: Identity
    certificate: bytes
    key: bytes = field(repr=False)


def create_authority(cluster_id: str, clock: Clock, days: int = AUTHORITY_DAYS) -> Authority:
    """Make the key and the self-signed certificate of a new cluster. Raises `InvalidArgument`."""
    Identity(cluster_id, Role.OPERATOR, "any")  # checks the cluster id
    key = ec.generate_private_key(ec.SECP256R1())
    subject = subject_of("Coffre authority", cluster_id)
    builder = _builder(subject, subject, key.public_key(), clock, days)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_key_usage(signs_certificates=True), critical=True)
    builder = builder.add_extension(
        x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri_of_authority(cluster_id))]),
        critical=False,
    )
    certificate = builder.sign(key, hashes.SHA256())
    return Authority(cluster_id, certificate.public_bytes(Encoding.PEM), key_pem(key))


def issue_node(
    authority: Authority, attributes: NodeAttributes, clock: Clock, days: int = MEMBER_DAYS
) -> IssuedCertificate:
    """Key and certificate of a node, both made here. Raises as `certify`."""
    identity = Identity(authority.cluster_id, Role.NODE, attributes.node_id, attributes)
    return _issue(authority, identity, clock, days)


def issue_tenant(authority: Authority, name: str, clock: Clock, days: int = MEMBER_DAYS) -> IssuedCertificate:
    """Key and certificate of a tenant, both made here. Raises as `certify`."""
    return _issue(authority, Identity(authority.cluster_id, Role.TENANT, name), clock, days)


def issue_operator(
    authority: Authority, name: str, clock: Clock, days: int = MEMBER_DAYS
) -> IssuedCertificate:
    """Key and certificate of somebody who signs maps, both made here. Raises as `certify`."""
    return _issue(authority, Identity(authority.cluster_id, Role.OPERATOR, name), clock, days)


def _issue(authority: Authority, identity: Identity, clock: Clock, days: int) -> IssuedCertificate:
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = certify(authority, identity, key.public_key(), clock, days)
    return IssuedCertificate(identity, certificate, key_pem(key))


def certify(
    authority: Authority, identity: Identity, key: ec.EllipticCurvePublicKey, clock: Clock, days: int
) -> bytes:
    """The certificate that says `identity` of the holder of `key`, PEM; a node's is for both ends of TLS.

    Raises `InvalidArgument` or `ConfigurationError`.
    """
    issuer = parse_certificate(authority.certificate, "the authority's certificate")
    issuer_key = parse_key(authority.key, "the authority's key")
    check_validity(issuer, clock.unixtime_ms(), "the authority's certificate")
    if identity.cluster_id != authority.cluster_id:
        raise InvalidArgument(
            f"{identity.name} asks to be a member of cluster {identity.cluster_id}, and this is the authority of "
            f"{authority.cluster_id}: the request was made with the certificate of another authority"
        )
    if key == issuer_key.public_key():
        raise InvalidArgument("this is the authority's own key: a member makes one of its own")
    subject = subject_of(identity.name, identity.cluster_id)
    builder = _builder(subject, issuer.subject, key, clock, days)
    if datetime_of_ms(clock.unixtime_ms()) + timedelta(days=days) > issuer.not_valid_after_utc:
        until = issuer.not_valid_after_utc
        raise InvalidArgument(
            f"{days} days are longer than the authority itself is valid (until {until:%Y-%m-%d})"
        )
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri_of_identity(identity))]
    usages = [ExtendedKeyUsageOID.CLIENT_AUTH]
    if identity.attributes is not None:
        names.append(x509.DNSName(tls_name(identity.cluster_id, identity.attributes)))
        usages.append(ExtendedKeyUsageOID.SERVER_AUTH)
    issuer_id = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    for extension, critical in (
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (_key_usage(signs_certificates=False), True),
        (x509.ExtendedKeyUsage(usages), False),
        (x509.SubjectAlternativeName(names), False),
        (x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer_id), False),
    ):
        builder = builder.add_extension(extension, critical=critical)
    return builder.sign(issuer_key, hashes.SHA256()).public_bytes(Encoding.PEM)


def subject_of(name: str, cluster_id: str) -> x509.Name:
    """The subject of a member's certificate, and of its request. Nobody relies on it: the URI counts."""
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, f"Coffre {cluster_id}"[:64]),
            x509.NameAttribute(NameOID.COMMON_NAME, name),
        ]
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, clock: Clock, days: int
) -> x509.CertificateBuilder:
    if not 1 <= days <= _DAYS_MAX:
        raise InvalidArgument(f"a certificate is valid for 1 to {_DAYS_MAX} days, not {days}")
    now = datetime_of_ms(clock.unixtime_ms())
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A private key as its file has it."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


# ------------------------------------------------------------------ files


def write_authority(authority: Authority, directory: Path) -> None:
    """Write ca.crt and ca.key. Raises `AlreadyExists` rather than overwrite either."""
    _write_pair(directory, "ca", authority.certificate, authority.key)


def write_issued(issued: IssuedCertificate, directory: Path) -> None:
    """Write <name>.crt and <name>.key. Raises `AlreadyExists` rather than overwrite either."""
    _write_pair(directory, issued.identity.name, issued.certificate, issued.key)


def _write_pair(directory: Path, name: str, certificate: bytes, key: bytes) -> None:
    certificate_path, key_path = directory / f"{name}.crt", directory / f"{name}.key"
    if certificate_path.exists():  # before the key is there: a lone key would bar the next attempt
        raise AlreadyExists(f"{certificate_path} exists; it is not overwritten")
    create_file(key_path, key, 0o600)
    create_file(certificate_path, certificate, 0o644)


def read_authority(directory: Path) -> Authority:
    """Read what `write_authority` wrote. Raises `ConfigurationError`."""
    certificate_path, key_path = directory / "ca.crt", directory / "ca.key"
    certificate, key = read_file(certificate_path), read_file(key_path)
    parsed = parse_certificate(certificate, str(certificate_path))
    if parse_key(key, str(key_path)).public_key() != parsed.public_key():
        raise ConfigurationError(f"{key_path} does not belong to {certificate_path}")
    return Authority(authority_cluster_id(parsed), certificate, key)
