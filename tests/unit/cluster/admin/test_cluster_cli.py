"""The cluster commands, as an administrator meets them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result
from coffre.cluster import errors
from coffre.cluster.admin import one_line_errors
from coffre.cluster.admin.cli import cluster, pki
from coffre.cluster.admin.cli_errors import ExitCode, exit_code_of
from coffre.cluster.identity import TlsFiles, load_identity
from coffre.cluster.map import read_map

SITES = ("paris", "lille", "lyon")


def run(group: click.Group, *args: object) -> Result:
    return CliRunner().invoke(group, [str(arg) for arg in args])


def refused(result: Result, status: int, text: str) -> None:
    """One line on stderr, and the right status."""
    assert result.exit_code == status, result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("coffre: ")
    assert text in lines[0]
    assert "Traceback" not in result.output


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "pki"
    assert run(pki, "init", "--dir", folder).exit_code == 0
    for i in range(6):
        where = ("--server", f"s{i}", "--site", SITES[i % 3], "--operator", "ovh", "--jurisdiction", "FR")
        certify(folder, "node", f"n{i}", *where)
    certify(folder, "tenant", "hospital")
    certify(folder, "operator", "alice")
    return folder


def certify(folder: Path, role: str, name: str, *where: str) -> None:
    """A member whose key is made in the authority's folder, too."""
    assert run(pki, "request", role, name, "--dir", folder, *where).exit_code == 0
    sign = ("sign", folder / f"{name}.csr", "--dir", folder, "--expect", f"{role}/{name}", "--yes")
    assert run(pki, *sign, *where).exit_code == 0


def node_options(count: int = 6) -> list[str]:
    options = []
    for i in range(count):
        options += ["--node", f"n{i}=127.0.0.1:{7000 + i}=4TB"]
    return options


def init(directory: Path, out: Path, *args: object, nodes: int = 6, signer: str = "alice") -> Result:
    return run(
        cluster, "init", "--dir", directory, "--out", out, "--signer", signer, *node_options(nodes), *args
    )


def test_from_nothing_to_a_verified_map(directory: Path, tmp_path: Path) -> None:
    out = tmp_path / "cluster.map"
    assert init(directory, out, "--policy", "4+2", "--policy", "2+1").exit_code == 0
    found, _ = read_map(out, directory / "ca.crt")
    assert (found.epoch, found.default_policy, len(found.nodes)) == (1, "4+2", 6)
    assert (
        found.node(2).attributes
        == load_identity(
            TlsFiles(directory / "ca.crt", directory / "n1.crt", directory / "n1.key")
        ).attributes
    )
    assert found.node(1).capacity_bytes == 4 * 10**12
    verified = run(cluster, "verify", out, "--authority", directory / "ca.crt")
    assert verified.exit_code == 0
    assert (
        "policy 4+2: all 4096 partitions placed; at most 1 with one server, 2 with one site"
        in verified.output
    )
    shown = run(cluster, "show", out)
    assert "NOT verified" in shown.output
    assert "lyon" in shown.output
    as_json = json.loads(run(cluster, "show", out, "--json", "--authority", directory / "ca.crt").output)
    assert as_json["verified"] is True
    assert [node["site"] for node in as_json["nodes"]] == [*SITES, *SITES]
    assert as_json["policies"][0]["survives"] == "site"
    refused(init(directory, out, "--policy", "4+2"), ExitCode.FAILURE, "not overwritten")


def test_coordinators_are_in_the_map(directory: Path, tmp_path: Path) -> None:
    out = tmp_path / "cluster.map"
    args = ("--policy", "4+2", "--coordinator", "n3", "--coordinator", "n0")
    refused(init(directory, out, *args), ExitCode.USAGE, "n3, n0 cannot share an embedded store")
    assert not out.exists()
    assert init(directory, out, *args, "--coordination", "etcd").exit_code == 0
    found, _ = read_map(out, directory / "ca.crt")
    assert found.coordinators == (4, 1)
    assert run(cluster, "show", out).output.count("coordinators: n3, n0\n") == 1
    assert json.loads(run(cluster, "show", out, "--json").output)["coordinators"] == ["n3", "n0"]


