"""The command line where no cluster answers: one clear line, the right status, never a traceback, never a secret."""

from __future__ import annotations

import pwd
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import click
import pytest
from click.testing import CliRunner, Result
from coffre.cli._tree import tree
from coffre.client import KeyRing
from coffre.cluster.admin.cli_errors import ExitCode
from coffre.cluster.identity import NodeAttributes, parse_certificate, parse_key
from coffre.cluster.map import ClusterMap, Domain, MapNode, Policy, create_map_file, sign_map
from coffre.cluster.testing import Members, make_members

PASSPHRASE = "hunter2"
CLUSTER_ID = "0123456789abcdef"


@pytest.fixture(autouse=True)
def _bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No configuration of the machine that runs the tests."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("COFFRE_CONFIG", "COFFRE_KEYRING_PASSPHRASE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> Members:
    nodes = [NodeAttributes(f"n{i}", f"s{i}", f"site{i}", f"op{i}", "FR") for i in range(1, 4)]
    return make_members(tmp_path_factory.mktemp("cli") / "pki", CLUSTER_ID, nodes, ["clinic"], ["alice"])


@pytest.fixture(scope="module")
def configured(members: Members) -> Path:
    """A whole configuration of a cluster whose three nodes are all down."""
    base = members.directory
    entries = tuple(
        MapNode(i, f"n{i}", f"127.0.0.1:{i}", f"s{i}", f"site{i}", f"op{i}", "FR", 1 << 30)
        for i in range(1, 4)
    )
    cluster_map = ClusterMap(CLUSTER_ID, 1, 64, entries, (Policy("2+1", 2, 1, ("FR",), Domain.NODE),), "2+1")
    operator = members.issued["alice"]
    certificate = parse_certificate(operator.certificate, "alice")
    create_map_file(base / "map", sign_map(cluster_map, certificate, parse_key(operator.key, "alice")))
    KeyRing.generate().save(base / "ring", PASSPHRASE.encode())
    config = base / "client.toml"
    config.write_text(
        'map = "map"\nauthority = "ca.crt"\ncertificate = "clinic.crt"\nkey = "clinic.key"\nkeyring = "ring"\n'
    )
    return config


def run(*arguments: str | Path, env: dict[str, str] | None = None, stdin: str | None = None) -> Result:
    return CliRunner().invoke(tree, [str(argument) for argument in arguments], env=env, input=stdin)


def assert_one_line(result: Result, code: ExitCode, *words: str) -> None:
    assert result.exit_code == code, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert result.stderr.startswith("coffre: ")
    assert "Traceback" not in result.output
    assert PASSPHRASE not in result.output
    for word in words:
        assert word in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [("ls", "b"), ("get", "b/k"), ("rm", "b/k"), ("stat", "b/k"), ("locate", "b/k"), ("versions", "b/k")],
)
def test_without_a_configuration(arguments: tuple[str, ...]) -> None:
    assert_one_line(run(*arguments), ExitCode.USAGE, "--config", "COFFRE_CONFIG")


@pytest.mark.parametrize("command", [("ls", "b"), ("cluster", "status"), ("repair", "status")])
def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]) -> None:
    """A container's user that no passwd has."""

    def nobody(uid: int) -> NoReturn:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    monkeypatch.delenv("HOME")
    monkeypatch.delenv("COFFRE_OPERATOR_CONFIG", raising=False)
    assert_one_line(run(*command), ExitCode.USAGE, "is configured")


def test_a_configuration_that_is_not_there_or_wrong(tmp_path: Path) -> None:
    config = tmp_path / "client.toml"
    assert_one_line(run("--config", config, "ls", "b"), ExitCode.USAGE, "cannot read")
    for text, word in (
        ("map = ", "not valid TOML"),
        ("nonsense = 'x'", "nonsense is not a setting"),
        ("map = 3", "map is not a setting, or not text"),
        ("map = 'm'", "lacks authority"),
    ):
        config.write_text(text)
        assert_one_line(run("--config", config, "ls", "b"), ExitCode.USAGE, word)
    config.write_bytes(b"\xff\xfe")
    assert_one_line(run("--config", config, "ls", "b"), ExitCode.USAGE, "not valid TOML")


def test_without_or_with_a_wrong_passphrase(configured: Path) -> None:
    assert_one_line(run("--config", configured, "ls", "b"), ExitCode.USAGE, "passphrase")
    wrong = run("--config", configured, "ls", "b", env={"COFFRE_KEYRING_PASSPHRASE": "wrong"})
    assert_one_line(wrong, ExitCode.USAGE, "does not open")


