"""Requests for certificates: one form, and whatever differs from it is refused in one line."""

from __future__ import annotations

import re
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from coffre.cluster.clock import ManualClock
from coffre.cluster.errors import AlreadyExists, ConfigurationError, InvalidArgument
from coffre.cluster.identity import (
    REQUEST_BYTES_MAX,
    Identity,
    NodeAttributes,
    Role,
    certify,
    create_key,
    identity_of_pem,
    key_fingerprint,
    make_request,
    parse_certificate,
    parse_key,
    parse_request,
    read_key,
    read_request,
)
from coffre.cluster.testing import Members
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import AttributeOID, NameOID

CLUSTER_ID = "0123456789abcdef"
TENANT_URI = f"coffre://{CLUSTER_ID}/tenant/clinic"
KEY = ec.generate_private_key(ec.SECP256R1())
TENANT = Identity(CLUSTER_ID, Role.TENANT, "clinic")
NODE = Identity(CLUSTER_ID, Role.NODE, "a1", NodeAttributes("a1", "alpha", "rennes", "ovh", "FR", 3))
Builder = x509.CertificateSigningRequestBuilder


def subject(name: str = "clinic") -> x509.Name:
    parts = ((NameOID.ORGANIZATION_NAME, f"Coffre {CLUSTER_ID}"), (NameOID.COMMON_NAME, name))
    return x509.Name([x509.NameAttribute(oid, value) for oid, value in parts])


def names(*uris: str) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri) for uri in uris])


def plain() -> Builder:
    return Builder().subject_name(subject()).add_extension(names(TENANT_URI), critical=False)


def asking(uri: str) -> Builder:
    return Builder().subject_name(subject()).add_extension(names(uri), critical=False)


def pem(request: x509.CertificateSigningRequest) -> bytes:
    return request.public_bytes(Encoding.PEM)


def signed(builder: Builder) -> bytes:
    return pem(builder.sign(KEY, hashes.SHA256()))


@pytest.mark.parametrize("identity", [TENANT, NODE, Identity(CLUSTER_ID, Role.OPERATOR, "alice")])
def test_a_request_says_who_and_proves_the_key(identity: Identity) -> None:
    found = parse_request(make_request(identity, KEY), "it")
    assert (found.identity, found.key) == (identity, KEY.public_key())


def test_the_plain_request_of_these_tests_is_in_order() -> None:
    """So that each of the others is refused for what it changes."""
    assert parse_request(signed(plain()), "it").identity == TENANT


def test_the_longest_request_fits() -> None:
    long = "x" * 63
    node = NodeAttributes(long, long, long, long, "FR", (1 << 32) - 1)
    request = make_request(Identity(long, Role.NODE, long, node), KEY)
    assert parse_request(request, "it").identity.attributes == node
    assert len(request) < REQUEST_BYTES_MAX / 2


FORGED: dict[str, tuple[Callable[[], bytes], str]] = {
    "RSA": (
        lambda: pem(plain().sign(rsa.generate_private_key(65537, 2048), hashes.SHA256())),
        "not on P-256",
    ),
    "another curve": (
        lambda: pem(plain().sign(ec.generate_private_key(ec.SECP384R1()), hashes.SHA256())),
        "not on P-256",
    ),
    "another hash": (lambda: pem(plain().sign(KEY, hashes.SHA384())), "ECDSA with SHA-256"),
    "the authority": (lambda: signed(asking(f"coffre://{CLUSTER_ID}/authority")), "one name"),
    "another spelling": (lambda: signed(asking(TENANT_URI.replace("clinic", "Clinic"))), "one name"),
    "a second URI": (
        lambda: signed(
            Builder()
            .subject_name(subject())
            .add_extension(names(TENANT_URI, TENANT_URI + "2"), critical=False)
        ),
        "one name",
    ),
    "a DNS name": (
        lambda: signed(
            Builder()
            .subject_name(subject())
            .add_extension(
                x509.SubjectAlternativeName(
                    [x509.UniformResourceIdentifier(TENANT_URI), x509.DNSName("clinic")]
                ),
                critical=False,
            )
        ),
        "one name",
    ),
    "no extension": (lambda: signed(Builder().subject_name(subject())), "attributes"),
    "rights of an authority": (
        lambda: signed(plain().add_extension(x509.BasicConstraints(True, None), critical=True)),
        "other extensions",
    ),
    "another attribute": (
        lambda: signed(plain().add_attribute(AttributeOID.CHALLENGE_PASSWORD, b"x")),
        "attributes",
    ),
    "another subject": (
        lambda: signed(
            Builder().subject_name(subject("lab")).add_extension(names(TENANT_URI), critical=False)
        ),
        "another subject",
    ),
    "nothing": (lambda: b"", "not a certificate request"),
    "too much": (lambda: make_request(TENANT, KEY) + b" " * REQUEST_BYTES_MAX, "larger than"),
}


