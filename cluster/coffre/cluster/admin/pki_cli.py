"""`coffre pki`: the authority of a cluster, and certificates by request (docs/formats/certificates.md)."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import click
from coffre.cluster._files import create_file, replace_file
from coffre.cluster.admin.asking import confirmed
from coffre.cluster.admin.cli_errors import one_line_errors
from coffre.cluster.admin.groups import CommandGroup
from coffre.cluster.clock import SystemClock
from coffre.cluster.errors import AlreadyExists, ConfigurationError, InvalidArgument, Unauthenticated
from coffre.cluster.identity import (
    AUTHORITY_DAYS,
    GENERATION_MAX,
    MEMBER_DAYS,
    CertificateRequest,
    Identity,
    NodeAttributes,
    Role,
    authority_cluster_id,
    certify,
    create_authority,
    create_key,
    identity_of_certificate,
    key_fingerprint,
    make_request,
    parse_certificate,
    read_authority,
    read_certificate,
    read_key,
    read_request,
    write_authority,
)
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

__all__ = ["pki"]

_FILE = click.Path(path_type=Path, dir_okay=False)
_FOLDER = click.Path(path_type=Path, file_okay=False)
_PLACE = ("server", "site", "operator", "jurisdiction")
_F = TypeVar("_F", bound=Callable[..., object])


def _placed(command: _F) -> _F:
    """The options that say where a node is; none of them has a default, to tell what was said."""
    for option in (
        click.option(
            "--generation", type=click.IntRange(0, GENERATION_MAX), help="0 with the first certificate."
        ),
        click.option("--jurisdiction", help="ISO 3166-1 alpha-2 code of the site's country, such as FR."),
        click.option("--operator", help="The company that runs the machine."),
        click.option("--site", help="The data centre that the machine stands in."),
        click.option("--server", help="The machine that the node runs on."),
    ):
        command = option(command)
    return command


@click.group(cls=CommandGroup)
def pki() -> None:
    """The cluster's own authority: who is a node, a tenant, an operator.

    Each member makes its private key on its own machine (request); the authority certifies it (sign), and the
    certificate is put beside the key. No private key is ever carried.
    """


@pki.command("init")
@click.option("--dir", "directory", type=_FOLDER, required=True, help="Folder of the authority.")
@click.option("--days", type=click.IntRange(1), default=AUTHORITY_DAYS, show_default=True, help="Validity.")
@one_line_errors
def pki_init(directory: Path, days: int) -> None:
    """Make a new authority, and with it a new cluster id."""
    authority = create_authority(secrets.token_hex(8), SystemClock(), days)
    write_authority(authority, directory)
    certificate = parse_certificate(authority.certificate, "ca.crt")
    click.echo(f"cluster {authority.cluster_id}: {directory / 'ca.crt'}, {directory / 'ca.key'}")
    click.echo(f"fingerprint of the authority: {key_fingerprint(certificate.public_key())}")
    click.echo(f"Hand out {directory / 'ca.crt'}: every member needs it to make its request.")
    click.echo(f"Keep {directory / 'ca.key'} off line: whoever has it can join as anybody.")


# ------------------------------------------------------------------ request, where the key is


@pki.group("request")
def pki_request() -> None:
    """Make a private key here, and a request for its certificate."""


def _asking(command: _F) -> _F:
    """The options of all requests."""
    for option in (
        click.option("--renew", is_flag=True, help="Make a new key beside the old one: NAME.next.key."),
        click.option(
            "--key", type=_FILE, help="Ask again with this key, which is there, instead of making one."
        ),
        click.option(
            "--authority", type=_FILE, help="Certificate of the authority; ca.crt in --dir unless given."
        ),
        click.option("--dir", "directory", type=_FOLDER, required=True, help="Folder of the key: NAME.key."),
    ):
        command = option(command)
    return command


@pki_request.command("node")
@click.argument("name")
@_placed
@_asking
@one_line_errors
def request_node(
    name: str,
    directory: Path,
    authority: Path | None,
    key: Path | None,
    renew: bool,
    generation: int | None,
    **place: str | None,
) -> None:
    """NAME is the node's id for life. With --renew it asks for what NAME.crt in --dir says, one generation later."""
    known = {what: value for what, value in place.items() if value is not None}
    present = directory / f"{name}.crt"
    if renew and present.exists():
        before = _member(present).attributes
        if before is None or before.node_id != name:
            raise ConfigurationError(f"{present} is not the certificate of node {name}")
        known = {what: getattr(before, what) for what in _PLACE} | known
        generation = before.generation + 1 if generation is None else generation
    if missing := [f"--{what}" for what in _PLACE if what not in known]:
        raise InvalidArgument(f"{', '.join(missing)}: say where node {name} is")
    attributes = NodeAttributes(name, **known, generation=generation or 0)
    _request(_Asking(directory, authority, key, renew), Role.NODE, name, attributes)


