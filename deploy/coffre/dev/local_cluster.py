"""A whole cluster on this machine, of real node processes: for the demo, the benchmarks and the integration tests."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO, Protocol

import grpc
from coffre.client import KeyRing
from coffre.cluster.clock import Clock, SystemClock
from coffre.cluster.errors import ConfigurationError, Unavailable
from coffre.cluster.identity import (
    Authority,
    TlsFiles,
    channel_credentials,
    create_authority,
    issue_node,
    issue_operator,
    issue_tenant,
    read_authority,
    tls_name,
    write_authority,
    write_issued,
)
from coffre.cluster.map import ClusterMap, Domain, MapNode, Policy, create_map_file, sign_map
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from grpc_health.v1 import health_pb2, health_pb2_grpc

__all__ = ["ClusterShape", "LocalCluster", "NodeProcess", "free_ports", "share_of_disk"]

_PORT_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_FIRST_PORT = 10_000
START_SECONDS = 120.0  # against hanging: a node that ends by itself is noticed at once
_MARKER = "development-cluster"
_MEMBER_TOML = """\
map = "cluster.map"
authority = "pki/ca.crt"
certificate = "pki/{name}.crt"
key = "pki/{name}.key"
"""
_CLIENT_TOML = f"""\
{_MEMBER_TOML}keyring = "keyring.json"
passphrase_file = "passphrase"
"""
_NODE_TOML = """\
listen = "{address}"
data = "data"
map = "cluster.map"
log_level = "info"

