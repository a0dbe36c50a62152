"""`coffre cluster add-node` and its siblings, on a map file of a cluster that is stopped."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from coffre.cluster.admin.cli import cluster
from coffre.cluster.admin.cli_errors import ExitCode
from coffre.cluster.identity import NodeAttributes, parse_certificate, parse_key
from coffre.cluster.map import (
    ClusterMap,
    MapNode,
    NodeState,
    Policy,
    create_map_file,
    read_unverified_map,
    sign_map,
)
from coffre.cluster.membership.next_map import finish_move
from coffre.cluster.testing import Members, make_members

CLUSTER_ID = "0123456789abcdef"
NODES = [NodeAttributes(f"n{i}", f"s{i}", f"site-{i % 4}", f"operator-{i % 4}", "FR") for i in range(1, 7)]


@pytest.fixture(autouse=True)
def _bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No configuration of the machine that runs the tests."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("COFFRE_OPERATOR_CONFIG", raising=False)


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> Members:
    return make_members(tmp_path_factory.mktemp("pki"), CLUSTER_ID, NODES, ["clinic"], ["alice"])


def signed(members: Members, cluster_map: ClusterMap) -> bytes:
    operator = members.issued["alice"]
    return sign_map(
        cluster_map, parse_certificate(operator.certificate, "alice"), parse_key(operator.key, "alice")
    )


@pytest.fixture
def config(members: Members, tmp_path: Path) -> Path:
    """operator.toml of a cluster of five nodes, none of which runs."""
    entries = tuple(
        MapNode(i, one.node_id, f"127.0.0.1:{i}", one.server, one.site, one.operator, "FR", 1 << 30)
        for i, one in enumerate(NODES[:5], 1)
    )
    first = ClusterMap(CLUSTER_ID, 1, 16, entries, (Policy("2+1", 2, 1, ("FR",)),), "2+1")
    create_map_file(tmp_path / "cluster.map", signed(members, first))
    files = members.files("alice")
    path = tmp_path / "operator.toml"
    path.write_text(
        f'map = "cluster.map"\nauthority = "{files.authority}"\ncertificate = "{files.certificate}"\n'
        f'key = "{files.key}"\n'
    )
    return path


def run(config: Path, *arguments: str, stdin: str = "") -> Result:
    return CliRunner().invoke(cluster, [*arguments, "--operator", str(config)], input=stdin)


def map_at(config: Path) -> ClusterMap:
    return read_unverified_map(config.parent / "cluster.map")


def offer(members: Members, name: str = "n6") -> str:
    return f"{members.directory / name}.crt=127.0.0.1:6=2GiB"


def test_a_node_joins(config: Path, members: Members) -> None:
    dry = run(config, "add-node", offer(members), "--dry-run")
    assert dry.exit_code == 0, dry.output
    assert map_at(config).epoch == 1
    for words in ("map epoch 1 -> 2", "node n6 joins at 127.0.0.1:6", "of 48 shards of partitions"):
        assert words in dry.output
    refused = run(config, "add-node", offer(members), stdin="n\n")
    assert "Go on?" in refused.output
    assert map_at(config).epoch == 1
    done = run(config, "add-node", offer(members), stdin="y\n")
    assert done.exit_code == 0, done.output
    assert "coffre cluster apply" in done.stderr
    found = map_at(config)
    assert (found.epoch, found.node(6).node_id, found.node(6).capacity_bytes) == (2, "n6", 2 << 30)
    assert [prior.epoch for prior in found.prior] == [1]
    again = run(config, "add-node", offer(members), "--yes")
    assert "it is so already" in again.output
    assert map_at(config) == found


def test_json_of_a_plan(config: Path, members: Members) -> None:
    asks = run(config, "add-node", offer(members), "--json")
    assert asks.exit_code == ExitCode.USAGE
    plan = json.loads(run(config, "add-node", offer(members), "--json", "--dry-run").stdout)
    assert plan["changed"] is False
    assert plan["plan"]["next_epoch"] == 2
    assert plan["plan"]["shards_moved"] >= plan["plan"]["shards_moved_min"] > 0
    assert plan["plan"]["bytes_moved"] is None  # no node answers
    done = json.loads(run(config, "add-node", offer(members), "--json", "--yes").stdout)
    assert done["plan"] == plan["plan"]
    assert json.loads(run(config, "drain", "n1", "--json", "--yes").stdout)["changed"] is True
    assert [prior.epoch for prior in map_at(config).prior] == [2, 1]


def test_a_node_drains_and_leaves(config: Path, members: Members) -> None:
    assert run(config, "drain", "n5", "--yes").exit_code == 0
    assert map_at(config).node(5).state is NodeState.DRAINING
    early = run(config, "remove", "n5", "--yes")
    assert early.exit_code == ExitCode.FAILURE
    assert "its data is being moved" in early.stderr
    (config.parent / "cluster.map").write_bytes(signed(members, finish_move(map_at(config))))
    silent = run(config, "remove", "n5", "--yes")
    assert silent.exit_code == ExitCode.FAILURE
    assert "does not answer" in silent.stderr
    assert run(config, "remove", "n5", "--yes", "--lost").exit_code == 0
    assert map_at(config).node(5).state is NodeState.REMOVED
    assert run(config, "remove", "n5", "--yes").output.startswith("epoch 4: it is so already")


def test_coordinators_without_a_store_are_refused(config: Path) -> None:
    """Nobody answers here, and a map that names who serves nothing would end all changes."""
    refused = run(config, "set-coordinators", "n1", "--yes")
    assert refused.exit_code == ExitCode.UNAVAILABLE
    assert "n1 serves no coordination" in refused.stderr
    assert map_at(config).epoch == 1


def test_a_lost_node_is_replaced(config: Path, members: Members) -> None:
    done = run(config, "replace", "n5", offer(members), "--lost", "--yes")
    assert done.exit_code == 0, done.output
    assert "node n5: active -> removed" in done.output
    assert [node.state for node in map_at(config).nodes[4:]] == [NodeState.REMOVED, NodeState.ACTIVE]


def test_capacity_and_policy(config: Path) -> None:
    done = run(config, "set-capacity", "n1", "8GB", "--yes")
    assert "node n1: capacity 1.1 GB -> 8.0 GB" in done.output
    assert run(config, "set-capacity", "n1", "much", "--yes").exit_code == ExitCode.USAGE
    assert run(config, "set-policy", "clinic/notes", "3+1", "--yes").exit_code == ExitCode.NOT_FOUND
    done = run(config, "set-policy", "clinic/notes", "3+1", "--new", "--survives", "node", "--yes")
    assert "bucket clinic/notes: policy 2+1 -> 3+1" in done.output
    assert "new policy 3+1" in done.output
    assert map_at(config).policy_of("clinic", "notes").name == "3+1"
    assert run(config, "set-policy", "clinic", "3+1", "--yes").exit_code == ExitCode.USAGE
    refused = run(config, "set-policy", "clinic/notes", "8+3", "--new", "--yes")
    assert refused.exit_code == ExitCode.FAILURE
    assert "8+3 cannot be kept" in refused.stderr
    shown = CliRunner().invoke(cluster, ["show", str(config.parent / "cluster.map")]).output
    assert "bucket clinic/notes: policy 3+1" in shown
    assert "still consulted: epochs 2, 1" in shown


def test_status(config: Path) -> None:
    shown = run(config, "status")
    assert shown.exit_code == 0, shown.output
    for words in ("epoch 1, 16 partitions", "no change is under way", "n5", "down"):
        assert words in shown.output
    run(config, "drain", "n5", "--yes")
    assert "data is moving; prior epochs still consulted: 1" in run(config, "status").output
    status = json.loads(run(config, "status", "--json").stdout)
    assert status["prior_epochs"] == [1]
    assert status["move"]["partitions_moved"] == 0 < status["move"]["partitions_to_move"]
    assert [node["health"] for node in status["nodes"]] == ["down"] * 5


def test_apply_waits_for_nodes_that_do_not_answer_and_changes_nothing(config: Path) -> None:
    assert "no change is under way" in run(config, "apply").output
    drained = run(config, "drain", "n5", "--yes")
    assert "coffre cluster apply" in drained.stderr
    before = map_at(config)
    command = [str(Path(sys.executable).with_name("coffre")), "cluster", "apply", "--operator", str(config)]
    with pytest.raises(subprocess.TimeoutExpired):
        subprocess.run(command, capture_output=True, timeout=8)
    assert map_at(config) == before


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('map = "m"\n', "lacks authority, certificate, key"),
        ('map = "m"\nkeyring = "k"\n', "keyring is not a setting"),
        ("map = \n", "not valid TOML"),
    ],
)
def test_configurations_that_are_wrong(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "operator.toml"
    path.write_text(text)
    result = run(path, "status")
    assert result.exit_code == ExitCode.USAGE
    assert words in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_without_a_configuration() -> None:
    result = CliRunner().invoke(cluster, ["status"])
    assert result.exit_code == ExitCode.USAGE
    assert "COFFRE_OPERATOR_CONFIG" in result.stderr


def test_a_tenant_changes_nothing(config: Path, members: Members) -> None:
    files = members.files("clinic")
    config.write_text(
        f'map = "cluster.map"\nauthority = "{files.authority}"\ncertificate = "{files.certificate}"\n'
        f'key = "{files.key}"\n'
    )
    result = run(config, "drain", "n5", "--yes")
    assert result.exit_code == ExitCode.PERMISSION
    assert map_at(config).epoch == 1
