"""Requests for certificates: a member makes its key where it stays, and asks (docs/formats/certificates.md)."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

from coffre.cluster._files import create_file, read_file
from coffre.cluster.errors import ConfigurationError, Unauthenticated
from coffre.cluster.identity._certificates import MALFORMED_EXTENSIONS, UNREADABLE, parse_key
from coffre.cluster.identity.identity import Identity, identity_of_uri, uri_of_identity
from coffre.cluster.identity.pki import key_pem, subject_of
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import SignatureAlgorithmOID

__all__ = [
    "REQUEST_BYTES_MAX",
    "CertificateRequest",
    "create_key",
    "make_request",
    "parse_request",
    "read_key",
    "read_request",
]

_EXTENSION_REQUEST = x509.ObjectIdentifier("1.2.840.113549.1.9.14")  # RFC 2985
_UNREADABLE = (*UNREADABLE, *MALFORMED_EXTENSIONS, TypeError, Warning)  # the last two: of a subject
REQUEST_BYTES_MAX = 4096  # one with the longest names has 1,400


@dataclass(frozen=True, slots=True)
class CertificateRequest:
    """Who asks to be certified, and the key, of which the request has proved that the asker holds it."""

    identity: Identity
    key: ec.EllipticCurvePublicKey


def create_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Make a member's private key, in a file of mode 0600. Raises `AlreadyExists` rather than overwrite one."""
    key = ec.generate_private_key(ec.SECP256R1())
    create_file(path, key_pem(key), 0o600)
    return key


def read_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Read what `create_key` wrote. Raises `ConfigurationError`."""
    return parse_key(read_file(path), str(path))


def make_request(identity: Identity, key: ec.EllipticCurvePrivateKey) -> bytes:
    """The request for a certificate that says `identity` of the holder of `key`, PEM."""
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri_of_identity(identity))])
    builder = x509.CertificateSigningRequestBuilder().subject_name(
        subject_of(identity.name, identity.cluster_id)
    )
    request = builder.add_extension(names, critical=False).sign(key, hashes.SHA256())
    return request.public_bytes(Encoding.PEM)


def read_request(path: Path) -> CertificateRequest:
    """Read a request file. Raises `ConfigurationError`."""
    return parse_request(read_file(path, REQUEST_BYTES_MAX), str(path))


def parse_request(pem: bytes, what: str) -> CertificateRequest:
    """Read a request, which is in every field as `make_request` makes them.

    Raises `ConfigurationError`, in which `what` names it.
    """
    if len(pem) > REQUEST_BYTES_MAX:
        raise ConfigurationError(f"{what} is larger than {REQUEST_BYTES_MAX} bytes: it is no request")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            request = x509.load_pem_x509_csr(pem)
            fault, subject, key = _fault(request), request.subject, request.public_key()
            uris = [] if fault else _uris(request)
    except _UNREADABLE:  # what the library reads late, it reads in here
        raise ConfigurationError(f"{what} is not a certificate request in PEM form") from None
    if fault:
        raise ConfigurationError(f"{what} {fault}")
    try:
        (uri,) = uris
        identity = identity_of_uri(uri)
    except (ValueError, Unauthenticated):
        raise ConfigurationError(
            f"{what} does not ask for one name of a node, tenant or operator, spelled as coffre pki request does"
        ) from None
    if subject != subject_of(identity.name, identity.cluster_id):
        raise ConfigurationError(f"{what} has another subject than its URI")
    assert isinstance(key, ec.EllipticCurvePublicKey)  # `_fault` has looked
    return CertificateRequest(identity, key)


def _fault(request: x509.CertificateSigningRequest) -> str:
    """What is wrong with key, signature or attributes; empty when nothing is."""
    key = request.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        return "has a key that is not on P-256"
    if request.signature_algorithm_oid != SignatureAlgorithmOID.ECDSA_WITH_SHA256:
        return "is signed otherwise than by ECDSA with SHA-256"
    if not request.is_signature_valid:
        return (
            "is not signed by the key that it is for: it was changed on its way, or made with another's key"
        )
    if [attribute.oid for attribute in request.attributes] != [_EXTENSION_REQUEST]:
        return "has attributes that coffre pki request does not write"
    if [type(extension.value) for extension in request.extensions] != [x509.SubjectAlternativeName]:
        return "asks for other extensions than its name"
    return ""


def _uris(request: x509.CertificateSigningRequest) -> list[str]:
    """The names that a request asks for; several, and so none, unless all are URIs."""
    names = request.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [name.value if isinstance(name, x509.UniformResourceIdentifier) else "" for name in names]
