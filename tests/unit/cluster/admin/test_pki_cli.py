"""`coffre pki`: keys stay where they are made, and the authority certifies what it has seen."""

from __future__ import annotations

import ast
import re
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from coffre.cluster.admin.cli import pki
from coffre.cluster.admin.cli_errors import ExitCode
from coffre.cluster.errors import ConfigurationError
from coffre.cluster.identity import (
    Identity,
    NodeAttributes,
    Role,
    TlsFiles,
    load_identity,
    make_request,
    read_authority,
    read_certificate,
    read_key,
)

from tests.test_tidy import modules, nodes, relative

PLACE = ("--server", "alpha", "--site", "rennes", "--operator", "ovh", "--jurisdiction", "FR")
A1 = NodeAttributes("a1", "alpha", "rennes", "ovh", "FR")


def run(*args: object, answer: str = "") -> Result:
    return CliRunner().invoke(pki, [str(arg) for arg in args], input=answer)


def done(*args: object, answer: str = "") -> str:
    result = run(*args, answer=answer)
    assert result.exit_code == 0, result.output
    assert "PRIVATE" not in result.output
    return result.stdout


def refused(result: Result, status: int, text: str) -> None:
    """One line on stderr, and the right status."""
    assert result.exit_code == status, result.output
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("coffre: ")
    assert text in line


class World:
    """The authority's machine, and a member's, which has got ca.crt."""

    def __init__(self, root: Path) -> None:
        self.office, self.home = root / "office", root / "home"
        done("init", "--dir", self.office)
        self.home.mkdir()
        (self.home / "ca.crt").write_bytes((self.office / "ca.crt").read_bytes())

    def request(self, role: str, name: str, *options: object) -> str:
        return done("request", role, name, "--dir", self.home, *options)

    def sign(self, name: str, *options: object, answer: str = "") -> Result:
        return run("sign", self.home / f"{name}.csr", "--dir", self.office, *options, answer=answer)

    def carry(self, name: str, to: str = "") -> TlsFiles:
        """The certificate is put beside the key."""
        paths = TlsFiles(*(self.home / f for f in ("ca.crt", f"{to or name}.crt", f"{to or name}.key")))
        paths.certificate.write_bytes((self.office / f"{name}.crt").read_bytes())
        return paths

    def files(self) -> set[str]:
        return {path.name for folder in (self.office, self.home) for path in folder.iterdir()}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


# ------------------------------------------------------------------ from request to certificate


@pytest.mark.parametrize("role", ["node", "tenant", "operator"])
def test_three_commands_make_a_member(world: World, role: str) -> None:
    said = world.request(role, "a1", *(PLACE if role == "node" else ()))
    (fingerprint,) = re.findall(r"fingerprint of the key: (\S+)", said)
    result = world.sign("a1", answer="y\n")
    assert result.exit_code == 0, result.output
    assert f"fingerprint  {fingerprint}" in result.stdout  # both sides print the same
    member = load_identity(world.carry("a1"))
    assert (member.role.value, member.name) == (role, "a1")
    assert member.attributes == (A1 if role == "node" else None)
    assert f"fingerprint  {fingerprint}" in done("show", world.home / "a1.crt")


def test_the_key_stays_and_is_private(world: World) -> None:
    world.request("tenant", "clinic")
    assert world.sign("clinic", answer="y\n").exit_code == 0
    assert stat.S_IMODE((world.home / "clinic.key").stat().st_mode) == 0o600
    assert {path.name for path in world.office.iterdir()} == {"ca.crt", "ca.key", "clinic.crt"}
    for name in ("clinic.csr", "ca.crt"):
        assert b"PRIVATE" not in (world.home / name).read_bytes()


def test_a_new_folder_is_private(world: World, tmp_path: Path) -> None:
    folder = tmp_path / "etc" / "clinic"
    done("request", "tenant", "clinic", "--dir", folder, "--authority", world.home / "ca.crt")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_everything_is_shown_and_nothing_is_done_without_a_yes(world: World) -> None:
    world.request("node", "a1", *PLACE)
    for answer in ("n\n", ""):
        result = world.sign("a1", answer=answer)
        assert result.exit_code == 1
        for row in ("name         a1", "server       alpha", "site         rennes", "operator     ovh"):
            assert row in result.stdout
        assert "jurisdiction FR" in result.stdout
        assert "generation   0" in result.stdout
        assert not (world.office / "a1.crt").exists()