@pki_request.command("tenant")
@click.argument("name")
@_asking
@one_line_errors
def request_tenant(name: str, directory: Path, authority: Path | None, key: Path | None, renew: bool) -> None:
    """NAME owns its own buckets, and reaches nobody else's."""
    _request(_Asking(directory, authority, key, renew), Role.TENANT, name)


@pki_request.command("operator")
@click.argument("name")
@_asking
@one_line_errors
def request_operator(
    name: str, directory: Path, authority: Path | None, key: Path | None, renew: bool
) -> None:
    """NAME signs cluster maps and looks after nodes; it reaches no records."""
    _request(_Asking(directory, authority, key, renew), Role.OPERATOR, name)


@dataclass(frozen=True, slots=True)
class _Asking:
    """The options that all requests have."""

    directory: Path
    authority: Path | None
    key: Path | None
    renew: bool

    def read_authority(self) -> x509.Certificate:
        path = self.authority or self.directory / "ca.crt"
        if self.authority is None and not path.exists():
            raise ConfigurationError(
                f"{path} is missing: put the authority's certificate there (it is public), or name it with --authority"
            )
        certificate = read_certificate(path)
        try:
            authority_cluster_id(certificate)
        except ConfigurationError as error:
            raise ConfigurationError(f"{path}: {error}") from None
        return certificate

    def key_path(self, name: str) -> Path:
        path = self.key or self.directory / (f"{name}.next.key" if self.renew else f"{name}.key")
        if path.suffix != ".key" or path.name == "ca.key":
            raise InvalidArgument(
                f"{path}: a member's key is in a file NAME.key, and ca.key is the authority's"
            )
        return path


def _request(asking: _Asking, role: Role, name: str, attributes: NodeAttributes | None = None) -> None:
    authority = asking.read_authority()
    identity = Identity(authority_cluster_id(authority), role, name, attributes)
    path = asking.key_path(name)
    key = read_key(path) if asking.key else _new_key(path, asking.renew)
    request = path.with_suffix(".csr")
    replace_file(request, make_request(identity, key))
    click.echo(
        f"{role.value} {name} of cluster {identity.cluster_id}: {path} stays here, {request} is the request"
    )
    click.echo(f"fingerprint of the key: {key_fingerprint(key.public_key())}")
    click.echo(f"fingerprint of the authority: {key_fingerprint(authority.public_key())}")
    click.echo(f"Carry {request.name} to the authority (coffre pki sign {request.name} --dir ...).")
    click.echo(f"The certificate that it writes goes here, as {path.with_suffix('.crt')}.")


def _new_key(path: Path, renew: bool) -> ec.EllipticCurvePrivateKey:
    try:
        return create_key(path)
    except AlreadyExists:
        what = "" if renew else "--renew makes a new key beside it, "
        text = f"{path} exists; it is not overwritten: {what}--key {path} asks again with this one"
        raise AlreadyExists(text) from None


# ------------------------------------------------------------------ sign, where the authority is