@pytest.mark.parametrize(
    ("args", "status", "text"),
    [
        (["--policy", "4+2", "--coordinator", "n7"], ExitCode.USAGE, "not among the nodes"),
        (
            ["--policy", "4+2", "--coordination", "etcd", "--coordinator", "n1", "--coordinator", "n1"],
            ExitCode.USAGE,
            "twice",
        ),
        (["--policy", "4-2"], ExitCode.USAGE, "such as 4+2"),
        (["--policy", "2+4"], ExitCode.USAGE, "m is at most k"),
        (["--policy", "4+2", "--jurisdiction", "France"], ExitCode.USAGE, "jurisdiction"),
        (["--policy", "4+2", "--jurisdiction", "DE"], ExitCode.FAILURE, "needs 6 active nodes in DE"),
        (["--policy", "8+3"], ExitCode.FAILURE, "add 5"),
        (["--policy", "5+1"], ExitCode.FAILURE, "another site"),
        (["--policy", "4+2", "--operator-cap", "3"], ExitCode.FAILURE, "another operator"),
        (["--policy", "4+2", "--node", "n9=h:1=1TB"], ExitCode.USAGE, "cannot read n9"),
        (["--policy", "4+2", "--node", "hospital=h:1=1TB"], ExitCode.USAGE, "not a node's"),
        (["--policy", "4+2", "--node", "n0=h:1=1TB"], ExitCode.USAGE, "twice"),
        (["--policy", "4+2", "--node", "n0=h:1"], ExitCode.USAGE, "CERT=HOST:PORT=CAPACITY"),
        (["--policy", "4+2", "--node", "n0=h:1=lots"], ExitCode.USAGE, "capacity"),
        (["--policy", "4+2", "--node", "n0=h=1TB"], ExitCode.USAGE, "host:port"),
    ],
)
def test_init_refuses(directory: Path, tmp_path: Path, args: list[str], status: int, text: str) -> None:
    out = tmp_path / "cluster.map"
    refused(init(directory, out, *args), status, text)
    assert not out.exists()


def test_a_node_of_a_foreign_authority(directory: Path, tmp_path: Path) -> None:
    assert run(pki, "init", "--dir", tmp_path / "other").exit_code == 0
    where = ("--server", "s9", "--site", "nantes", "--operator", "ovh", "--jurisdiction", "FR")
    certify(tmp_path / "other", "node", "n9", *where)
    foreign = f"{tmp_path / 'other' / 'n9.crt'}=h:1=1TB"
    refused(
        init(directory, tmp_path / "m", "--policy", "4+2", "--node", foreign), ExitCode.USAGE, "not issued by"
    )


def test_only_operators_sign(directory: Path, tmp_path: Path) -> None:
    for signer, status, text in (
        ("hospital", ExitCode.PERMISSION, "cannot sign"),
        ("n0", ExitCode.PERMISSION, "cannot sign"),
        ("bob", ExitCode.USAGE, "bob.crt: No such file"),
    ):
        refused(init(directory, tmp_path / "m", "--policy", "4+2", signer=signer), status, text)


def test_verify_refuses(directory: Path, tmp_path: Path) -> None:
    out = tmp_path / "cluster.map"
    assert init(directory, out, "--policy", "4+2").exit_code == 0
    other = tmp_path / "other"
    assert run(pki, "init", "--dir", other).exit_code == 0
    refused(
        run(cluster, "verify", out, "--authority", other / "ca.crt"), ExitCode.PERMISSION, "not issued by"
    )
    out.write_bytes(out.read_bytes()[:-1] + b"\0")
    refused(run(cluster, "verify", out, "--authority", directory / "ca.crt"), ExitCode.INTEGRITY, "signature")
    out.write_bytes(b"\xff\xfe")
    refused(run(cluster, "show", out), ExitCode.INTEGRITY, "not a signed cluster map")
    refused(run(cluster, "show", tmp_path / "none"), ExitCode.USAGE, "No such file")
    refused(run(cluster, "verify", out, "--authority", out), ExitCode.USAGE, "not a")


@pytest.mark.parametrize("name", [name for name in errors.__all__ if name[0].isupper()])
def test_every_error_ends_with_a_line_and_a_status(name: str) -> None:
    kind = getattr(errors, name)

    @click.command()
    @one_line_errors
    def command() -> None:
        raise kind("first\nsecond")

    expected = exit_code_of(kind(""))
    refused(CliRunner().invoke(command, []), expected, "first second")
    assert expected is not ExitCode.OK
    assert (expected is ExitCode.UNAVAILABLE) == issubclass(kind, errors.RetryableError)


def test_operating_system_errors_are_lines_too() -> None:
    @click.command()
    @one_line_errors
    def command() -> None:
        Path("/nonexistent/file").read_bytes()

    refused(CliRunner().invoke(command, []), ExitCode.FAILURE, "/nonexistent/file: No such file")


@pytest.mark.parametrize(("content", "text"), [(b"", "is empty"), (b"nonsense", "damaged")])
def test_a_map_file_that_is_none_is_named(directory: Path, tmp_path: Path, content: bytes, text: str) -> None:
    path = tmp_path / "cluster.map"
    path.write_bytes(content)
    for arguments in (("show", path), ("verify", path, "--authority", directory / "ca.crt")):
        result = run(cluster, *arguments)
        refused(result, ExitCode.INTEGRITY, f"{path}: ")
        assert text in result.stderr


def _commands(group: click.Group) -> Iterator[click.Command]:
    for command in group.commands.values():
        if isinstance(command, click.Group):
            yield from _commands(command)
        else:
            yield command


def test_every_command_for_a_running_cluster_takes_the_same_operator_toml() -> None:
    """--operator is a file wherever it is said, and none needs to be said where operator.toml lies in its place."""
    for command in _commands(cluster):
        if command.name in {"init", "show", "verify"}:  # these work on files alone
            continue
        options = {option.opts[0]: option for option in command.params if isinstance(option, click.Option)}
        assert isinstance(options["--operator"].type, click.Path), command.name
        assert not [name for name, option in options.items() if option.required], command.name
