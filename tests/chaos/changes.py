"""Changes of the map while everything else goes wrong: the shipped commands, in an order that the seed gives.

One change after the other, because the product promises no more than that for lost nodes: the data of the first must
have moved before the next one may be lost. Any command may be killed, and is then repeated, or ended with `apply`.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import random
import shutil
import signal
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from coffre.cluster.admin.cli_errors import ExitCode
from coffre.cluster.errors import Unavailable
from coffre.dev.local_cluster import LocalCluster

from tests.chaos.network import Member, NamespaceNetwork, Network, ProxyNetwork

__all__ = ["ANCHOR", "Changes", "Patient"]

ANCHOR = 1  # serves coordination, and has the small disk: it never leaves
NODES_MAX = 8
COMMAND_SECONDS_MAX = 90.0
JOIN_SECONDS_MAX = 300.0
INTERRUPTED_SHARE = 0.4
TROUBLED_SECONDS = 12.0  # of each change, before it may have calm
_COFFRE = str(Path(sys.executable).with_name("coffre"))
_LASTING = (ExitCode.USAGE, ExitCode.NOT_FOUND, ExitCode.PERMISSION, ExitCode.INTEGRITY)


class Kind(enum.Enum):
    """What an operator wishes."""

    ADD = "add-node"
    LEAVE = "drain and remove"
    LOSE = "replace --lost"
    RESIZE = "set-capacity"


class Patient(Protocol):
    """What changes do to a run besides their commands."""

    hands: asyncio.Lock  # held while processes of nodes are killed or started

    def join(self, number: int) -> None:
        """A node serves, and may suffer from now on."""

    def leave(self, number: int) -> None:
        """A node's process has ended for ever."""


