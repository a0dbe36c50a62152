"""docs/operations.md, "Start a cluster by hand": its blocks, executed as they stand, on folders that are machines.

What is changed in them: 10.0.* are addresses of loopback, /etc/coffre and /srv lie below the folder of a machine, and
what the page says of a1 is done for each node.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.integration.blocks import ROOT, blocks_of
from tests.patience import PATIENCE_SECONDS
from tests.runbooks.book import BY_HAND, OPERATIONS

BIN = Path(sys.executable).parent
CHAPTER = [block for block in blocks_of(OPERATIONS) if f"## {block.chapter}\n" == BY_HAND and block.is_run]
SHELL = [block.text for block in CHAPTER if block.language == "sh"]
SETTINGS = [block.text for block in CHAPTER if block.language == "toml"]
(CLIENT,) = (block.text for block in blocks_of(ROOT / "docs/client.md") if block.language == "toml")
ENVIRONMENT = {"COFFRE_KEYRING_PASSPHRASE": "correct horse", "PATH": f"{BIN}:{os.environ['PATH']}"}


@dataclass(frozen=True, slots=True)
class Node:
    """One of the map: who it is, where it listens, and which of its machine's disks it owns."""

    name: str
    address: str
    machine: str
    disk: str


class World:
    """Machines as folders of one root, the office of who holds the authority among them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.office = root / "office"
        self.office.mkdir()
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._net = f"127.{os.getpid() % 200 + 20}."

    def local(self, text: str) -> str:
        return text.replace("10.0.", self._net)

    def shell(self, script: str, where: Path | None = None) -> str:
        """What a block prints, on the office's machine unless told otherwise; it must succeed. Every question is
        answered with yes."""
        own = {name: value for name, value in os.environ.items() if not name.startswith("COFFRE_")}
        done = subprocess.run(
            ["bash", "-euc", f"exec < <(yes)\n{self.local(script)}"],
            cwd=where or self.office,
            env={**own, **ENVIRONMENT, "HOME": str(where or self.office)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )
        assert done.returncode == 0, (script, done.stdout, done.stderr)
        return done.stdout

    def home(self, node: Node) -> Path:
        return self.root / node.machine / "etc/coffre" / node.name

    def enrol(self, name: str, home: Path, request: str, sign: str) -> None:
        """Step 2: the key is made in its home, and only the request goes to the office."""
        home.mkdir(parents=True)
        shutil.copy(self.office / "pki/ca.crt", home)
        self.shell(request.replace(f"/etc/coffre/{name}", str(home)), home)
        shutil.copy(home / f"{name}.csr", self.office)
        self.shell(sign.replace("a1.csr", f"{name}.csr"))
        shutil.copy(self.office / f"pki/{name}.crt", home)

    def set_up(self, node: Node, text: str) -> None:
        """Step 4: the files of one node, and its node.toml with what step 6 adds to it."""
        home, disk = self.home(node), self.root / node.machine / "srv" / node.disk
        disk.mkdir(parents=True)
        shutil.copy(self.office / "cluster.map", disk)
        text = text.replace("10.0.1.1:7400", node.address).replace("a1.", f"{node.name}.")
        (home / "node.toml").write_text(self.local(text.replace("/srv/disk1", str(disk))))

    def launch(self, node: Node, command: str) -> None:
        own = command.replace("/etc/coffre/a1", str(self.home(node)))
        self.processes[node.name] = subprocess.Popen(
            own.split(), env={**os.environ, **ENVIRONMENT}, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL
        )

    def wait_until_it_serves(self, name: str) -> None:
        said = self.processes[name].stderr
        assert said is not None
        words = []
        for line in said:
            words.append(line.decode())
            if '"serving"' in words[-1]:
                return
        raise AssertionError(f"{name} did not start: {''.join(words)}")

    def end(self) -> None:
        for process in self.processes.values():
            process.send_signal(signal.SIGTERM)
        for process in self.processes.values():
            process.wait(timeout=PATIENCE_SECONDS)
            assert process.stderr is not None
            process.stderr.close()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.end()


def requests_of_all(text: str) -> dict[str, str]:
    """By node. A comment leaves some to the reader: `... b1 b2 (beta, lille, scaleway), ...` after the line for a2."""
    first, second, comment = text.strip().splitlines()
    found = {"a1": first, "a2": second}
    for names, machine, site, company in re.findall(r"([\w ]+) \((\w+), (\w+), (\w+)\)", comment):
        for name in names.split():
            mine = re.sub(r"\ba2\b", name, second).replace("alpha", machine)
            found[name] = mine.replace("rennes", site).replace("ovh", company)
    return found


def nodes_of(init: str) -> list[Node]:
    """Those that `cluster init` puts into the map."""
    found: list[Node] = []
    for name, address in re.findall(r"--node pki/(\w+)\.crt=([\d.:]+)=", init):
        machine = "machine" + address.partition(":")[0].replace(".", "-")
        disk = sum(node.machine == machine for node in found) + 1
        found.append(Node(name, address, machine, f"disk{disk}"))
    return found


def test_three_machines_by_hand(world: World) -> None:
    authority, of_nodes, of_people, sign, first_map, run, keys, publish = SHELL
    whole, watch, embedded, etcd, operator = SETTINGS
    assert tomllib.loads(etcd)["coordination"]["kind"] == "etcd"  # tests/integration/test_etcd.py
    world.shell(authority)
    (coordinator,) = re.findall(r"--coordinator (\w+)", first_map)
    nodes, requests = nodes_of(first_map), requests_of_all(of_nodes)
    assert len(nodes) == 6
    sign_one, others, sign_alice = sign.strip().splitlines()
    assert others == "# ... a2 b1 b2 g1 g2 clinic"
    for node in nodes:
        world.enrol(node.name, world.home(node), requests[node.name], sign_one)
    clinic, (of_clinic, of_alice) = world.root / "clinic", of_people.strip().splitlines()
    world.enrol("clinic", clinic, of_clinic, sign_one)
    world.shell(f"{of_alice}\n{sign_alice}")
    kept = {path.name for path in (world.office / "pki").iterdir() if b"PRIVATE" in path.read_bytes()}
    assert kept == {"ca.key", "alice.key"}
    world.shell(first_map)
    for node in nodes:
        world.set_up(node, whole + watch + (embedded if node.name == coordinator else ""))
    for node in nodes:
        world.launch(node, run)
    for node in nodes:
        world.wait_until_it_serves(node.name)

    shutil.copy(world.office / "cluster.map", clinic)
    world.shell(keys, clinic)
    (clinic / "client.toml").write_text(CLIENT)
    (clinic / "passphrase").write_text(ENVIRONMENT["COFFRE_KEYRING_PASSPHRASE"])
    (clinic / "passphrase").chmod(0o600)
    there = "export COFFRE_CONFIG=client.toml; "
    world.shell(there + "printf 'by hand' | coffre put - records/first", clinic)
    assert world.shell(there + "coffre get records/first -", clinic) == "by hand"
    assert "marseille" in world.shell(there + "coffre locate records/first", clinic)

    alice = world.root / "alice"
    (alice / ".coffre").mkdir(parents=True)
    for name in ("pki/ca.crt", "pki/alice.crt", "pki/alice.key", "cluster.map"):
        shutil.copy(world.office / name, alice / ".coffre")
    shutil.copy(world.office / "cluster.map", alice)
    (alice / ".coffre/operator.toml").write_text(operator)
    world.shell(publish, alice)
    assert "b1" in world.shell(publish.replace("publish cluster.map", "nodes"), alice)
    world.shell(there + "echo x | coffre put --if-absent - records/agreed", clinic)  # what step 6 is for
    assert world.shell("coffre repair status --json", alice)
