"""Who a member of the cluster is, as its certificate says. Every field: docs/formats/certificates.md.

The chain from a certificate to the cluster's authority is verified by TLS (and, for signers of maps, by
coffre.cluster.map) before anything here is believed.
"""

from __future__ import annotations

import enum
import re
from base64 import b32encode
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256

from coffre.cluster.errors import InvalidArgument, Unauthenticated
from coffre.cluster.identity._certificates import MALFORMED_EXTENSIONS, UNREADABLE, load_pem
from coffre.cluster.names import check_tenant
from cryptography import x509

__all__ = [
    "GENERATION_MAX",
    "Identity",
    "NodeAttributes",
    "Role",
    "check_jurisdiction",
    "identity_of_certificate",
    "identity_of_pem",
    "identity_of_uri",
    "tls_name",
    "uri_of_authority",
    "uri_of_identity",
]

_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_NAME = r"[a-z0-9](?:[a-z0-9.-]{0,61}[a-z0-9])?"
_DNS_LABEL = re.compile(_LABEL)
_DOTTED_NAME = re.compile(_NAME)
_JURISDICTION = re.compile(r"[A-Z]{2}")
_URI = re.compile(
    rf"coffre://(?P<cluster>{_LABEL})/"
    rf"(?:node/(?P<node>{_LABEL})\?server=(?P<server>{_NAME})&site=(?P<site>{_NAME})"
    rf"&operator=(?P<runs>{_NAME})&jurisdiction=(?P<jurisdiction>[A-Z]{{2}})"
    r"(?:&generation=(?P<generation>[1-9][0-9]{0,9}))?"
    rf"|tenant/(?P<tenant>{_NAME})|operator/(?P<operator>{_NAME}))"
)
_TLS_DOMAIN = "node.coffre.internal"
_DIGEST_BYTES = 20
_CACHE_SIZE = 1024
GENERATION_MAX = (1 << 32) - 1


class Role(enum.Enum):
    """What a member may be; the value is the first path component of its URI."""

    NODE = "node"
    TENANT = "tenant"
    OPERATOR = "operator"


def _check(pattern: re.Pattern[str], what: str, text: str, allowed: str) -> None:
    if not pattern.fullmatch(text):
        raise InvalidArgument(f"{text!r} is not a {what}: {allowed}, at most 63 characters")


def check_jurisdiction(jurisdiction: str) -> None:
    """Raise `InvalidArgument` unless it has the form of an ISO 3166-1 alpha-2 code, such as FR."""
    if not _JURISDICTION.fullmatch(jurisdiction):
        raise InvalidArgument(f"{jurisdiction!r} is not a jurisdiction: two capital letters, such as FR")


@dataclass(frozen=True, slots=True)
class NodeAttributes:
    """What placement needs to know of a node, and its certificate states. Raises `InvalidArgument`.

    `generation`: 0 with the first certificate. The map names one; certificates of any other open nothing.
    """

    node_id: str
    server: str
    site: str
    operator: str
    jurisdiction: str
    generation: int = 0

    def __post_init__(self) -> None:
        _check(_DNS_LABEL, "node id", self.node_id, "a-z, 0-9 and '-'")
        _check(_DOTTED_NAME, "server name", self.server, "a-z, 0-9, '-' and '.'")
        _check(_DOTTED_NAME, "site name", self.site, "a-z, 0-9, '-' and '.'")
        _check(_DOTTED_NAME, "operator name", self.operator, "a-z, 0-9, '-' and '.'")
        check_jurisdiction(self.jurisdiction)
        if not 0 <= self.generation <= GENERATION_MAX:
            raise InvalidArgument(f"the generation of a certificate is 0 to {GENERATION_MAX}")


@dataclass(frozen=True, slots=True)
class Identity:
    """One member of one cluster. `attributes` come with nodes, and with nobody else."""

    cluster_id: str
    role: Role
    name: str
    attributes: NodeAttributes | None = None

    def __post_init__(self) -> None:
        _check(_DNS_LABEL, "cluster id", self.cluster_id, "a-z, 0-9 and '-'")
        if self.role is Role.NODE:
            if self.attributes is None or self.attributes.node_id != self.name:
                raise InvalidArgument("a node's identity has attributes, under the same node id")
            return
        if self.attributes is not None:
            raise InvalidArgument(f"{self.role.value} identities have no node attributes")
        if self.role is Role.TENANT:
            check_tenant(self.name)
        else:
            _check(_DOTTED_NAME, "operator name", self.name, "a-z, 0-9, '-' and '.'")


