"""The network of a chaos run: who can reach whom, taken away and given back in one direction at a time.

`NamespaceNetwork` gives every node and client process a network namespace of its own, behind one bridge; a cut is a
route that leads nowhere. `ProxyNetwork`, for machines that allow no namespaces, puts a proxy before each node; a cut
then concerns everybody who talks to that node.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

__all__ = ["Member", "NamespaceNetwork", "Network", "ProxyNetwork", "namespace_command"]

_PORT = 7700
_BRIDGE = "coffre0"
_CHUNK_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Member:
    """A node (numbered from 1) or a client process (from 0)."""

    role: str  # node, client
    number: int

    def __str__(self) -> str:
        return f"{self.role} {self.number}"


class Network(Protocol):
    """What a run may do to its network."""

    def prefix(self, member: Member) -> list[str]:
        """What a member's command line must begin with."""

    def cut(self, source: Member, target: Member) -> None:
        """Nothing that `source` sends reaches `target` any more, and neither of them is told."""

    def heal(self) -> None:
        """Everything reaches everybody again."""

    async def close(self) -> None: ...


def namespace_command() -> list[str] | None:
    """What runs a command in a new network namespace, as root of its own if need be; None when nothing does."""
    if shutil.which("unshare") is None or shutil.which("nsenter") is None or shutil.which("ip") is None:
        return None
    for command in (["unshare", "--net"], ["unshare", "--user", "--map-root-user", "--net"]):
        trial = [*command, "ip", "link", "add", _BRIDGE, "type", "bridge"]
        if subprocess.run(trial, capture_output=True, check=False).returncode == 0:
            return command
    return None


def _ip(*arguments: str, prefix: Sequence[str] = ()) -> None:
    subprocess.run([*prefix, "ip", *arguments], check=True, capture_output=True)


class NamespaceNetwork:
    """Made by a process that `namespace_command` started; its namespaces end with their last process."""

    def __init__(self, nodes: int, clients: int) -> None:
        """Room for nodes 1 to `nodes` and clients below `clients`; `join` makes more."""
        self._holders: dict[Member, subprocess.Popen[bytes]] = {}
        self._cuts: list[tuple[Member, Member]] = []
        _ip("link", "set", "lo", "up")
        _ip("link", "add", _BRIDGE, "type", "bridge")
        _ip("addr", "add", "10.77.0.254/24", "dev", _BRIDGE)
        _ip("link", "set", _BRIDGE, "up")
        members = [Member("node", number) for number in range(1, nodes + 1)]
        members += [Member("client", number) for number in range(clients)]
        for member in members:
            self.join(member)

    def join(self, member: Member) -> None:
        """Give one more member a namespace, which everybody reaches."""
        link = f"cf{len(self._holders)}"
        holder = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", "echo; exec cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert holder.stdout is not None
        holder.stdout.readline()  # the namespace is there
        self._holders[member] = holder
        _ip("link", "add", link, "type", "veth", "peer", "name", f"{link}p")
        _ip("link", "set", link, "master", _BRIDGE, "up")
        _ip("link", "set", f"{link}p", "netns", str(holder.pid))
        inside = self.prefix(member)
        _ip("link", "set", f"{link}p", "name", "eth0", prefix=inside)
        _ip("addr", "add", f"{_host(member)}/24", "dev", "eth0", prefix=inside)
        _ip("link", "set", "eth0", "up", prefix=inside)
        _ip("link", "set", "lo", "up", prefix=inside)

    @staticmethod
    def address(number: int) -> str:
        """Where a node listens."""
        return f"{_host(Member('node', number))}:{_PORT}"

    def prefix(self, member: Member) -> list[str]:
        return ["nsenter", f"--net=/proc/{self._holders[member].pid}/ns/net"]

    def cut(self, source: Member, target: Member) -> None:
        if (source, target) not in self._cuts:
            self._cuts.append((source, target))
            _ip("route", "add", "blackhole", f"{_host(target)}/32", prefix=self.prefix(source))

    def heal(self) -> None:
        for source, target in self._cuts:
            _ip("route", "del", "blackhole", f"{_host(target)}/32", prefix=self.prefix(source))
        self._cuts.clear()

    async def close(self) -> None:
        for holder in self._holders.values():
            holder.communicate()  # its input ends, and so does it


def _host(member: Member) -> str:
    return f"10.77.0.{member.number if member.role == 'node' else 100 + member.number}"


class ProxyNetwork:
    """A proxy on each address of the map, before the address that the node really listens at."""

    def __init__(self) -> None:
        self._gates: dict[Member, tuple[asyncio.Event, asyncio.Event]] = {}  # to the node, from the node
        self._servers: list[asyncio.Server] = []
        self._relays: set[asyncio.Task[None]] = set()

    async def stand_before(self, number: int, address: str, apart: str) -> None:
        """Listen at `address` for the node that listens at `apart`."""
        towards, back = asyncio.Event(), asyncio.Event()
        towards.set()
        back.set()
        self._gates[Member("node", number)] = towards, back
        host, port = address.rsplit(":", 1)

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._relays.add(task)
            task.add_done_callback(self._relays.discard)
            with contextlib.suppress(OSError):
                there = await asyncio.open_connection(*apart.rsplit(":", 1))
                await asyncio.gather(
                    _relay(reader, there[1], towards), _relay(there[0], writer, back), return_exceptions=True
                )
            writer.close()

        self._servers.append(await asyncio.start_server(serve, host, int(port)))

    def prefix(self, member: Member) -> list[str]:
        return []

    def cut(self, source: Member, target: Member) -> None:
        if target.role == "node":
            self._gates[target][0].clear()
        else:
            self._gates[source][1].clear()

    def heal(self) -> None:
        for gates in self._gates.values():
            for gate in gates:
                gate.set()

    async def close(self) -> None:
        self.heal()
        for server in self._servers:
            server.close()
        for task in list(self._relays):
            task.cancel()
        await asyncio.gather(*self._relays, return_exceptions=True)


async def _relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, gate: asyncio.Event) -> None:
    try:
        while data := await reader.read(_CHUNK_BYTES):
            await gate.wait()
            writer.write(data)
            await writer.drain()
    finally:
        writer.close()
