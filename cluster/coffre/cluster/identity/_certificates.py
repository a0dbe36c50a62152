"""Reading certificates and keys, and whether the cluster's authority issued them."""

from __future__ import annotations

import re
import warnings
from base64 import b32encode
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

from coffre.cluster._files import read_file
from coffre.cluster.errors import ConfigurationError, Unauthenticated
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from cryptography.utils import CryptographyDeprecationWarning

__all__ = [
    "MALFORMED_EXTENSIONS",
    "UNREADABLE",
    "authority_cluster_id",
    "check_issuer",
    "check_validity",
    "datetime_of_ms",
    "end_ms",
    "key_fingerprint",
    "load_der",
    "load_pem",
    "parse_certificate",
    "parse_key",
    "read_certificate",
]

# What the library raises on bytes that are no certificate, or none that it understands.
UNREADABLE = (ValueError, UnsupportedAlgorithm, x509.InvalidVersion, CryptographyDeprecationWarning)
MALFORMED_EXTENSIONS = (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType)
_FINGERPRINT_LETTERS = 20  # 100 bits: nobody finds a second key with the same
_AUTHORITY_URI = re.compile(r"coffre://([a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)/authority")


def datetime_of_ms(unixtime_ms: int) -> datetime:
    """The moment that a `Clock` tells, with its time zone (UTC), whole seconds as in certificates."""
    return datetime.fromtimestamp(unixtime_ms // 1000, UTC)


def end_ms(certificate: x509.Certificate) -> int:
    """The last moment at which a certificate is valid, in Unix ms."""
    return int(certificate.not_valid_after_utc.timestamp() * 1000)


def key_fingerprint(key: CertificatePublicKeyTypes) -> str:
    """What people compare to know that it is the same key, such as ``abcd-efgh-ijkl-mnop-qrst``."""
    encoded = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    letters = b32encode(sha256(b"coffre key v1\0" + encoded).digest()).decode().lower()
    return "-".join(letters[at : at + 4] for at in range(0, _FINGERPRINT_LETTERS, 4))


def load_pem(raw: bytes) -> x509.Certificate:
    """A PEM certificate. Raises one of `UNREADABLE`, also where the library tolerates and warns."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", CryptographyDeprecationWarning)
        certificate = x509.load_pem_x509_certificate(raw)
        certificate.public_key()  # the library reads it late, and a damaged one would be found by whoever asks first
    return certificate


def load_der(raw: bytes) -> x509.Certificate:
    """A DER certificate. Raises as `load_pem`."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", CryptographyDeprecationWarning)
        certificate = x509.load_der_x509_certificate(raw)
        certificate.public_key()  # as in `load_pem`
    # The encoding ends with the signature as a bit string. The library overlooks a wrong count of unused bits
    # in front of it, which the signature cannot cover; DER has one encoding, and nothing else is accepted.
    if not raw.endswith(b"\0" + certificate.signature):
        raise ValueError("the signature is not a whole number of bytes")
    return certificate


def parse_certificate(pem: bytes, what: str) -> x509.Certificate:
    """Read one PEM certificate; `what` names it in the `ConfigurationError`."""
    try:
        return load_pem(pem)
    except UNREADABLE:
        raise ConfigurationError(f"{what} is not a certificate in PEM form") from None


def read_certificate(path: Path) -> x509.Certificate:
    """Read a certificate file. Raises `ConfigurationError`."""
    return parse_certificate(read_file(path), str(path))


def parse_key(pem: bytes, what: str) -> ec.EllipticCurvePrivateKey:
    """Read a PEM private key on P-256; `what` names it in the `ConfigurationError`."""
    try:
        key = load_pem_private_key(pem, password=None)
    except TypeError:
        raise ConfigurationError(
            f"{what} is encrypted; a member's key is kept in the clear, mode 0600"
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigurationError(f"{what} is not a private key in PEM form") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ConfigurationError(f"{what} is not an ECDSA P-256 key")
    return key


def authority_cluster_id(authority: x509.Certificate) -> str:
    """The cluster whose authority this is. Raises `ConfigurationError` when it is no such certificate."""
    try:
        extensions = authority.extensions
        is_authority = extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (*MALFORMED_EXTENSIONS, x509.ExtensionNotFound):
        raise ConfigurationError("this is not the certificate of a Coffre authority") from None
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    found = _AUTHORITY_URI.fullmatch(uris[0]) if len(uris) == 1 else None
    if not is_authority or found is None:
        raise ConfigurationError("this is not the certificate of a Coffre authority")
    return found[1]


def check_issuer(certificate: x509.Certificate, authority: x509.Certificate) -> None:
    """Raise `Unauthenticated` unless `authority` signed `certificate`."""
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        raise Unauthenticated("the certificate was not issued by this cluster's authority") from None


def check_validity(certificate: x509.Certificate, unixtime_ms: int, what: str) -> None:
    """Raise `ConfigurationError` unless `certificate` is valid at that time."""
    now = datetime_of_ms(unixtime_ms)
    if now > certificate.not_valid_after_utc:
        until = certificate.not_valid_after_utc
        raise ConfigurationError(f"{what} has expired: it was valid until {until:%Y-%m-%d %H:%M:%S} UTC")
    if now < certificate.not_valid_before_utc:
        start = certificate.not_valid_before_utc
        raise ConfigurationError(
            f"{what} is valid from {start:%Y-%m-%d %H:%M:%S} UTC on; is this machine's clock right?"
        )
