"""Faults and map changes on a real cluster under load, from one seed, and the checks afterwards.

    python -m tests.chaos --seconds 60 --seed 7

The seed gives the faults, the changes and their order; the moments within an operation depend on the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from coffre.dev.local_cluster import ClusterShape, LocalCluster

from tests.chaos.changes import ANCHOR, Changes
from tests.chaos.checks import (
    check_held_up,
    check_redundancy,
    count,
    final_reads,
    history,
    judge,
    write_all_again,
    write_cold,
)
from tests.chaos.network import Member, NamespaceNetwork, Network, ProxyNetwork, namespace_command
from tests.patience import PATIENCE_SECONDS

NODES, CLIENTS, FAULTY_MAX = 6, 3, 2
CALM_SHARE, CALM_SECONDS = 0.2, 20.0  # of all steps; begins with everything well
INSIDE = "COFFRE_CHAOS_INSIDE"  # set in the process that runs within a namespace of its own
BALLAST_BYTES = 1 << 30
SMALL_DISK_BYTES = 160 << 20
START_SECONDS_MAX = 120.0  # of nodes that were killed, eight at once perhaps, while clients work
CHANGE_SECONDS_MAX = 180.0  # for the last change to end, when all is well
# Compared, walked and read over and over within a run, since what is damaged must be found before it ends.
_REPAIR = {"round_seconds": 0.3, "settling_seconds": 0.2, "sweep_seconds": 5.0, "scrub_seconds": 15.0}


@dataclass
class Chaos:
    """One run: the cluster, the clients, and what is broken at the moment."""

    cluster: LocalCluster
    network: Network
    directory: Path
    seed: int
    chance: random.Random
    clients: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)
    records: list[Path] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    down: set[int] = field(default_factory=set)  # killed
    paused: set[int] = field(default_factory=set)
    cut: set[int] = field(default_factory=set)
    hands: asyncio.Lock = field(default_factory=asyncio.Lock)
    members: set[int] = field(default_factory=set)  # nodes that serve, or did and will
    changing: asyncio.Task[None] | None = None
    _client_numbers: int = 0

    def __post_init__(self) -> None:
        self.members = set(self.cluster.numbers)
        chance = random.Random(self.seed)
        log = self.directory / "changes.log"
        self.changes = Changes(self.cluster, self.network, CLIENTS, log, chance, self)

    def join(self, number: int) -> None:
        self.members.add(number)

    def leave(self, number: int) -> None:
        for group in (self.members, self.down, self.paused, self.cut):
            group.discard(number)

    # ---------------------------------------------------------------- clients

    def start_client(self, slot: int, seconds: float) -> None:
        index = self._client_numbers
        self._client_numbers += 1
        record = self.directory / f"client-{index}.jsonl"
        command = [
            *self.network.prefix(Member("client", slot)),
            *(sys.executable, "-m", "tests.chaos.load", str(self.cluster.client_config())),
            *("--index", str(index), "--seed", str(self.seed), "--seconds", f"{max(seconds, 0.5):.1f}"),
        ]
        with record.open("wb") as out, record.with_suffix(".err").open("wb") as err:
            self.clients[slot] = subprocess.Popen(command, stdout=out, stderr=err, stdin=subprocess.DEVNULL)
        self.records.append(record)

    async def wait_for_clients(self) -> None:
        """Every client ends by itself, soon after its time."""
        for client in self.clients.values():
            try:
                code = await asyncio.to_thread(client.wait, PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                client.send_signal(signal.SIGUSR1)
                await asyncio.to_thread(client.wait)
                raise AssertionError(f"a client hangs; its .err in {self.directory} says where") from None
            assert code == 0, f"a client died by itself; its .err in {self.directory} says why"

    # ---------------------------------------------------------------- faults

    @property
    def troubled(self) -> set[int]:
        return self.down | self.paused | self.cut

    def _another(self) -> int | None:
        """A node that is well, unless as many are not as may be."""
        lost = not self.changes.liar  # and what it held has not moved yet
        if len(self.troubled) + lost >= FAULTY_MAX:
            return None
        return self.chance.choice(sorted(self.members - self.troubled))

    async def kill(self) -> None:
        if (number := self._another()) is not None:
            self.cluster.kill(number, signal.SIGKILL)
            self.down.add(number)
            self.faults["kill -9"] += 1

    async def kill_everything(self) -> None:
        for number in self.members:
            if number not in self.down:
                os.kill(self.cluster.pid(number), signal.SIGKILL)
        for number in self.members:
            if number not in self.down:
                self.cluster.kill(number, signal.SIGKILL)
        self.down, self.paused = set(self.members), set()
        self.faults["kill -9 of all"] += 1
        await self.recover()

    async def pause(self) -> None:
        if (number := self._another()) is not None:
            self.cluster.kill(number, signal.SIGSTOP)
            self.paused.add(number)
            self.faults["SIGSTOP"] += 1

    async def partition(self) -> None:
        """Cut a node off, from some or all clients, in one direction or both."""
        number = self._another()
        if number is None:
            return
        node = Member("node", number)
        others = [Member("client", slot) for slot in range(CLIENTS)]
        others += [Member("node", other) for other in sorted(self.members) if other != number]
        some = self.chance.sample(others, self.chance.randrange(1, len(others) + 1))
        direction = self.chance.choice(["from", "to", "both"])
        for other in some:
            if direction != "to":
                self.network.cut(node, other)
            if direction != "from":
                self.network.cut(other, node)
        self.cut.add(number)
        self.faults[f"partition {direction}"] += 1

    async def fill_disk(self) -> None:
        """Leave node 1, whose disk is small, no room at all."""
        ballast = self.cluster.data(ANCHOR).parent / "ballast"
        if ballast.exists() or not os.path.ismount(ballast.parent):
            return
        self.faults["full disk"] += 1
        with ballast.open("wb") as file:
            try:
                for _ in range(BALLAST_BYTES >> 20):
                    file.write(bytes(1 << 20))
                    file.flush()
            except OSError:
                return  # full, as was wanted

    async def flip(self) -> None:
        """Flip a bit in what one node holds; the same node until it has left and its data has moved."""
        if not self.changes.liar:
            return
        data = self.cluster.data(self.changes.liar)
        files = sorted(path for path in (*data.glob("volumes/*"), *data.glob("large/*/*")) if path.is_file())
        if not files:
            return
        path = self.chance.choice(files)
        try:
            with path.open("r+b") as file:
                size_bytes = file.seek(0, os.SEEK_END)
                if size_bytes <= 4096:
                    return
                place = self.chance.randrange(64, size_bytes)
                file.seek(place)
                byte = file.read(1)[0]
                file.seek(place)
                file.write(bytes((byte ^ 1 << self.chance.randrange(8),)))
        except FileNotFoundError:
            return  # freed meanwhile
        self.faults["flipped bit"] += 1

    async def kill_client(self, seconds: float) -> None:
        slot = self.chance.randrange(CLIENTS)
        self.clients[slot].kill()
        self.clients[slot].wait()
        self.start_client(slot, seconds)
        self.faults["client killed"] += 1

    async def recover(self) -> None:
        """Everything is well again."""
        self.network.heal()
        self.cut.clear()
        for number in self.paused:
            self.cluster.kill(number, signal.SIGCONT)
        self.paused.clear()
        ballast = self.cluster.data(ANCHOR).parent / "ballast"
        if ballast.exists() and os.path.ismount(ballast.parent):
            ballast.unlink()
        again, self.down = sorted(self.down), set()
        await self.cluster.start(again, START_SECONDS_MAX)

    async def disturb(self, seconds: float) -> None:
        """Fault upon fault until the time is over."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        faults = [self.kill, self.kill, self.pause, self.partition, self.partition, self.fill_disk, self.flip]
        while (left := end - loop.time()) > 0:
            choice = self.chance.random()
            async with self.hands:
                if choice < 0.25:
                    await self.recover()
                elif choice < 0.30:
                    await self.kill_everything()
                elif choice < 0.38:
                    await self.kill_client(left)
                else:
                    await self.chance.choice(faults)()
            pace_seconds = min(self.chance.uniform(0.05, 1.5), max(end - loop.time(), 0))
            await asyncio.sleep(pace_seconds)
            if choice < CALM_SHARE:
                # All nodes must answer at once for data to have moved, which they seldom do between two faults.
                await self.changes.wait_for_one(min(CALM_SECONDS, max(end - loop.time(), 0)))
        async with self.hands:
            await self.recover()