@pki.command("sign")
@click.argument("request_file", metavar="REQUEST", type=_FILE)
@click.option(
    "--dir", "directory", type=_FOLDER, required=True, help="Folder of the authority and all certificates."
)
@click.option(
    "--expect", metavar="ROLE/NAME", help="Refuse any other request, such as node/a1 or tenant/clinic."
)
@_placed
@click.option("--fingerprint", help="Refuse any other key.")
@click.option("--days", type=click.IntRange(1), default=MEMBER_DAYS, show_default=True, help="Validity.")
@click.option(
    "--replace", "replaces", is_flag=True, help="The member has made a new key: its old certificate goes."
)
@click.option(
    "--yes", is_flag=True, help="Do not ask; then say with --expect, and of a node its place, what may be."
)
@one_line_errors
def pki_sign(
    request_file: Path,
    directory: Path,
    expect: str | None,
    generation: int | None,
    fingerprint: str | None,
    days: int,
    replaces: bool,
    yes: bool,
    **place: str | None,
) -> None:
    """Certify who REQUEST says, once you have seen it. What options say, the request must say.

    Where a node is, is the authority's word: look whether it is so. The certificate, NAME.crt in --dir, is put
    beside its key.
    """
    authority = read_authority(directory)
    request = read_request(request_file)
    if yes and expect is None:
        raise InvalidArgument("--yes needs --expect ROLE/NAME: nobody looks at what is certified")
    if yes and request.identity.role is Role.NODE:
        if missing := [f"--{what}" for what in _PLACE if place[what] is None]:
            raise InvalidArgument(f"--yes needs {', '.join(missing)}: nobody looks where the node is")
        generation = generation or 0
    told = {"role and name": expect, **place, "fingerprint": fingerprint}
    told["generation"] = None if generation is None else str(generation)
    who = f"{request.identity.role.value}/{request.identity.name}"
    rows = _rows(request.identity) | {"fingerprint": key_fingerprint(request.key)}
    _check_told(str(request_file), {"role and name": who, **rows}, told)
    raw = certify(authority, request.identity, request.key, SystemClock(), days)
    path = directory / f"{request.identity.name}.crt"
    if path.exists():
        rows["replaces"] = _replaced(path, request, replaces)
    _show(rows | _dates(parse_certificate(raw, "the certificate")))
    if not yes and not confirmed("Is all of it so, and the fingerprint what the member's machine printed?"):
        raise click.Abort
    if "replaces" in rows:
        replace_file(path, raw)
    else:
        create_file(path, raw, 0o644)
    click.echo(f"{path}: put it beside its key")


def _check_told(what: str, rows: Mapping[str, str], told: Mapping[str, str | None]) -> None:
    for name, value in told.items():
        if value is not None and rows.get(name) != value:
            asked = f"{name} {rows[name]}" if name in rows else f"no {name}"
            raise InvalidArgument(
                f"{what} says {asked}, not {value}. If it is wrong, ask anew where the key is: coffre pki request --key"
            )


def _replaced(path: Path, request: CertificateRequest, replaces: bool) -> str:
    """What stands in the certificate that is there. Raises unless it is of the same member, and may be replaced."""
    certificate, present, wanted = read_certificate(path), _member(path), request.identity
    if (present.cluster_id, present.role, present.name) != (wanted.cluster_id, wanted.role, wanted.name):
        raise AlreadyExists(
            f"{path} is of {present.role.value} {present.name}, and is not overwritten: "
            "all members of one folder have different names"
        )
    fingerprint = key_fingerprint(certificate.public_key())
    if certificate.public_key() != request.key and not replaces:
        raise AlreadyExists(
            f"{wanted.name} has a certificate of another key already ({path}, fingerprint {fingerprint}): "
            "say --replace if it is the same member, who has made a new key"
        )
    if present.attributes is None or wanted.attributes is None:
        return f"key {fingerprint}"
    if wanted.attributes.generation < present.attributes.generation:
        raise InvalidArgument(
            f"{path} has generation {present.attributes.generation} already, and the request asks for "
            f"{wanted.attributes.generation}: ask for a later one"
        )
    return f"key {fingerprint}, generation {present.attributes.generation}"


# ------------------------------------------------------------------ show


@pki.command("show")
@click.argument("file", type=_FILE)
@one_line_errors
def pki_show(file: Path) -> None:
    """Say whose certificate FILE is, how long it is valid, and the fingerprint of its key."""
    certificate = read_certificate(file)
    try:
        rows = {"cluster": authority_cluster_id(certificate), "role": "authority"}
    except ConfigurationError:
        rows = _rows(identity_of_certificate(certificate))
    rows["fingerprint"] = key_fingerprint(certificate.public_key())
    _show(rows | _dates(certificate) | {"serial": f"{certificate.serial_number:x}"})


def _member(path: Path) -> Identity:
    try:
        return identity_of_certificate(read_certificate(path))
    except Unauthenticated as error:
        raise ConfigurationError(f"{path}: {error}") from None


def _rows(identity: Identity) -> dict[str, str]:
    rows = {"cluster": identity.cluster_id, "role": identity.role.value, "name": identity.name}
    if identity.attributes is not None:
        rows |= {name: str(getattr(identity.attributes, name)) for name in (*_PLACE, "generation")}
    return rows


def _dates(certificate: x509.Certificate) -> dict[str, str]:
    return {
        "valid from": f"{certificate.not_valid_before_utc:%Y-%m-%d %H:%M:%S} UTC",
        "valid until": f"{certificate.not_valid_after_utc:%Y-%m-%d %H:%M:%S} UTC",
    }


def _show(rows: Mapping[str, str]) -> None:
    for name, value in rows.items():
        click.echo(f"{name:12} {value}")