def tls_name(cluster_id: str, attributes: NodeAttributes) -> str:
    """The DNS name that a node's certificate carries, and that nobody with other attributes can answer to.

    ``<node id>.<base32 of SHA-256, 160 bits>.node.coffre.internal``. The hash covers the cluster id and
    every attribute, each with its length in front, and the generation unless it is 0. A caller computes the
    name from the *map entry* and asks TLS for it; the handshake succeeds only if the certificate was issued
    for the same attributes.
    """
    hashed = sha256(b"coffre node v1\0")
    for text in (
        cluster_id,
        attributes.node_id,
        attributes.server,
        attributes.site,
        attributes.operator,
        attributes.jurisdiction,
        *([str(attributes.generation)] if attributes.generation else []),
    ):
        raw = text.encode()
        hashed.update(len(raw).to_bytes(4, "big") + raw)
    label = b32encode(hashed.digest()[:_DIGEST_BYTES]).decode().lower()
    return f"{attributes.node_id}.{label}.{_TLS_DOMAIN}"


def uri_of_authority(cluster_id: str) -> str:
    """The URI in the certificate of the cluster's own authority."""
    return f"coffre://{cluster_id}/authority"


def uri_of_identity(identity: Identity) -> str:
    """The URI in a member's certificate: one identity has one spelling."""
    uri = f"coffre://{identity.cluster_id}/{identity.role.value}/{identity.name}"
    if identity.attributes is None:
        return uri
    node = identity.attributes
    place = f"server={node.server}&site={node.site}&operator={node.operator}"
    generation = f"&generation={node.generation}" if node.generation else ""
    return f"{uri}?{place}&jurisdiction={node.jurisdiction}{generation}"


def identity_of_uri(uri: str) -> Identity:
    """Read what `uri_of_identity` wrote. Raises `Unauthenticated` on any other spelling."""
    found = _URI.fullmatch(uri)
    if found is None:
        raise Unauthenticated("the certificate's URI does not name a member of a Coffre cluster")
    if found["node"] is not None:
        generation = int(found["generation"] or 0)
        if generation > GENERATION_MAX:
            raise Unauthenticated("the certificate's URI has a generation that none can have")
        attributes = NodeAttributes(
            found["node"], found["server"], found["site"], found["runs"], found["jurisdiction"], generation
        )
        return Identity(found["cluster"], Role.NODE, found["node"], attributes)
    if found["tenant"] is not None:
        return Identity(found["cluster"], Role.TENANT, found["tenant"])
    return Identity(found["cluster"], Role.OPERATOR, found["operator"])


def _alternative_names(certificate: x509.Certificate) -> x509.SubjectAlternativeName:
    try:
        extensions = certificate.extensions
    except MALFORMED_EXTENSIONS as error:
        raise Unauthenticated("the certificate's extensions are malformed") from error
    try:
        if extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            raise Unauthenticated("this is the certificate of an authority, not of a member")
    except x509.ExtensionNotFound:
        pass  # end-entity certificates may leave it out
    try:
        return extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        raise Unauthenticated("the certificate names no member of a Coffre cluster") from None


def identity_of_certificate(certificate: x509.Certificate) -> Identity:
    """Who the holder of `certificate` is. Its chain and its dates are the caller's business.

    The subject alternative names must be exactly one URI, and for a node exactly the DNS name of `tls_name`.
    Raises `Unauthenticated` otherwise.
    """
    names = _alternative_names(certificate)
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    dns_names = names.get_values_for_type(x509.DNSName)
    if len(uris) != 1 or len(uris) + len(dns_names) != len(list(names)):
        raise Unauthenticated("the certificate names no member of a Coffre cluster, or several")
    identity = identity_of_uri(uris[0])
    expected = [] if identity.attributes is None else [tls_name(identity.cluster_id, identity.attributes)]
    if dns_names != expected:
        raise Unauthenticated("the certificate's DNS name and its URI do not agree")
    return identity


@lru_cache(maxsize=_CACHE_SIZE)
def identity_of_pem(pem: bytes) -> Identity:
    """`identity_of_certificate` of a PEM certificate, remembered: a peer shows the same one each time."""
    try:
        certificate = load_pem(pem)
    except UNREADABLE as error:
        raise Unauthenticated("the peer's certificate cannot be read") from error
    return identity_of_certificate(certificate)