def report(chaos: Chaos) -> None:
    """Print what was done to the cluster."""
    what = ", ".join(f"{number} x {name}" for name, number in sorted(chaos.faults.items()))
    print(f"seed {chaos.seed}, {type(chaos.network).__name__}: {what}")
    changes = ", ".join(f"{number} x {name}" for name, number in sorted(chaos.changes.done.items()))
    print(f"map changes: {changes}: {'; '.join(chaos.changes.order)}")


async def judged(chaos: Chaos) -> bool:
    """All is well again, and the load has ended: end the change that is under way, and check everything."""
    held_up: set[str] = set()
    operations = history(chaos.records, await final_reads(chaos.cluster, held_up))
    print(f"{count(operations)}, {len(held_up)} keys held up by one of these and a lost node")
    check_held_up(held_up, operations)
    if not judge(operations):
        return False
    closing = await write_all_again(chaos.cluster)
    assert chaos.changing is not None
    await asyncio.wait_for(chaos.changing, CHANGE_SECONDS_MAX)
    assert set(await final_reads(chaos.cluster)) == set(closing.items())
    await check_redundancy(chaos.cluster, chaos.members)
    report(chaos)
    return True


async def run(seconds: float, seed: int, directory: Path) -> bool:
    """One run; whether all checks passed."""
    within = INSIDE in os.environ
    addresses = tuple(map(NamespaceNetwork.address, range(1, NODES + 1))) if within else ()
    shape = ClusterShape(
        nodes=NODES,
        partitions=64,
        addresses=addresses,
        store={"reserve_bytes": 8 << 20, "volume_bytes": 4 << 20},
        repair=_REPAIR,
        coordinators=(ANCHOR,),
    )
    cluster = LocalCluster.create(directory / "cluster", shape)
    network: Network
    if within:
        network = NamespaceNetwork(NODES, CLIENTS)
        cluster.prefix_of = lambda number: network.prefix(Member("node", number))
        small = cluster.data(1).parent
        await asyncio.to_thread(_small_disk, small)
    else:
        network = proxies = ProxyNetwork()
        for number in cluster.numbers:
            await proxies.stand_before(number, cluster.map.node(number).address, cluster.listen_apart(number))
    chaos = Chaos(cluster, network, directory, seed, random.Random(seed))
    try:
        async with cluster:
            await write_cold(cluster)
            for slot in range(CLIENTS):
                chaos.start_client(slot, seconds)
            chaos.changing = asyncio.create_task(chaos.changes.carry_out())
            await chaos.disturb(seconds)
            chaos.changes.end()
            await chaos.wait_for_clients()
            return await judged(chaos)
    except BaseException:
        report(chaos)
        print(f"what the nodes and clients said is in {directory}")
        raise
    finally:
        if chaos.changing is not None:
            chaos.changing.cancel()
            await asyncio.gather(chaos.changing, return_exceptions=True)
        for client in chaos.clients.values():
            if client.poll() is None:
                client.kill()
            client.wait()
        await network.close()
        home = cluster.data(ANCHOR).parent
        if os.path.ismount(home):
            _keep_what_was_on(home)


