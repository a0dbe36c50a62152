"""Identities: one spelling each, and nothing else is believed."""

from __future__ import annotations

import dataclasses

import pytest
from coffre.cluster.errors import InvalidArgument, Unauthenticated
from coffre.cluster.identity import (
    GENERATION_MAX,
    Identity,
    NodeAttributes,
    Role,
    identity_of_pem,
    identity_of_uri,
    tls_name,
    uri_of_identity,
)
from hypothesis import given
from hypothesis import strategies as st

NODE = NodeAttributes("n1", "srv-1.paris", "paris", "ovh", "FR")
CLUSTER = "0123456789abcdef"

_names = st.from_regex(r"[a-z0-9](?:[a-z0-9.-]{0,20}[a-z0-9])?", fullmatch=True)
_labels = st.from_regex(r"[a-z0-9](?:[a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True)
_attributes = st.builds(
    NodeAttributes,
    _labels,
    _names,
    _names,
    _names,
    st.from_regex(r"[A-Z]{2}", fullmatch=True),
    st.integers(0, GENERATION_MAX),
)
_identities = st.one_of(
    st.builds(lambda c, a: Identity(c, Role.NODE, a.node_id, a), _labels, _attributes),
    st.builds(lambda c, n: Identity(c, Role.TENANT, n), _labels, _names),
    st.builds(lambda c, n: Identity(c, Role.OPERATOR, n), _labels, _names),
)


@given(_identities)
def test_uri_round_trip(identity: Identity) -> None:
    assert identity_of_uri(uri_of_identity(identity)) == identity


@given(_identities, st.data())
def test_uri_reading_is_strict(identity: Identity, data: st.DataObject) -> None:
    """Whatever is read back spells exactly as it was given: no two URIs stand for one member."""
    uri = uri_of_identity(identity)
    at = data.draw(st.integers(0, len(uri)))
    odd = uri[:at] + data.draw(
        st.sampled_from(["%20", "\n", "A", "/", "?", "&", "=", "\0", "é", ".", "-", "x"])
    )
    odd += uri[at + data.draw(st.integers(0, 1)) :]
    try:
        read = identity_of_uri(odd)
    except Unauthenticated:
        return
    assert uri_of_identity(read) == odd


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "coffre://c/authority",
        "coffre://c/tenant/",
        "coffre://c/tenant/a/b",
        "coffre://c/tenant/a?server=s",
        "coffre://c/Tenant/a",
        "coffre://c/tenant/a\n",
        "coffre:///tenant/a",
        "coffre://c.d/tenant/a",
        "https://c/tenant/a",
        "coffre://c/node/n",
        "coffre://c/node/n?site=s&server=s&operator=o&jurisdiction=FR",
        "coffre://c/node/n?server=s&site=s&operator=o&jurisdiction=fr",
        "coffre://c/node/n?server=s&site=s&operator=o&jurisdiction=FR&x=y",
        "coffre://c/node/n.m?server=s&site=s&operator=o&jurisdiction=FR",
    ],
)
def test_other_spellings_are_refused(uri: str) -> None:
    with pytest.raises(Unauthenticated):
        identity_of_uri(uri)


def test_tls_name_depends_on_every_attribute() -> None:
    names = {tls_name(CLUSTER, NODE), tls_name("other", NODE)}
    others: dict[str, str | int] = {"jurisdiction": "XY", "generation": 1}
    for field in dataclasses.fields(NODE):
        changed = {field.name: others.get(field.name, "zz")}
        names.add(tls_name(CLUSTER, dataclasses.replace(NODE, **changed)))  # type: ignore[arg-type]
    assert len(names) == 8
    assert all(len(label) <= 63 for name in names for label in name.split("."))


def test_tls_name_is_unambiguous() -> None:
    one = dataclasses.replace(NODE, server="ab", site="c")
    other = dataclasses.replace(NODE, server="a", site="bc")
    assert tls_name(CLUSTER, one) != tls_name(CLUSTER, other)


def test_tls_name_golden() -> None:
    """Frozen: certificates in the field carry it."""
    assert tls_name(CLUSTER, NODE) == "n1.lcoqw7tndup5izcnq3apfbe6bnpztax4.node.coffre.internal"


@pytest.mark.parametrize(
    "change",
    [
        {"node_id": "n.1"},
        {"node_id": ""},
        {"node_id": "N1"},
        {"node_id": "n" * 64},
        {"server": "a&b"},
        {"site": "-a"},
        {"operator": "a=b"},
        {"operator": "a\n"},
        {"jurisdiction": "fr"},
        {"jurisdiction": "FRA"},
        {"generation": -1},
        {"generation": 1 << 32},
    ],
)
def test_attributes_are_checked(change: dict[str, str | int]) -> None:
    with pytest.raises(InvalidArgument):
        dataclasses.replace(NODE, **change)  # type: ignore[arg-type]


def test_identities_are_checked() -> None:
    with pytest.raises(InvalidArgument):
        Identity(CLUSTER, Role.NODE, "n1")
    with pytest.raises(InvalidArgument):
        Identity(CLUSTER, Role.NODE, "n2", NODE)
    with pytest.raises(InvalidArgument):
        Identity(CLUSTER, Role.TENANT, "n1", NODE)
    with pytest.raises(InvalidArgument):
        Identity(CLUSTER, Role.TENANT, "../etc")
    with pytest.raises(InvalidArgument):
        Identity("a/b", Role.TENANT, "t")


@pytest.mark.parametrize(
    "pem", [b"", b"\xff" * 10, b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
)
def test_unreadable_pem(pem: bytes) -> None:
    with pytest.raises(Unauthenticated):
        identity_of_pem(pem)


def test_each_generation_has_a_name_of_its_own() -> None:
    """The first one has the name and the URI that certificates had before there were generations."""
    later = [dataclasses.replace(NODE, generation=generation) for generation in (0, 1, 2, 11)]
    assert later[0] == NODE
    assert len({tls_name(CLUSTER, attributes) for attributes in later}) == len(later)
    uris = [uri_of_identity(Identity(CLUSTER, Role.NODE, "n1", attributes)) for attributes in later]
    assert uris[1] == f"{uris[0]}&generation=1"
    for wrong in (
        "&generation=0",
        "&generation=01",
        "&generation=",
        "&generation=4294967296",
        "&generation=1&",
    ):
        with pytest.raises(Unauthenticated):
            identity_of_uri(uris[0] + wrong)