@pytest.mark.parametrize("what", FORGED)
def test_what_differs_is_refused(what: str) -> None:
    forge, why = FORGED[what]
    with pytest.raises(ConfigurationError, match=f"^it .*{re.escape(why)}"):
        parse_request(forge(), "it")


def test_a_request_for_somebody_elses_key_is_refused() -> None:
    """Else one could have another's key certified under a name of one's own."""
    victims = plain().sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    for _ in range(200):  # until the signature is as long as the one whose place it takes
        signature = KEY.sign(victims.tbs_certrequest_bytes, ec.ECDSA(hashes.SHA256()))
        if len(signature) == len(victims.signature):
            break
    forged = victims.public_bytes(Encoding.DER).replace(victims.signature, signature)
    with pytest.raises(ConfigurationError, match="not signed by the key that it is for"):
        parse_request(pem(x509.load_der_x509_csr(forged)), "it")


def test_a_request_that_was_changed_on_its_way_is_refused() -> None:
    request = plain().sign(KEY, hashes.SHA256())
    changed = request.public_bytes(Encoding.DER).replace(b"clinic", b"clonic")
    with pytest.raises(ConfigurationError, match="it was changed on its way"):
        parse_request(pem(x509.load_der_x509_csr(changed)), "it")


def test_a_large_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a1.csr"
    path.write_bytes(make_request(TENANT, KEY) + b"\n" * REQUEST_BYTES_MAX)
    with pytest.raises(
        ConfigurationError, match=r"a1.csr is larger than 4096 bytes: it is not what it should be"
    ):
        read_request(path)


@pytest.mark.parametrize("name", [b"\x55\x04\x06\x0c\x06clinic", b"\x55\x04\x03\x03\x06clinic"])
def test_a_subject_that_the_library_cannot_read_is_refused(name: bytes) -> None:
    """A country of six letters, of which it warns; and a name of bits, on which it raises TypeError."""
    der = plain().sign(KEY, hashes.SHA256()).public_bytes(Encoding.DER)
    odd = der.replace(b"\x55\x04\x03\x0c\x06clinic", name)
    assert odd != der
    with pytest.raises(ConfigurationError, match="not a certificate request"):
        parse_request(pem(x509.load_der_x509_csr(odd)), "it")


# ------------------------------------------------------------------ keys, and what is certified


def test_keys_are_private_and_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a1.key"
    key = create_key(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    with pytest.raises(AlreadyExists):
        create_key(path)
    assert read_key(path).public_key() == key.public_key()
    assert [found.name for found in path.parent.iterdir()] == ["a1.key"]


def test_nothing_of_a_request_but_name_and_key_is_certified(members: Members) -> None:
    clock = ManualClock()
    raw = certify(members.authority, NODE, KEY.public_key(), clock, 30)
    certificate = parse_certificate(raw, "it")
    like = parse_certificate(members.issued["n1"].certificate, "n1")
    assert identity_of_pem(raw) == NODE
    assert certificate.public_key() == KEY.public_key()
    assert [(e.oid, e.critical) for e in certificate.extensions] == [
        (e.oid, e.critical) for e in like.extensions
    ]


def test_only_this_clusters_members_are_certified(members: Members) -> None:
    key = KEY.public_key()
    with pytest.raises(InvalidArgument, match="another authority"):
        certify(members.authority, Identity("elsewhere", Role.TENANT, "clinic"), key, ManualClock(), 30)
    own = parse_key(members.authority.key, "key").public_key()
    with pytest.raises(InvalidArgument, match="the authority's own key"):
        certify(members.authority, TENANT, own, ManualClock(), 30)


def test_a_fingerprint_is_short_and_of_one_key(members: Members) -> None:
    mine = key_fingerprint(KEY.public_key())
    assert re.fullmatch(r"[a-z2-7]{4}(-[a-z2-7]{4}){4}", mine)
    certified = certify(members.authority, TENANT, KEY.public_key(), ManualClock(), 30)
    assert key_fingerprint(parse_certificate(certified, "it").public_key()) == mine
    assert key_fingerprint(ec.generate_private_key(ec.SECP256R1()).public_key()) != mine


def test_the_fingerprint_of_a_known_key() -> None:
    """docs/formats/certificates.md, so that it never changes: the key with the secret 1."""
    known = ec.derive_private_key(1, ec.SECP256R1()).public_key()
    assert key_fingerprint(known) == "swfy-itig-a5rd-sxtf-avsu"
