"""docs/operations.md, "Start a cluster by hand", as written: authority, map, nodes, client, all from the shell."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

COFFRE = str(Path(sys.executable).with_name("coffre"))
NODES = {
    "a1": ("alpha", "rennes", "ovh"),
    "a2": ("alpha", "rennes", "ovh"),
    "b1": ("beta", "lille", "scaleway"),
    "b2": ("beta", "lille", "scaleway"),
    "g1": ("gamma", "marseille", "ikoula"),
    "g2": ("gamma", "marseille", "ikoula"),
}
NODE_TOML = """\
listen = "{address}"
data = "disk-{name}"
map = "cluster.map"
log_level = "info"

[tls]
authority = "pki/ca.crt"
certificate = "pki/{name}.crt"
key = "pki/{name}.key"

[store]
reserve_bytes = 67108864
"""
CLIENT_TOML = """\
map = "cluster.map"
authority = "pki/ca.crt"
certificate = "pki/clinic.crt"
key = "pki/clinic.key"
keyring = "keyring.json"
"""


def run(directory: Path, *arguments: str, stdin: bytes = b"") -> bytes:
    environment = {**os.environ, "COFFRE_KEYRING_PASSPHRASE": "correct horse", "COFFRE_CONFIG": "client.toml"}
    done = subprocess.run(
        [COFFRE, *arguments], cwd=directory, input=stdin, capture_output=True, timeout=60, env=environment
    )
    assert done.returncode == 0, (arguments, done.stderr.decode())
    return done.stdout


def free_addresses(count: int) -> list[str]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]
    finally:
        for each in sockets:
            each.close()


def start_node(directory: Path, name: str, address: str) -> subprocess.Popen[bytes]:
    """Start a node; it serves once the others of a new cluster are there, too."""
    (directory / f"{name}.toml").write_text(NODE_TOML.format(name=name, address=address))
    command = [COFFRE, "node", "run", "--config", f"{name}.toml"]
    return subprocess.Popen(command, cwd=directory, stderr=subprocess.PIPE)


def wait_until_it_serves(process: subprocess.Popen[bytes]) -> None:
    assert process.stderr is not None
    if not any(b'"serving"' in line for line in process.stderr):
        raise AssertionError("a node did not start")


def test_three_machines_by_hand(tmp_path: Path) -> None:
    run(tmp_path, "pki", "init", "--dir", "pki")
    for name, (server, site, operator) in NODES.items():
        where = ("--server", server, "--site", site, "--operator", operator, "--jurisdiction", "FR")
        run(tmp_path, "pki", "issue", "node", name, *where, "--dir", "pki")
    run(tmp_path, "pki", "issue", "tenant", "clinic", "--dir", "pki")
    run(tmp_path, "pki", "issue", "operator", "alice", "--dir", "pki")
    addresses = dict(zip(NODES, free_addresses(len(NODES)), strict=True))
    nodes = [f"--node=pki/{name}.crt={address}=8TB" for name, address in addresses.items()]
    policy = ("--policy", "4+2", "--survives", "site", "--out", "cluster.map")
    run(tmp_path, "cluster", "init", "--dir", "pki", "--signer", "alice", *policy, *nodes)
    run(tmp_path, "cluster", "verify", "cluster.map", "--authority", "pki/ca.crt")
    run(tmp_path, "keyring", "create", "keyring.json")
    (tmp_path / "client.toml").write_text(CLIENT_TOML)
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for name, address in addresses.items():
            processes.append(start_node(tmp_path, name, address))
        for process in processes:
            wait_until_it_serves(process)
        run(tmp_path, "put", "-", "records/first", stdin=b"by hand")
        assert run(tmp_path, "get", "records/first", "-") == b"by hand"
        assert b"marseille" in run(tmp_path, "locate", "records/first")
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(timeout=10)
            assert process.stderr is not None
            process.stderr.close()
