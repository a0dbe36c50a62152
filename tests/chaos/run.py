"""Faults on a real cluster under load, from one seed, and the checks afterwards.

    python -m tests.chaos --seconds 60 --seed 7

The seed gives the faults and their order; the moments within an operation depend on the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
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

from coffre.bench.local_cluster import ClusterShape, LocalCluster
from coffre.client import ClientOptions, connect
from coffre.cluster.errors import NotFound

from tests.chaos.load import BUCKET, KEYS, value_of
from tests.chaos.network import Member, NamespaceNetwork, Network, ProxyNetwork, namespace_command
from tests.simulation.history import NEVER, Kind, Operation
from tests.simulation.linearizability import is_linearizable, shortest_violation

NODES, CLIENTS, FAULTY_MAX = 6, 3, 2
INSIDE = "COFFRE_CHAOS_INSIDE"  # set in the process that runs within a namespace of its own
BALLAST_BYTES = 1 << 30
SMALL_DISK_BYTES = 160 << 20
CHECK_SECONDS = 60.0
_KINDS = {"put": Kind.PUT, "delete": Kind.DELETE, "read": Kind.READ}


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
    flipped: int | None = None  # the one node whose disk lies: more could lose what nothing has repaired yet
    _client_numbers: int = 0

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
                code = await asyncio.to_thread(client.wait, CHECK_SECONDS)
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
        if len(self.troubled) >= FAULTY_MAX:
            return None
        return self.chance.choice([number for number in self.cluster.numbers if number not in self.troubled])

    async def kill(self) -> None:
        if (number := self._another()) is not None:
            self.cluster.kill(number, signal.SIGKILL)
            self.down.add(number)
            self.faults["kill -9"] += 1

    async def kill_everything(self) -> None:
        for number in self.cluster.numbers:
            if number not in self.down:
                os.kill(self.cluster.pid(number), signal.SIGKILL)
        for number in self.cluster.numbers:
            if number not in self.down:
                self.cluster.kill(number, signal.SIGKILL)
        self.down, self.paused = set(self.cluster.numbers), set()
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
        others += [Member("node", other) for other in self.cluster.numbers if other != number]
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
        ballast = self.cluster.data(1).parent / "ballast"
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
        """Flip a bit in what one node holds; the same node each time."""
        if self.flipped is None:
            self.flipped = self.chance.choice([number for number in self.cluster.numbers if number != 1])
        data = self.cluster.data(self.flipped)
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
        ballast = self.cluster.data(1).parent / "ballast"
        if ballast.exists() and os.path.ismount(ballast.parent):
            ballast.unlink()
        again, self.down = sorted(self.down), set()
        await self.cluster.start(again)

    async def disturb(self, seconds: float) -> None:
        """Fault upon fault until the time is over."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        faults = [self.kill, self.kill, self.pause, self.partition, self.partition, self.fill_disk, self.flip]
        while (left := end - loop.time()) > 0:
            choice = self.chance.random()
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
        await self.recover()

    # ---------------------------------------------------------------- checks

    async def final_reads(self) -> dict[str, int | None]:
        """Every key as somebody reads it who was not there before; each must be readable."""
        options = ClientOptions(patience=CHECK_SECONDS)
        found: dict[str, int | None] = {}
        async with await connect(self.cluster.client_config(), options=options) as client:
            for key in (f"k{number:02}" for number in range(KEYS)):
                try:
                    found[key] = value_of(await client.get(BUCKET, key))
                except NotFound:
                    found[key] = None
            listed = {entry.key async for entry in client.list(BUCKET) if not isinstance(entry, str)}
        assert listed == {key for key, value in found.items() if value is not None}, (
            "a list tells another story"
        )
        return found

    def history(self, final: dict[str, int | None]) -> list[Operation]:
        """What all clients did, and the final reads, in events of one order."""
        events: list[dict[str, object]] = []
        for record in self.records:
            lines = record.read_bytes().split(b"\n")
            events += [
                json.loads(line) for line in lines[:-1]
            ]  # a killed client's last line may be half a line
        events.sort(key=lambda event: (event["at"], "end" in event))
        running: dict[object, Operation] = {}
        done: list[Operation] = []
        for tick, event in enumerate(events):
            if "id" in event:
                value = event["value"]
                assert value is None or isinstance(value, int)
                operation = Operation(
                    _KINDS[str(event["kind"])], str(event["key"]), str(event["id"]), tick, value
                )
                running[event["id"]] = operation
                continue
            operation = running.pop(event["end"])
            if event["outcome"] == "ok":
                operation.ended = tick
                if operation.kind is Kind.READ:
                    assert event["value"] is None or isinstance(event["value"], int)
                    operation.value = event["value"]
                done.append(operation)
            elif event["outcome"] == "unknown":
                done.append(operation)
        done += [operation for operation in running.values() if operation.kind is not Kind.READ]
        tick = len(events)
        for key, value in final.items():
            done.append(Operation(Kind.READ, key, "check", tick, value, ended=tick + 1))
            tick += 2
        return done


def report(history: list[Operation], chaos: Chaos) -> bool:
    """Print what was done; False when some key's history is not linearizable."""
    kinds = Counter(operation.kind.value for operation in history if operation.ended != NEVER)
    unknown = sum(operation.ended == NEVER for operation in history)
    what = ", ".join(f"{count} x {name}" for name, count in sorted(chaos.faults.items()))
    counts = ", ".join(f"{count} {name}s" for name, count in sorted(kinds.items()))
    print(f"seed {chaos.seed}, {type(chaos.network).__name__}: {what}")
    print(f"{counts} done, {unknown} writes of unknown outcome")
    good = True
    for key in sorted({operation.key for operation in history}):
        of_key = [operation for operation in history if operation.key == key]
        if not is_linearizable(of_key):
            good = False
            print(f"{key} is not linearizable:")
            for operation in shortest_violation(of_key)[-30:]:
                print(f"  {operation}")
    return good


async def run(seconds: float, seed: int, directory: Path) -> bool:
    """One run; whether all checks passed."""
    within = INSIDE in os.environ
    addresses = NamespaceNetwork.addresses(NODES) if within else ()
    shape = ClusterShape(
        nodes=NODES, addresses=addresses, store={"reserve_bytes": 8 << 20, "volume_bytes": 4 << 20}
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
            for slot in range(CLIENTS):
                chaos.start_client(slot, seconds)
            await chaos.disturb(seconds)
            await chaos.wait_for_clients()
            return report(chaos.history(await chaos.final_reads()), chaos)
    finally:
        for client in chaos.clients.values():
            if client.poll() is None:
                client.kill()
            client.wait()
        await network.close()


def _small_disk(directory: Path) -> None:
    """Put a small disk, in memory, where a node's files are; it goes with this process's mounts."""
    kept = {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}
    size = f"size={SMALL_DISK_BYTES}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(directory)], check=True)
    for name, data in kept.items():
        (directory / name).write_bytes(data)


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