def _small_disk(directory: Path) -> None:
    """Put a small disk, in memory, where a node's files are; it goes with this process's mounts."""
    kept = {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}
    size = f"size={SMALL_DISK_BYTES}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(directory)], check=True)
    for name, data in kept.items():
        (directory / name).write_bytes(data)


def _keep_what_was_on(directory: Path) -> None:
    """Take the small disk away, and leave its files in the folder, to be looked at."""
    aside = directory.with_name(f"{directory.name}-files")
    shutil.copytree(directory, aside)
    subprocess.run(["umount", str(directory)], check=True)
    shutil.rmtree(directory)
    aside.rename(directory)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=20_251_125)
    parser.add_argument("--proxies", action="store_true", help="no namespaces, even where they are allowed")
    given = parser.parse_args()
    command = None if given.proxies else namespace_command()
    if INSIDE not in os.environ and command is not None:
        again = [*command, "--mount", sys.executable, "-m", "tests.chaos", *sys.argv[1:]]
        os.execvpe(again[0], again, {**os.environ, INSIDE: "1"})
    directory = Path(tempfile.mkdtemp(prefix="coffre-chaos-"))
    good = asyncio.run(run(given.seconds, given.seed, directory))
    if good:
        shutil.rmtree(directory, ignore_errors=True)
    else:
        print(f"what the nodes and clients said is in {directory}")
    return 0 if good else 1