def test_the_fingerprint_of_the_authority_is_printed_on_both_sides(world: World, tmp_path: Path) -> None:
    (own,) = re.findall(r"fingerprint of the authority: (\S+)", done("init", "--dir", tmp_path / "other"))
    said = done(
        *("request", "tenant", "clinic", "--dir", world.home, "--authority", tmp_path / "other" / "ca.crt")
    )
    assert f"fingerprint of the authority: {own}" in said
    assert f"fingerprint  {own}" in done("show", tmp_path / "other" / "ca.crt")


# ------------------------------------------------------------------ keys that are there


def test_a_key_is_never_overwritten(world: World) -> None:
    world.request("tenant", "clinic")
    key, request = (world.home / f"clinic.{kind}" for kind in ("key", "csr"))
    before = key.read_bytes(), request.read_bytes()
    again = run("request", "tenant", "clinic", "--dir", world.home)
    refused(again, ExitCode.FAILURE, "not overwritten: --renew makes a new key beside it, --key ")
    assert (key.read_bytes(), request.read_bytes()) == before


def test_a_request_is_made_anew_with_the_same_key_when_asked(world: World) -> None:
    world.request("node", "a1", *PLACE[:2], "--site", "lille", *PLACE[4:])
    key = (world.home / "a1.key").read_bytes()
    refused(world.sign("a1", *PLACE), ExitCode.USAGE, "says site lille, not rennes. If it is wrong, ask anew")
    world.request("node", "a1", *PLACE, "--key", world.home / "a1.key")
    assert (world.home / "a1.key").read_bytes() == key
    assert world.sign("a1", *PLACE, answer="y\n").exit_code == 0
    assert load_identity(world.carry("a1")).attributes == A1


def test_a_renewal_makes_a_new_key_beside_the_old(world: World) -> None:
    world.request("node", "a1", *PLACE)
    assert world.sign("a1", answer="y\n").exit_code == 0
    old = world.carry("a1")
    key = old.key.read_bytes()
    world.request("node", "a1", "--renew")  # where it is stands in its certificate
    assert old.key.read_bytes() == key
    assert load_identity(old).attributes == A1  # goes on until the files are exchanged
    again = run("request", "node", "a1", "--renew", "--dir", world.home)
    refused(again, ExitCode.FAILURE, "a1.next.key exists; it is not overwritten: --key ")
    world.request("node", "a1", "--renew", "--key", world.home / "a1.next.key")

    refused(world.sign("a1.next"), ExitCode.FAILURE, "a1 has a certificate of another key already")
    result = world.sign("a1.next", "--replace", answer="y\n")
    assert result.exit_code == 0, result.output
    assert re.search(r"replaces +key \S+, generation 0\n", result.stdout)
    renewed = world.carry("a1", "a1.next")
    attributes = load_identity(renewed).attributes
    assert attributes is not None
    assert attributes.generation == 1
    mixed = TlsFiles(old.authority, renewed.certificate, old.key)
    with pytest.raises(ConfigurationError, match=r"does not belong to .* put the certificate there that"):
        load_identity(mixed)
    refused(world.sign("a1", "--replace"), ExitCode.USAGE, "has generation 1 already")


def test_a_tenant_is_renewed_without_a_generation(world: World) -> None:
    world.request("tenant", "clinic")
    yes = ("--yes", "--expect", "tenant/clinic")
    assert world.sign("clinic", *yes).exit_code == 0
    world.request("tenant", "clinic", "--renew")
    refused(world.sign("clinic.next", *yes), ExitCode.FAILURE, "another key already")
    assert world.sign("clinic.next", *yes, "--replace").exit_code == 0
    assert load_identity(world.carry("clinic", "clinic.next")).name == "clinic"


