"""The `coffre` command as a user types it, against a real cluster."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from coffre.dev.local_cluster import LocalCluster

from tests.patience import PATIENCE_SECONDS

COFFRE = str(Path(sys.executable).with_name("coffre"))


def run(
    cluster: LocalCluster | None, *arguments: str, stdin: bytes = b"", **variables: str
) -> subprocess.CompletedProcess[bytes]:
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("COFFRE_CO")
    } | variables
    if cluster is not None:
        environment["COFFRE_CONFIG"] = str(cluster.client_config())
    return subprocess.run(
        [COFFRE, *arguments], input=stdin, capture_output=True, env=environment, timeout=PATIENCE_SECONDS
    )


def ok(cluster: LocalCluster, *arguments: str, stdin: bytes = b"") -> bytes:
    done = run(cluster, *arguments, stdin=stdin)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def one_line(done: subprocess.CompletedProcess[bytes], code: int) -> str:
    text = done.stderr.decode()
    assert done.returncode == code, text
    assert "Traceback" not in text
    assert len(text.strip().splitlines()) == 1, text
    return text


def test_put_get_ls_stat_rm(running_cluster: LocalCluster, tmp_path: Path) -> None:
    (tmp_path / "tree" / "deep").mkdir(parents=True)
    (tmp_path / "tree" / "one.txt").write_bytes(b"one")
    (tmp_path / "tree" / "deep" / "two.txt").write_bytes(b"two" * 1000)
    ok(running_cluster, "put", str(tmp_path / "tree"), "cli/tree")
    assert ok(running_cluster, "ls", "cli/tree/").split() == [b"tree/deep/", b"tree/one.txt"]
    assert ok(running_cluster, "ls", "-r", "cli/tree/").split() == [b"tree/deep/two.txt", b"tree/one.txt"]
    assert b"cli" in ok(running_cluster, "ls").split()
    assert b'{"bucket": "cli"}' in ok(running_cluster, "ls", "--json").splitlines()
    assert ok(running_cluster, "get", "cli/tree/one.txt", "-") == b"one"
    assert ok(running_cluster, "get", "cli/tree/deep/two.txt", "-", "--range", "3-5") == b"two"
    ok(running_cluster, "get", "cli/tree/deep/two.txt", str(tmp_path / "back"))
    assert (tmp_path / "back").read_bytes() == b"two" * 1000
    ok(
        running_cluster,
        "put",
        "-",
        "cli/stdin",
        "--content-type",
        "text/plain",
        "--meta",
        "a=b",
        stdin=b"from stdin",
    )
    info = json.loads(ok(running_cluster, "stat", "cli/stdin", "--json"))
    assert (info["size_bytes"], info["content_type"], info["metadata"]) == (10, "text/plain", {"a": "b"})
    places = json.loads(ok(running_cluster, "locate", "cli/stdin", "--json"))
    assert [place["state"] for place in places] == ["ok"] * 6
    assert len({place["node_id"] for place in places}) == 6
    assert b"site-1" in ok(running_cluster, "locate", "cli/stdin")
    assert b"deleted cli/stdin" in ok(running_cluster, "rm", "cli/stdin")
    one_line(run(running_cluster, "stat", "cli/stdin"), 3)
    ok(running_cluster, "rm", "-r", "cli/tree/", "--yes")
    assert ok(running_cluster, "ls", "-r", "cli/tree/") == b""


def test_errors_are_one_line(running_cluster: LocalCluster, tmp_path: Path) -> None:
    assert "does not exist" in one_line(run(running_cluster, "get", "cli/none", "-"), 3)
    assert "passphrase" in one_line(
        run(running_cluster, "get", "cli/none", "-", COFFRE_KEYRING_PASSPHRASE="wrong"), 2
    )
    assert "BUCKET/KEY" in one_line(run(running_cluster, "get", "nokey", "-"), 2)
    nowhere = run(None, "ls", "b", HOME=str(tmp_path), COFFRE_CONFIG=str(tmp_path / "none.toml"))
    assert "cannot read" in one_line(nowhere, 2)


def test_a_range_that_fails_leaves_the_file_alone(running_cluster: LocalCluster, tmp_path: Path) -> None:
    ok(running_cluster, "put", "-", "cli/range", stdin=b"0123456789")
    target = tmp_path / "part"
    target.write_bytes(b"precious")
    one_line(run(running_cluster, "get", "cli/none", str(target), "--range", "0-3"), 3)
    assert target.read_bytes() == b"precious"
    ok(running_cluster, "get", "cli/range", str(target), "--range", "2-5")
    assert target.read_bytes() == b"2345"
    assert list(tmp_path.iterdir()) == [target]


def test_a_missing_cluster_is_one_line(tmp_path: Path) -> None:
    from coffre.dev.local_cluster import ClusterShape

    cluster = LocalCluster.create(tmp_path / "cluster", ClusterShape())
    assert "nodes answer" in one_line(run(cluster, "get", "b/k", "-"), 5)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str) -> None:
    done = run(None, "completion", shell)
    assert done.returncode == 0
    assert b"_COFFRE_COMPLETE" in done.stdout


def test_the_demo_ends_well(tmp_path: Path) -> None:
    """`make run ARGS=--once`, on the small data set."""
    done = run(
        None,
        "dev",
        "run",
        "--once",
        "--scale",
        "small",
        "--dir",
        str(tmp_path / "c"),
        "--data",
        str(tmp_path / "d"),
    )
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()
    assert b"came back bit for bit" in done.stdout