def test_the_wrong_kind_of_certificate(configured: Path) -> None:
    other = configured.with_name("operator.toml")
    other.write_text(configured.read_text().replace("clinic", "alice"))
    result = run("--config", other, "ls", "b", env={"COFFRE_KEYRING_PASSPHRASE": PASSPHRASE})
    assert_one_line(result, ExitCode.PERMISSION, "not a tenant's certificate")


def test_a_key_that_is_not_the_certificates(configured: Path) -> None:
    other = configured.with_name("mixed.toml")
    other.write_text(configured.read_text().replace("clinic.key", "alice.key"))
    result = run("--config", other, "ls", "b", env={"COFFRE_KEYRING_PASSPHRASE": PASSPHRASE})
    assert_one_line(result, ExitCode.USAGE, "does not belong")


@pytest.mark.parametrize("arguments", [("ls", "b"), ("stat", "b/k"), ("rm", "-f", "b/k")])
def test_unreachable_nodes(configured: Path, arguments: tuple[str, ...]) -> None:
    result = run("--config", configured, *arguments, env={"COFFRE_KEYRING_PASSPHRASE": PASSPHRASE})
    assert_one_line(result, ExitCode.UNAVAILABLE)


@pytest.mark.parametrize(
    "arguments",
    [
        ("stat", "nokey"),
        ("stat", "/k"),
        ("stat", "B!/k"),
        ("get", "b/" + "x" * 1025, "-"),
        ("get", "b/k", "--range", "5-1"),
        ("get", "b/k", "--range", "x"),
        ("get", "b/k", "-", "--version", "zz"),
        ("ls", "UPPER"),
    ],
)
def test_bad_names_and_options(configured: Path, arguments: tuple[str, ...]) -> None:
    result = run("--config", configured, *arguments, env={"COFFRE_KEYRING_PASSPHRASE": PASSPHRASE})
    assert_one_line(result, ExitCode.USAGE)


def test_click_reports_bad_usage_with_the_same_status(tmp_path: Path) -> None:
    assert run("put", tmp_path / "absent", "b/k").exit_code == ExitCode.USAGE
    assert run("no-such-command").exit_code == ExitCode.USAGE
    assert run("--help").exit_code == 0
    assert run("--version").exit_code == 0


def test_the_life_of_a_key_ring(tmp_path: Path) -> None:
    secret = {"COFFRE_KEYRING_PASSPHRASE": PASSPHRASE}
    ring = tmp_path / "ring"
    created = run("keyring", "create", ring, env=secret)
    assert created.exit_code == 0
    assert PASSPHRASE not in created.output
    assert_one_line(run("keyring", "create", ring, env=secret), ExitCode.USAGE, "cannot write")
    rotated = run("keyring", "rotate", ring, tmp_path / "new", env=secret)
    assert rotated.exit_code == 0
    shown = run("keyring", "show", tmp_path / "new", env=secret)
    assert len(shown.output.splitlines()) == 2
    assert run("keyring", "add", ring, tmp_path / "both", env=secret).exit_code == 0
    assert_one_line(
        run("keyring", "switch", ring, tmp_path / "no", env=secret), ExitCode.USAGE, "add a key first"
    )
    assert run("keyring", "switch", tmp_path / "both", tmp_path / "next", env=secret).exit_code == 0
    old = run("keyring", "show", ring, env=secret).output.split()[0]
    both, last = (run("keyring", "show", tmp_path / name, env=secret).output for name in ("both", "next"))
    assert f"{old}  current" in both
    assert f"{old}  current" not in last
    assert set(both.split()) == set(last.split())
    wrong = {"COFFRE_KEYRING_PASSPHRASE": "wrong"}
    assert_one_line(run("keyring", "show", ring, env=wrong), ExitCode.USAGE, "does not open")
    assert_one_line(
        run("keyring", "create", tmp_path / "x", env={"COFFRE_KEYRING_PASSPHRASE": ""}),
        ExitCode.USAGE,
        "empty",
    )
    asked = run("keyring", "create", tmp_path / "asked", stdin=f"{PASSPHRASE}\n{PASSPHRASE}\n")
    assert asked.exit_code == 0
    assert PASSPHRASE not in asked.output


def _groups(command: click.Command, *path: str) -> Iterator[tuple[str, ...]]:
    """Each command of the tree that has others below it."""
    if isinstance(command, click.Group):
        yield path
        context = click.Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None, name
            yield from _groups(below, *path, name)


@pytest.mark.parametrize("path", list(_groups(tree)), ids=" ".join)
def test_help_says_of_every_command_the_whole_sentence(path: tuple[str, ...]) -> None:
    result = run(*path, "--help")
    assert result.exit_code == 0
    listed = result.output.partition("Commands:\n")[2]
    assert listed.strip()
    assert "..." not in listed