def test_the_same_request_may_be_signed_again(world: World) -> None:
    """Nothing is replaced but dates: the key is the same."""
    world.request("tenant", "clinic")
    yes = ("--yes", "--expect", "tenant/clinic")
    assert world.sign("clinic", *yes, "--days", 30).exit_code == 0
    assert world.sign("clinic", *yes).exit_code == 0
    days = read_certificate(world.office / "clinic.crt")
    assert (days.not_valid_after_utc - days.not_valid_before_utc).days == 825


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ((), "--yes needs --expect"),
        (("--expect", "node/a1"), "--yes needs --server, --site, --operator, --jurisdiction"),
        (("--expect", "node/a1", *PLACE[:6]), "--yes needs --jurisdiction"),
        (("--expect", "node/a2", *PLACE), "says role and name node/a1, not node/a2"),
        (("--expect", "operator/a1", *PLACE), "says role and name node/a1, not operator/a1"),
        (("--expect", "node/", *PLACE), "says role and name node/a1, not node/"),
        (("--expect", "node/a1", *PLACE[:6], "--jurisdiction", "US"), "says jurisdiction FR, not US"),
        (("--expect", "node/a1", *PLACE), "says generation 7, not 0"),
        (("--expect", "node/a1", *PLACE, "--generation", "7", "--fingerprint", "aaaa"), "says fingerprint "),
    ],
)
def test_where_nobody_looks_everything_is_told(world: World, told: tuple[str, ...], why: str) -> None:
    world.request("node", "a1", *PLACE, "--generation", "7")
    refused(world.sign("a1", "--yes", *told), ExitCode.USAGE, why)
    assert not (world.office / "a1.crt").exists()


def test_where_nobody_looks_and_everything_is_as_it_was_told(world: World) -> None:
    said = world.request("node", "a1", *PLACE)
    (fingerprint,) = re.findall(r"fingerprint of the key: (\S+)", said)
    told = ("--expect", "node/a1", *PLACE, "--fingerprint", fingerprint)
    assert world.sign("a1", "--yes", *told).exit_code == 0


def test_a_tenant_is_at_no_place(world: World) -> None:
    world.request("tenant", "clinic")
    refused(world.sign("clinic", "--site", "rennes"), ExitCode.USAGE, "says no site, not rennes")


def test_a_request_for_another_cluster_is_refused(world: World, tmp_path: Path) -> None:
    done("init", "--dir", tmp_path / "other")
    world.request("tenant", "clinic", "--authority", tmp_path / "other" / "ca.crt")
    refused(world.sign("clinic"), ExitCode.USAGE, "with the certificate of another authority")


def test_the_files_of_others_are_not_overwritten(world: World) -> None:
    """Neither the authority's, nor those of a member of another role, whatever is said."""
    world.request("tenant", "clinic")
    assert world.sign("clinic", answer="y\n").exit_code == 0
    authority = read_authority(world.office)
    key = read_key(world.home / "clinic.key")
    for role, name, why in (
        (Role.OPERATOR, "clinic", "is of tenant clinic, and is not overwritten"),
        (Role.TENANT, "ca", "of an authority, not of a member"),
    ):
        before = (world.office / f"{name}.crt").read_bytes()
        (world.home / "forged.csr").write_bytes(make_request(Identity(authority.cluster_id, role, name), key))
        result = world.sign("forged", "--replace", "--yes", "--expect", f"{role.value}/{name}")
        assert result.exit_code in (ExitCode.FAILURE, ExitCode.USAGE)
        assert why in result.stderr
        assert (world.office / f"{name}.crt").read_bytes() == before
    refused(run("request", "tenant", "ca", "--dir", world.home), ExitCode.USAGE, "ca.key is the authority's")


def test_the_authority_certifies_no_key_of_its_own(world: World) -> None:
    authority = read_authority(world.office)
    forged = make_request(Identity(authority.cluster_id, Role.TENANT, "t"), read_key(world.office / "ca.key"))
    (world.home / "t.csr").write_bytes(forged)
    refused(world.sign("t"), ExitCode.USAGE, "the authority's own key")


@pytest.mark.parametrize(
    ("args", "status", "why"),
    [
        (("tenant", "../x"), ExitCode.USAGE, "tenant name"),
        (("tenant", "a\x1b[2Jb"), ExitCode.USAGE, "\\x1b"),
        (
            ("node", "a1"),
            ExitCode.USAGE,
            "--server, --site, --operator, --jurisdiction: say where node a1 is",
        ),
        (("node", "a1", *PLACE[:6], "--jurisdiction", "France"), ExitCode.USAGE, "two capital letters"),
        (("node", "a1", "--renew"), ExitCode.USAGE, "say where node a1 is"),
        (("tenant", "t", "--key", "none.key"), ExitCode.USAGE, "cannot read none.key: No such file"),
        (("tenant", "t", "--key", "ca.crt"), ExitCode.USAGE, "a member's key is in a file NAME.key"),
        (("tenant", "t", "--authority", "none"), ExitCode.USAGE, "cannot read none: No such file"),
    ],
)
def test_request_refuses(world: World, args: tuple[str, ...], status: int, why: str) -> None:
    refused(run("request", *args, "--dir", world.home), status, why)
    assert world.files() == {"ca.crt", "ca.key"}


