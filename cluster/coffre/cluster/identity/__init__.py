"""Who a member is: certificates, the authority that issues them, mutual TLS (docs/formats/certificates.md).

It decides whom to believe that he is who he says.
May import: nothing of the other rooms.
"""

from coffre.cluster.identity._certificates import (
    UNREADABLE,
    authority_cluster_id,
    check_issuer,
    check_validity,
    load_der,
    parse_certificate,
    parse_key,
    read_certificate,
)
from coffre.cluster.identity.identity import (
    GENERATION_MAX,
    Identity,
    NodeAttributes,
    Role,
    check_jurisdiction,
    identity_of_certificate,
    identity_of_pem,
    identity_of_uri,
    tls_name,
    uri_of_identity,
)
from coffre.cluster.identity.pki import (
    AUTHORITY_DAYS,
    MEMBER_DAYS,
    Authority,
    IssuedCertificate,
    create_authority,
    issue_node,
    issue_operator,
    issue_tenant,
    read_authority,
    write_authority,
    write_issued,
)
from coffre.cluster.identity.tls import (
    TlsFiles,
    TlsMaterial,
    channel_credentials,
    load_identity,
    load_tls,
    peer_identity,
    server_credentials,
)

__all__ = [
    "AUTHORITY_DAYS",
    "GENERATION_MAX",
    "MEMBER_DAYS",
    "UNREADABLE",
    "Authority",
    "Identity",
    "IssuedCertificate",
    "NodeAttributes",
    "Role",
    "TlsFiles",
    "TlsMaterial",
    "authority_cluster_id",
    "channel_credentials",
    "check_issuer",
    "check_jurisdiction",
    "check_validity",
    "create_authority",
    "identity_of_certificate",
    "identity_of_pem",
    "identity_of_uri",
    "issue_node",
    "issue_operator",
    "issue_tenant",
    "load_der",
    "load_identity",
    "load_tls",
    "parse_certificate",
    "parse_key",
    "peer_identity",
    "read_authority",
    "read_certificate",
    "server_credentials",
    "tls_name",
    "uri_of_identity",
    "write_authority",
    "write_issued",
]
