"""Mutual TLS: a member's files, checked before use, and who the other end is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import grpc
from coffre.cluster._files import read_file
from coffre.cluster.clock import Clock
from coffre.cluster.errors import ConfigurationError, Unauthenticated
from coffre.cluster.identity._certificates import (
    authority_cluster_id,
    check_issuer,
    check_validity,
    end_ms,
    key_fingerprint,
    load_pem,
    parse_certificate,
    parse_key,
)
from coffre.cluster.identity.identity import Identity, identity_of_certificate, identity_of_pem
from cryptography.hazmat.primitives.serialization import Encoding

__all__ = [
    "TlsFiles",
    "TlsMaterial",
    "channel_credentials",
    "load_identity",
    "load_tls",
    "peer_certificate_end_ms",
    "peer_identity",
    "server_credentials",
]


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Where a member finds the authority's certificate, its own certificate, and its own key (all PEM)."""

    authority: Path
    certificate: Path
    key: Path


@dataclass(frozen=True, slots=True)
class TlsMaterial:
    """What `TlsFiles` name, checked: PEM bytes, and who they say this member is."""

    identity: Identity
    authority: bytes
    certificate: bytes
    key: bytes = field(repr=False)
    expires_unixtime_ms: int = 0  # when this member's certificate runs out
    authority_expires_unixtime_ms: int = 0


def load_tls(files: TlsFiles, clock: Clock | None = None) -> TlsMaterial:
    """Read and check the three files. With a clock, expired certificates are refused too.

    Raises `ConfigurationError` that names the file: missing, unreadable, not what it should be, a key of
    another certificate, a certificate of another authority, or one that has expired.
    """
    authority, certificate, key = (
        read_file(path) for path in (files.authority, files.certificate, files.key)
    )
    parsed_authority = parse_certificate(authority, str(files.authority))
    parsed = parse_certificate(certificate, str(files.certificate))
    own = parse_key(key, str(files.key)).public_key()
    if own != parsed.public_key():
        raise ConfigurationError(
            f"{files.key} ({key_fingerprint(own)}) does not belong to {files.certificate}, which is for the key "
            f"{key_fingerprint(parsed.public_key())}: put the certificate there that was signed for this key's request"
        )
    try:
        cluster_id = authority_cluster_id(parsed_authority)
    except ConfigurationError:
        raise ConfigurationError(f"{files.authority} is not the certificate of a Coffre authority") from None
    try:
        check_issuer(parsed, parsed_authority)
        identity = identity_of_certificate(parsed)
    except Unauthenticated as error:
        raise ConfigurationError(f"{files.certificate}: {error} ({files.authority})") from None
    if identity.cluster_id != cluster_id:
        raise ConfigurationError(f"{files.certificate} and {files.authority} are of different clusters")
    if clock is not None:
        check_validity(parsed_authority, clock.unixtime_ms(), str(files.authority))
        check_validity(parsed, clock.unixtime_ms(), str(files.certificate))
    # Re-encoded, so that gRPC sees exactly the certificates that were checked and nothing that follows them.
    return TlsMaterial(
        identity,
        parsed_authority.public_bytes(Encoding.PEM),
        parsed.public_bytes(Encoding.PEM),
        key,
        end_ms(parsed),
        end_ms(parsed_authority),
    )


def load_identity(files: TlsFiles, clock: Clock | None = None) -> Identity:
    """Who this member is, by its own files. Raises as `load_tls`."""
    return load_tls(files, clock).identity


def channel_credentials(files: TlsFiles, clock: Clock | None = None) -> grpc.ChannelCredentials:
    """Credentials for calls to nodes. Raises as `load_tls`."""
    material = load_tls(files, clock)
    return grpc.ssl_channel_credentials(material.authority, material.key, material.certificate)


def server_credentials(files: TlsFiles, clock: Clock | None = None) -> grpc.ServerCredentials:
    """Credentials of a node that talks only to members with a certificate. Raises as `load_tls`."""
    material = load_tls(files, clock)
    return grpc.ssl_server_credentials(
        [(material.key, material.certificate)], material.authority, require_client_auth=True
    )


def peer_certificate_end_ms(auth_context: Mapping[str, Iterable[bytes]]) -> int:
    """When the certificate ends that a peer has shown, in Unix ms, from `ServicerContext.auth_context()`.

    To be asked once `peer_identity` has found it in order.
    """
    (certificate,) = auth_context["x509_pem_cert"]
    return _end_of_pem(bytes(certificate))


@lru_cache(maxsize=1024)
def _end_of_pem(pem: bytes) -> int:
    return end_ms(load_pem(pem))


def peer_identity(auth_context: Mapping[str, Iterable[bytes]], cluster_id: str) -> Identity:
    """Who sent a request, from `ServicerContext.auth_context()`; TLS has verified the chain and the dates.

    Raises `Unauthenticated` without exactly one certificate, or when it is not a member's of this cluster.
    """
    certificates = list(auth_context.get("x509_pem_cert", ()))
    if len(certificates) != 1:
        raise Unauthenticated("the peer showed no certificate")
    identity = identity_of_pem(bytes(certificates[0]))
    if identity.cluster_id != cluster_id:
        raise Unauthenticated(f"the peer is a member of another cluster ({identity.cluster_id})")
    return identity