def test_request_says_what_it_lacks(world: World, tmp_path: Path) -> None:
    refused(
        run("request", "tenant", "t", "--dir", tmp_path),
        ExitCode.USAGE,
        "put the authority's certificate there",
    )
    world.request("tenant", "t")
    assert world.sign("t", answer="y\n").exit_code == 0
    given = ("--authority", world.carry("t").certificate)
    refused(
        run("request", "tenant", "x", "--dir", tmp_path, *given), ExitCode.USAGE, "t.crt: this is not the"
    )


def test_sign_refuses(world: World, tmp_path: Path) -> None:
    refused(world.sign("none"), ExitCode.USAGE, "No such file")
    refused(run("sign", "x", "--dir", tmp_path), ExitCode.USAGE, "No such file")
    (world.home / "x.csr").write_bytes((world.home / "ca.crt").read_bytes())
    refused(world.sign("x"), ExitCode.USAGE, "x.csr is not a certificate request in PEM form")
    world.request("tenant", "t")
    refused(world.sign("t", "--days", 9999), ExitCode.USAGE, "authority itself")
    refused(run("init", "--dir", world.office), ExitCode.FAILURE, "not overwritten")


def test_show(world: World) -> None:
    world.request("node", "a1", *PLACE)
    assert world.sign("a1", answer="y\n").exit_code == 0
    shown = done("show", world.office / "a1.crt")
    for text in ("role         node", "site         rennes", "jurisdiction FR", "valid until", "serial"):
        assert text in shown
    assert "authority" in done("show", world.office / "ca.crt")
    refused(run("show", world.office / "ca.key"), ExitCode.USAGE, "not a certificate")


# ------------------------------------------------------------------ nobody else makes a key

MAKES_MEMBERS = {
    "issue_node",
    "issue_tenant",
    "issue_operator",
    "write_issued",
}  # key and certificate in one process
MAKES_KEYS = {"create_key", "create_authority", "write_authority", "generate_private_key", "key_pem"}
ALLOWED = {
    "cluster/coffre/cluster/__init__.py": "offers them to tests of applications",
    "cluster/coffre/cluster/identity": "has them",
    "cluster/coffre/cluster/testing.py": "tests",
    "deploy/coffre/dev/local_cluster.py": "development: `coffre dev`, in one folder",
    "bench/coffre/bench/references.py": "benchmarks",
}
COMMANDS = "cluster/coffre/cluster/admin/pki_cli.py"


def uses(path: Path, names: set[str]) -> Iterator[str]:
    for node in nodes(path):
        if isinstance(node, ast.Name) and node.id in names:
            yield node.id
        if isinstance(node, ast.Attribute) and node.attr in names:
            yield node.attr
        if isinstance(node, ast.ImportFrom):
            yield from (alias.name for alias in node.names if alias.name in names)


def test_no_command_but_request_makes_a_private_key() -> None:
    """Apart from the authority's own (init), and clusters for development."""
    for path in modules():
        name = relative(path)
        if any(name.startswith(allowed) for allowed in ALLOWED):
            continue
        found = set(uses(path, MAKES_MEMBERS | MAKES_KEYS))
        assert found == (
            {"create_key", "create_authority", "write_authority"} if name == COMMANDS else set()
        ), name
    (path,) = (path for path in modules() if relative(path) == COMMANDS)
    functions = [node for node in nodes(path) if isinstance(node, ast.FunctionDef)]
    makers = {
        function.name
        for function in functions
        for node in ast.walk(function)
        if isinstance(node, ast.Name) and node.id in MAKES_KEYS
    }
    assert makers == {"pki_init", "_new_key"}
    callers = {
        function.name
        for function in functions
        for node in ast.walk(function)
        if isinstance(node, ast.Name) and node.id == "_new_key"
    }
    assert callers == {"_request"}