[tls]
authority = "../../pki/ca.crt"
certificate = "../../pki/{node_id}.crt"
key = "../../pki/{node_id}.key"
"""


@dataclass(frozen=True, slots=True)
class ClusterShape:
    """How many nodes where, and how objects are coded. `store`, `repair` and `watch` go into the
    sections of every node's configuration that are called so.

    `addresses`: where the nodes listen, free ports of loopback unless given.
    """

    nodes: int = 6
    sites: int = 3
    k: int = 4
    m: int = 2
    tenants: tuple[str, ...] = ("clinic",)
    partitions: int = 256
    versions_kept: int = 1
    capacity_bytes: int = 1 << 40
    store: Mapping[str, int] = field(default_factory=dict)
    coordinators: tuple[int, ...] = (1,)  # of one number: embedded; it is not there while that node is down
    repair: Mapping[str, int | float | bool] = field(default_factory=dict)
    watch: Mapping[str, int | float] = field(default_factory=dict)
    addresses: tuple[str, ...] = ()


def share_of_disk(directory: Path, nodes: int) -> int:
    """Bytes for each of so many nodes that lie on the disk of `directory`, which need not be there yet."""
    there = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    return max(shutil.disk_usage(there).total // nodes, 1)


class NodeProcess(Protocol):
    """What a cluster does with the process of a node; `subprocess.Popen` is one."""

    @property
    def pid(self) -> int:
        """Its number."""

    def poll(self) -> int | None:
        """Its exit status; None while it runs."""

    def wait(self, timeout: float | None = None) -> int:
        """Its exit status, once it has ended. Raises `subprocess.TimeoutExpired` after so many seconds."""

    def send_signal(self, sig: int) -> None:
        """Send any signal."""

    def terminate(self) -> None:
        """Send SIGTERM."""

    def kill(self) -> None:
        """Send SIGKILL."""


def start_process(command: list[str], log: BinaryIO) -> NodeProcess:
    """Start a command in a session of its own, with nothing to read and this log."""
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)


class LocalCluster:
    """Six nodes, or what the shape says, on loopback. Every process that it starts, it also ends."""

    start_process = staticmethod(start_process)

    def __init__(self, directory: Path, cluster_map: ClusterMap, shape: ClusterShape) -> None:
        self.directory, self.map, self._shape = directory, cluster_map, shape
        self._founders = frozenset(self.numbers)  # of a new cluster; others join it
        self._processes: dict[int, NodeProcess] = {}
        self._marker: int | None = None  # locked as long as this cluster is in use
        self.prefix_of: Callable[[int], list[str]] = lambda number: []  # what a node's command begins with

    @classmethod
    def create(cls, directory: Path, shape: ClusterShape, clock: Clock | None = None) -> LocalCluster:
        """Make certificates, a signed map, a key ring and configurations in `directory`, replacing an earlier cluster.

        Raises `ConfigurationError` when the directory holds something else, or a cluster that is in use.
        """
        marker = _take(directory)
        clock = clock or SystemClock()
        authority = create_authority(secrets.token_hex(8), clock)
        write_authority(authority, directory / "pki")
        nodes = _founders(shape)
        policy = Policy(
            f"{shape.k}-{shape.m}",
            shape.k,
            shape.m,
            ("FR",),
            Domain.SITE if shape.sites > 1 else Domain.NODE,
            versions_kept=shape.versions_kept,
        )
        cluster_map = ClusterMap(
            authority.cluster_id, 1, shape.partitions, nodes, (policy,), policy.name, shape.coordinators
        )
        write_issued(issue_operator(authority, "operator", clock), directory / "pki")
        (directory / "operator.toml").write_text(_MEMBER_TOML.format(name="operator"))
        cluster = cls(directory, cluster_map, shape)
        cluster._marker = marker
        signed = cluster.sign(cluster_map)
        create_map_file(directory / "cluster.map", signed)
        _write_clients(directory, authority, shape, clock)
        for node in nodes:
            _write_node(directory, node, authority, shape, signed, clock)
        return cluster

    # ---------------------------------------------------------------- what a user of the cluster needs

    def client_config(self, tenant: str | None = None) -> Path:
        """The client.toml of a tenant (default: the first)."""
        first = self._shape.tenants[0]
        return self.directory / ("client.toml" if tenant in (None, first) else f"{tenant}.toml")

    def data(self, number: int) -> Path:
        """The data directory of a node."""
        return self._home(number) / "data"

    def log(self, number: int) -> Path:
        """The log of a node: JSON lines."""
        return self._home(number) / "node.log"

    def config(self, number: int) -> Path:
        """The node.toml of a node."""
        return self._home(number) / "node.toml"

    def sign(self, cluster_map: ClusterMap) -> bytes:
        """A map with the operator's signature, for `publish_map`."""
        tls = self.operator_tls()
        signer = x509.load_pem_x509_certificate(tls.certificate.read_bytes())
        return sign_map(cluster_map, signer, load_pem_private_key(tls.key.read_bytes(), None))  # type: ignore[arg-type]

    def operator_config(self) -> Path:
        """The operator.toml of the cluster's operator."""
        return self.directory / "operator.toml"

    def operator_tls(self) -> TlsFiles:
        """Certificate and key of the cluster's operator."""
        pki = self.directory / "pki"
        return TlsFiles(pki / "ca.crt", pki / "operator.crt", pki / "operator.key")

    @property
    def numbers(self) -> tuple[int, ...]:
        """Of all nodes, those that were prepared included."""
        return tuple(node.number for node in self.map.nodes)

    def disk_bytes(self) -> int:
        """What all data directories take on disk."""
        return sum(disk_bytes(self.data(number)) for number in self.numbers)

    def pid(self, number: int) -> int:
        return self._processes[number].pid

    def listen_apart(self, number: int) -> str:
        """Let a node listen at another address than the map says, so that something can stand between; that address.

        Takes effect when the node starts.
        """
        (port,) = free_ports(1)
        apart, config = f"127.0.0.1:{port}", self.config(number)
        before = f'listen = "{self.map.node(number).address}"'
        text = config.read_text("utf-8")
        if before not in text:
            raise ConfigurationError(f"{config} does not say where the map expects the node")
        config.write_text(text.replace(before, f'listen = "{apart}"'), "utf-8")
        return apart

    def join(self, node_id: str, server: str, site: str, operator: str) -> str:
        """Start one more node, which waits until the map has it; what `coffre cluster add-node` calls it."""
        offer = self.prepare(node_id, server, site, operator)
        self.launch(self.numbers[-1])
        return offer

    def prepare(self, node_id: str, server: str, site: str, operator: str, address: str | None = None) -> str:
        """Make the certificate and the folder of one more node, the last of `numbers` from now on, and do not start it.

        Returns what `coffre cluster add-node` calls it, less the capacity. `address`: a free port of loopback unless
        given.
        """
        address = address or f"127.0.0.1:{free_ports(1)[0]}"
        node = MapNode(max(self.numbers) + 1, node_id, address, server, site, operator, "FR", 1 << 40)
        authority, signed = (
            read_authority(self.directory / "pki"),
            (self.directory / "cluster.map").read_bytes(),
        )
        shape = replace(self._shape, coordinators=())
        _write_node(self.directory, node, authority, shape, signed, SystemClock())
        self.map = replace(self.map, nodes=(*self.map.nodes, node))
        return f"{self.directory / 'pki' / node_id}.crt={address}"

    # ---------------------------------------------------------------- life of the processes

    async def start(self, numbers: Iterable[int] | None = None, timeout: float = START_SECONDS) -> None:
        """Start nodes (default: all) and return when they serve, for which each has `timeout` seconds.

        Raises `Unavailable` with the end of a failing log.
        """
        chosen = tuple(self.numbers if numbers is None else numbers)
        for number in chosen:
            self.launch(number)
        await asyncio.gather(*(self.wait_ready(number, timeout) for number in chosen))

    def launch(self, number: int) -> None:
        """Start a node's process and wait for nothing."""
        program = str(Path(sys.executable).with_name("coffre"))
        command = [*self.prefix_of(number), program, "node", "run", "--config", str(self.config(number))]
        if number in self._founders and number not in self._processes and not self.data(number).exists():
            command.append("--new-cluster")
        with self.log(number).open("ab") as log:
            self._processes[number] = self.start_process(command, log)

    async def wait_ready(self, number: int, timeout: float = START_SECONDS) -> None:
        """Return when the node's health service says SERVING."""
        node = self.map.node(number)
        options: list[tuple[str, str | int]] = [
            ("grpc.ssl_target_name_override", tls_name(self.map.cluster_id, node.attributes)),
            ("grpc.initial_reconnect_backoff_ms", 50),
            ("grpc.min_reconnect_backoff_ms", 50),
            ("grpc.max_reconnect_backoff_ms", 100),
        ]
        credentials = channel_credentials(self.operator_tls())
        async with grpc.aio.secure_channel(node.address, credentials, options) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            deadline = asyncio.get_running_loop().time() + timeout
            while True:
                if self._processes[number].poll() is not None:
                    raise Unavailable(f"{node.node_id} ended by itself: {self._last_words(number)}")
                with contextlib.suppress(grpc.aio.AioRpcError):
                    reply = await stub.Check(
                        health_pb2.HealthCheckRequest(), timeout=2.0, wait_for_ready=True
                    )
                    if reply.status == health_pb2.HealthCheckResponse.SERVING:
                        return
                if asyncio.get_running_loop().time() > deadline:
                    raise Unavailable(f"{node.node_id} does not serve: {self._last_words(number)}")

    def _last_words(self, number: int) -> str:
        return self.log(number).read_text("utf-8", "replace")[-2000:].strip()

    def kill(self, number: int, how: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to a node; a deadly one is waited for."""
        process = self._processes[number]
        process.send_signal(how)
        if how in (signal.SIGKILL, signal.SIGTERM):
            process.wait(timeout=START_SECONDS)

    def running(self, number: int) -> bool:
        """Whether the process of a node has been started and has not ended."""
        return number in self._processes and self._processes[number].poll() is None

    def stop(self) -> None:
        """End every node: SIGTERM, then SIGKILL for one that does not listen."""
        for process in self._processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.terminate()
        for process in self._processes.values():
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._marker is not None:
            os.close(self._marker)
            self._marker = None

    async def __aenter__(self) -> LocalCluster:
        try:
            await self.start()
        except BaseException:
            self.stop()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        await asyncio.to_thread(self.stop)

    def _home(self, number: int) -> Path:
        return self.directory / "nodes" / self.map.node(number).node_id


def disk_bytes(directory: Path) -> int:
    """Bytes that the files below a directory take on disk (blocks, not lengths)."""
    total = 0
    for root, _, files in os.walk(directory):
        for name in files:
            with contextlib.suppress(FileNotFoundError):
                total += (Path(root) / name).stat().st_blocks * 512
    return total


def _take(directory: Path) -> int:
    """Empty the directory for a cluster; its marker, open and locked until the process ends or `stop` closes it."""
    marker = directory / _MARKER
    if directory.exists() and any(directory.iterdir()):
        if not marker.exists():
            raise ConfigurationError(f"{directory} is not empty and holds no development cluster")
        with marker.open("rb") as earlier:
            try:
                fcntl.flock(earlier, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigurationError(
                    f"the cluster in {directory} is in use; end it, or name another --dir"
                ) from None
            shutil.rmtree(directory)
    directory.mkdir(parents=True, exist_ok=True)
    opened = os.open(marker, os.O_RDWR | os.O_CREAT, 0o644)
    fcntl.flock(opened, fcntl.LOCK_EX)
    return opened


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on, and that the kernel gives to nobody who connects or asks for any: a
    node that was killed finds its own free when it is started again."""
    lowest = int(_PORT_RANGE.read_text().split()[0]) if _PORT_RANGE.exists() else _FIRST_PORT
    sockets: list[socket.socket] = []
    try:
        while len(sockets) < count:
            each = socket.socket()
            sockets.append(each)
            choice = _FIRST_PORT + secrets.randbelow(lowest - _FIRST_PORT) if lowest > 2 * _FIRST_PORT else 0
            try:
                each.bind(("127.0.0.1", choice))
            except OSError:
                sockets.pop().close()  # somebody has that one
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def _founders(shape: ClusterShape) -> tuple[MapNode, ...]:
    """At the sites in turn, each of which has an operator of its own."""
    addresses = shape.addresses or tuple(f"127.0.0.1:{port}" for port in free_ports(shape.nodes))
    nodes = []
    for number, address in enumerate(addresses, start=1):
        site = (number - 1) % shape.sites + 1
        where = f"server-{number}", f"site-{site}", f"operator-{site}", "FR"
        nodes.append(MapNode(number, f"node-{number}", address, *where, shape.capacity_bytes))
    return tuple(nodes)


def _write_clients(directory: Path, authority: Authority, shape: ClusterShape, clock: Clock) -> None:
    passphrase = secrets.token_urlsafe(24).encode()
    passphrase_path = directory / "passphrase"
    passphrase_path.touch(mode=0o600)
    passphrase_path.write_bytes(passphrase + b"\n")
    KeyRing.generate().save(directory / "keyring.json", passphrase)
    for index, tenant in enumerate(shape.tenants):
        write_issued(issue_tenant(authority, tenant, clock), directory / "pki")
        name = "client.toml" if index == 0 else f"{tenant}.toml"
        (directory / name).write_text(_CLIENT_TOML.format(name=tenant))


def _write_node(
    directory: Path, node: MapNode, authority: Authority, shape: ClusterShape, signed_map: bytes, clock: Clock
) -> None:
    """Its certificate, configuration and map."""
    write_issued(issue_node(authority, node.attributes, clock), directory / "pki")
    home = directory / "nodes" / node.node_id
    home.mkdir(parents=True)
    text = _NODE_TOML.format(address=node.address, node_id=node.node_id)
    for section, values in (("store", shape.store), ("repair", shape.repair), ("watch", shape.watch)):
        lines = [f"\n[{section}]", *(f"{name} = {str(value).lower()}" for name, value in values.items())]
        text += "\n".join(lines) + "\n"
    if node.number in shape.coordinators:
        text += '\n[coordination]\nkind = "embedded"\nfolder = "coordination"\n'
    (home / "node.toml").write_text(text)
    create_map_file(home / "cluster.map", signed_map)