@dataclass
class Changes:
    """The operator: who is a member, what it does next, and what it did."""

    cluster: LocalCluster
    network: Network
    clients: int
    log: Path
    chance: random.Random  # of its own, so that moments do not change what is drawn
    patient: Patient
    done: Counter[str] = field(default_factory=Counter)
    order: list[str] = field(default_factory=list)  # what was carried out, in words
    liar: int = (
        0  # whose disk may lie, and is the next one to die: no second one is at risk at a time; 0: nobody's
    )
    _members: set[int] = field(default_factory=set)
    _ending: asyncio.Event = field(default_factory=asyncio.Event)
    _completed: asyncio.Event = field(default_factory=asyncio.Event)
    _began: float = 0.0
    _joining: asyncio.Task[None] | None = None

    def __post_init__(self) -> None:
        self._members = set(self.cluster.numbers)
        self._choose_liar()

    # ---------------------------------------------------------------- the order of things

    async def carry_out(self) -> None:
        """Change upon change, one at least, until `end` is called; returns when the last one is complete."""
        kind = Kind.ADD
        while True:
            await self._change(kind)
            if self._ending.is_set():
                return
            kind = self.chance.choice(self._possible())

    async def wait_for_one(self, seconds: float) -> None:
        """Return when the change under way is complete, or after so long; at once while it is young."""
        if asyncio.get_running_loop().time() - self._began < TROUBLED_SECONDS:
            return
        self._completed.clear()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._completed.wait(), seconds)

    def end(self) -> None:
        """Begin nothing more."""
        self._ending.set()

    def _possible(self) -> list[Kind]:
        kinds = [Kind.LOSE, Kind.LOSE, Kind.RESIZE]
        if len(self._members) < NODES_MAX:
            kinds += [Kind.ADD, Kind.ADD]
        if self._superfluous():
            kinds += [Kind.LEAVE, Kind.LEAVE]
        return kinds

    def _site(self, number: int) -> str:
        return self.cluster.map.node(number).site

    def _superfluous(self) -> list[int]:
        """Nodes whose site can do without one: each needs two for 4+2 on three sites."""
        count = Counter(self._site(number) for number in self._members)
        return [n for n in sorted(self._members) if n != ANCHOR and count[self._site(n)] > 2]

    def _choose_liar(self) -> None:
        self.liar = self.chance.choice(sorted(self._members - {ANCHOR}))

    async def _change(self, kind: Kind) -> None:
        self._began = asyncio.get_running_loop().time()
        if kind is Kind.ADD:
            site = self.chance.choice(sorted({self._site(number) for number in self._members}))
            offer = await self._prepare(site)
            await self._until_done("add-node", offer)
            await self._joined()
        elif kind is Kind.LEAVE:
            await self._drain_and_remove(self.chance.choice(self._superfluous()))
        elif kind is Kind.LOSE:
            await self._lose()
        else:
            node, size = self.chance.choice(sorted(self._members)), self.chance.randrange(500, 2000)
            await self._until_done("set-capacity", self._name(node), f"{size}GB")
        self.done[kind.value] += 1
        self._completed.set()

    async def _drain_and_remove(self, number: int) -> None:
        name = self._name(number)
        await self._until_done("drain", name)
        await self._until_done("remove", name)
        async with self.patient.hands:
            self._bury(number)
        if self.liar == number:
            self._choose_liar()

    async def _lose(self) -> None:
        """The disk that lies dies, with what was on it; another node takes its place."""
        number = self.liar
        offer = await self._prepare(self._site(number))
        async with self.patient.hands:
            self.liar = 0
            self._bury(number)
        await self._until_done("replace", self._name(number), offer, "--lost")
        await self._joined()
        self._choose_liar()

    def _bury(self, number: int) -> None:
        self._members.discard(number)
        self.patient.leave(number)
        if self.cluster.running(number):
            self.cluster.kill(number, signal.SIGKILL)
        shutil.rmtree(self.cluster.data(number))

    # ---------------------------------------------------------------- nodes that join

    async def _prepare(self, site: str) -> str:
        """Start a node that waits until the map has it; what the commands call it."""
        number = max(self.cluster.numbers) + 1
        address = None
        if isinstance(self.network, NamespaceNetwork):
            address = self.network.address(number)
            await asyncio.to_thread(self.network.join, Member("node", number))
        operator = site.replace("site", "operator")
        offer = self.cluster.prepare(f"node-{number}", f"server-{number}", site, operator, address)
        if isinstance(self.network, ProxyNetwork):
            apart = self.cluster.listen_apart(number)
            await self.network.stand_before(number, self.cluster.map.node(number).address, apart)
        self.cluster.launch(number)
        self._members.add(number)
        self._joining = asyncio.create_task(self._welcome(number))
        return f"{offer}=1TB"

    async def _welcome(self, number: int) -> None:
        await self.cluster.wait_ready(number, JOIN_SECONDS_MAX)
        self.patient.join(number)

    async def _joined(self) -> None:
        assert self._joining is not None
        await self._joining

    def _name(self, number: int) -> str:
        return self.cluster.map.node(number).node_id

    # ---------------------------------------------------------------- commands

    async def _until_done(self, *wish: str) -> None:
        """Say it until it is so, and nothing moves any more, whatever becomes of the commands."""
        interrupted = self.chance.random() < INTERRUPTED_SHARE
        after_seconds, then_apply = self.chance.uniform(0.3, 4.0), self.chance.random() < 0.5
        self.order.append(" ".join((wish[0], *(word.rsplit("/", 1)[-1] for word in wish[1:]))))
        if interrupted and await self._run(wish, after_seconds) is None:
            self.done["command killed"] += 1
            if then_apply:
                await self._repeat(("apply",))
        await self._repeat(wish)

    async def _repeat(self, wish: tuple[str, ...]) -> None:
        while (status := await self._run(wish, COMMAND_SECONDS_MAX)) != ExitCode.OK:
            if status in _LASTING:
                raise Unavailable(f"coffre cluster {' '.join(wish)} ended with {status}; {self.log} says why")
            pace_seconds = 0.5
            await asyncio.sleep(pace_seconds)

    async def _run(self, wish: tuple[str, ...], seconds: float) -> int | None:
        """The exit status of one command; None when it was killed after so many seconds."""
        machine = Member("client", self.chance.randrange(self.clients))
        command = [*self.network.prefix(machine), _COFFRE, "cluster", *wish, "--json"]
        command += ["--operator", str(self.cluster.operator_config())]
        command += [] if wish[0] == "apply" else ["--yes"]
        with self.log.open("ab") as log:
            log.write(f"{asyncio.get_running_loop().time():.1f} > {' '.join(wish)}\n".encode())
            log.flush()
            process = await asyncio.create_subprocess_exec(
                *command, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log
            )
            try:
                return await asyncio.wait_for(process.wait(), seconds)
            except TimeoutError:
                return None
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()
