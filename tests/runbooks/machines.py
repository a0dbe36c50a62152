"""Three machines with two nodes each, as docs/operations.md sets them up by hand, as folders and processes of this one.

How commands of the document are carried out here, and nothing else is changed in them:

    10.0.*                      addresses of loopback, another 127.N.* for each test
    8TB                         8MB, which every disk has: doctor compares
    ssh MACHINE COMMAND         COMMAND in a shell of this machine
    scp ... MACHINE:PATH        cp
    /etc/coffre, /srv           folders of that machine
    /var/lib/etcd/default       the folder of that machine's member of etcd
    systemctl VERB UNIT         the process of the unit (tests/nursery.py); `start` waits until the node serves, or says
                                for whom it waits
"""

from __future__ import annotations

import itertools
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from click.testing import CliRunner
from coffre.cluster.admin.cli import cluster, pki
from coffre.dev.local_cluster import NodeProcess

from tests.integration.etcd_cluster import EtcdCluster
from tests.nursery import Nursery
from tests.patience import PATIENCE_SECONDS
from tests.runbooks.book import Step

__all__ = ["Machines"]

BIN = Path(sys.executable).parent
COMMAND_SECONDS = 180
PACE_SECONDS = 0.1  # between two looks at what another process does, where nobody can be waited on
HOSTS = {"alpha": "rennes", "beta": "lille", "gamma": "marseille"}
OPERATORS = {"rennes": "ovh", "lille": "scaleway", "marseille": "ikoula"}
NODES = {  # machine, address, disk
    "a1": ("alpha", "10.0.1.1:7400", "disk1"),
    "a2": ("alpha", "10.0.1.1:7401", "disk2"),
    "b1": ("beta", "10.0.2.1:7400", "disk1"),
    "b2": ("beta", "10.0.2.1:7401", "disk2"),
    "g1": ("gamma", "10.0.3.1:7400", "disk1"),
    "g2": ("gamma", "10.0.3.1:7401", "disk2"),
}
NODE_TOML = """\
listen = "{address}"
data = "../../../srv/{disk}/coffre"
map = "../../../srv/{disk}/cluster.map"
log_level = "info"

[tls]
authority = "ca.crt"
certificate = "{name}.crt"
key = "{name}.key"

[store]
reserve_bytes = 1000000
{store}
[repair]
round_seconds = 0.3
settling_seconds = 0.2
bytes_per_second = 1073741824

[watch]
ask_seconds = 0.5

"""
EMBEDDED = '[coordination]\nkind = "embedded"\nfolder = "coordination"\n'
CLIENT_TOML = """\
map = "cluster.map"
authority = "pki/ca.crt"
certificate = "pki/clinic.crt"
key = "pki/clinic.key"
keyring = "keyring.json"
"""
OPERATOR_TOML = """\
map = "../cluster.map"
authority = "../pki/ca.crt"
certificate = "../pki/alice.crt"
key = "../pki/alice.key"
"""
_made = itertools.count()


class Machines:
    """Begins with its making; the nodes run after `start_all`. Every process that it starts, it also ends."""

    def __init__(
        self,
        root: Path,
        nursery: Nursery,
        *,
        coordinators: Sequence[str] = ("b1",),
        etcd: EtcdCluster | None = None,
        days: int = 825,
        store: str = "",
    ) -> None:
        """`days`: validity of a2's certificate. `store`: more settings of a2's store."""
        self.root = root
        self.office = root / "office"  # the operator's machine
        self._net = f"127.{(os.getpid() * 7 + next(_made)) % 200 + 20}."
        self._etcd = etcd
        self._nursery = nursery
        self._processes: dict[str, NodeProcess] = {}
        self._environment = {
            **os.environ,
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "COFFRE_KEYRING_PASSPHRASE": "correct horse",
            "COFFRE_CONFIG": "client.toml",
            "HOME": str(self.office),
            "COLUMNS": "200",
        }
        self.is_divided = etcd is None and len(coordinators) > 1
        self._found(coordinators, days)
        for name, (host, address, disk) in NODES.items():
            where = root / host / "etc/coffre" / name
            (root / host / "srv" / disk).mkdir(parents=True)
            shutil.copy(self.office / "cluster.map", root / host / "srv" / disk)
            text = NODE_TOML.format(
                name=name, address=self.local(address), disk=disk, store=store if name == "a2" else ""
            )
            if name in coordinators:
                text += EMBEDDED if etcd is None else etcd_section(etcd)
            (where / "node.toml").write_text(text)

    def _found(self, coordinators: Sequence[str], days: int) -> None:
        """docs/operations.md, "Start a cluster by hand on three machines", steps 1, 2, 3, 5 and 7."""
        self.office.mkdir(parents=True)
        keys = str(self.office / "pki")
        invoke(pki, "init", "--dir", keys)
        for name, (host, _, _) in NODES.items():
            site = HOSTS[host]
            where = ("--server", host, "--site", site, "--operator", OPERATORS[site], "--jurisdiction", "FR")
            life = ("--days", str(days)) if name == "a2" else ()
            self._enrol("node", name, self.root / host / "etc/coffre" / name, *where, days=life)
        self._enrol("tenant", "clinic", self.office / "pki")
        self._enrol("operator", "alice", self.office / "pki")
        offers = [f"--node={keys}/{name}.crt={self.local(at)}=8MB" for name, (_, at, _) in NODES.items()]
        named = [f"--coordinator={name}" for name in coordinators]
        named += ["--coordination", "etcd"] if len(coordinators) > 1 else []
        out = ("--policy", "4+2", "--survives", "site", "--out", str(self.office / "cluster.map"))
        invoke(
            cluster, "init", "--dir", keys, "--signer", "alice", "--partitions", "64", *out, *offers, *named
        )
        (self.office / "client.toml").write_text(CLIENT_TOML)
        (self.office / ".coffre").mkdir()
        (self.office / ".coffre/operator.toml").write_text(OPERATOR_TOML)
        self.shell("coffre keyring create keyring.json")

    def _enrol(self, role: str, name: str, home: Path, *where: str, days: tuple[str, ...] = ()) -> None:
        """A key in the folder of a member, and a certificate beside it, and with the authority."""
        office = self.office / "pki"
        home.mkdir(parents=True, exist_ok=True)
        if home != office:
            shutil.copy(office / "ca.crt", home)
        invoke(pki, "request", role, name, *where, "--dir", str(home))
        told = ("--dir", str(office), "--expect", f"{role}/{name}", *where, "--yes")
        invoke(pki, "sign", str(home / f"{name}.csr"), *told, *days)
        if home != office:
            shutil.copy(office / f"{name}.crt", home)

    # ---------------------------------------------------------------- commands of the document

    def local(self, text: str) -> str:
        """With addresses and capacities that exist here."""
        return text.replace("10.0.", self._net).replace("=8TB", "=8MB")

    def shell(self, command: str, *, may_fail: bool = False) -> str:
        """What a command prints, on the operator's machine. Whatever it asks is answered with yes."""
        done = subprocess.run(
            ["bash", "-ec", self.local(command)],
            cwd=self.office,
            input="y\n",
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            env=self._environment,
        )
        assert may_fail or done.returncode == 0, (command, done.stdout, done.stderr)
        return done.stdout + done.stderr

    def follow(self, steps: Sequence[Step]) -> None:
        """Every command as the run-book says, until it prints what the run-book says."""
        for step in steps:
            deadline = time.monotonic() + PATIENCE_SECONDS
            while not step.is_so(output := self.carry_out(step)):
                assert step.repeated, (step, output)
                assert time.monotonic() < deadline, (step, output)

    def carry_out(self, step: Step) -> str:
        tool, _, rest = step.command.partition(" ")
        if tool == "ssh":
            host, _, command = rest.partition(" ")
            if command.startswith('"'):
                (command,) = shlex.split(command)  # as the shell does, before ssh hands it on
            service, semicolon, after = command.partition("; ")
            for part in (service, after) if semicolon and service.startswith("systemctl") else (command,):
                self._on(host, part)
            return ""
        if tool == "scp":
            return self.shell("cp " + re.sub(r"\b(\w+):(/\S*)", lambda m: self._path(m[1], m[2]), rest))
        looks = step.command.startswith(
            ("coffre doctor", "coffre cluster nodes")
        )  # they say by status what is wrong
        return self.shell(step.command, may_fail=looks and bool(step.words))

    def _on(self, host: str, command: str) -> None:
        service = re.fullmatch(r"systemctl (start|stop|restart) (\S+)", command)
        if service is None:
            self.shell(
                re.sub(r"/(?:etc/coffre|srv|var/lib/etcd)\S*", lambda m: self._path(host, m[0]), command)
            )
            return
        verb, unit = service.groups()
        if verb != "start":
            self._stop(host, unit)
        if verb != "stop":
            self._start(host, unit)

    def _path(self, host: str, path: str) -> str:
        if path == "/var/lib/etcd/default":
            assert self._etcd is not None
            return str(self._etcd.data(list(HOSTS).index(host)))
        return f"{self.root / host}{path}"

    # ---------------------------------------------------------------- units

    def _start(self, host: str, unit: str) -> None:
        if unit == "etcd":
            assert self._etcd is not None
            self._etcd.start(list(HOSTS).index(host))
            return
        name = unit.removeprefix("coffre-node@")
        self.launch(host, name)
        self.wait(name)

    def _stop(self, host: str, unit: str) -> None:
        if unit == "etcd":
            assert self._etcd is not None
            self._etcd.kill(list(HOSTS).index(host))
            return
        self.end(unit.removeprefix("coffre-node@"), signal.SIGTERM)

    def launch(self, host: str, name: str, *options: str) -> None:
        command = [str(BIN / "coffre"), "node", "run", "--config", f"etc/coffre/{name}/node.toml", *options]
        with self.log(name).open("wb") as log:
            self._processes[name] = self._nursery.spawn(command, log, self.root / host)

    def wait(self, name: str) -> None:
        """Until a node serves, or says for whom it waits."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not re.search(
            r'"serving"|"ready for objects|"waiting for ', said := self.log(name).read_text()
        ):
            assert self._processes[name].poll() is None, said
            assert time.monotonic() < deadline, said
            time.sleep(PACE_SECONDS)

    def log(self, name: str) -> Path:
        return self.root / f"{name}.log"

    def end(self, name: str, how: signal.Signals = signal.SIGKILL) -> None:
        """A node that does not run is left alone."""
        process = self._processes[name]
        if process.poll() is None:
            process.send_signal(how)
            process.wait(timeout=PATIENCE_SECONDS)

    def start_all(self) -> None:
        """Start the nodes, and make their map known. Coordinators with a store of their own each refuse that."""
        for name, (host, _, _) in NODES.items():
            self.launch(host, name, "--new-cluster")
        for name in NODES:
            self.wait(name)
        command = "coffre cluster publish cluster.map"
        said = self.shell(command, may_fail=self.is_divided)
        assert ("a coordination store of their own" in said) is self.is_divided, said

    def stop(self) -> None:
        for name in self._processes:
            self.end(name)


def invoke(command: object, *arguments: str) -> None:
    result = CliRunner().invoke(command, list(arguments))  # type: ignore[arg-type]  # groups of click
    assert result.exit_code == 0, result.output


def etcd_section(etcd: EtcdCluster) -> str:
    endpoints = ", ".join(f'"{endpoint}"' for endpoint in etcd.endpoints)
    return (
        f'[coordination]\nkind = "etcd"\nendpoints = [{endpoints}]\nca = "{etcd.tls.authority}"\n'
        f'certificate = "{etcd.tls.certificate}"\nkey = "{etcd.tls.key}"\n'
    )
