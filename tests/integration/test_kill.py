"""Nodes killed with SIGKILL under load: nothing acknowledged is lost, nothing half-written shows.

`make test` runs 12 rounds, `make test-all` 40, `make soak` thousands. Each prints its seed; COFFRE_SEED repeats a run's
choices (the moments within a round depend on the machine).
"""

from __future__ import annotations

import asyncio
import functools
import os
import random
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from coffre.client import AsyncClient, ClientOptions, KeyRing, connect
from coffre.cluster.errors import CoffreError, NotFound, OutcomeUnknown, RetryableError, Unavailable
from coffre.dev.local_cluster import ClusterShape, LocalCluster

from tests.amounts import amount

ROUNDS = amount(12, 40)
SEED = int(os.environ.get("COFFRE_SEED", "20250611"))
OPTIONS = ClientOptions(timeout=3.0, patience=0.1, stall_timeout=2.0, hedge_delay=0.02)
WRITERS = 6
KEYS_PER_WRITER = 5
STOP_SECONDS_MAX = 5.0


@functools.cache
def keys_of(directory: Path) -> KeyRing:
    """Opened once: a passphrase is slow on purpose, and hundreds of clients are made here."""
    return KeyRing.load(directory / "keyring.json", (directory / "passphrase").read_bytes().strip())


@dataclass
class Ledger:
    """What was written under each key, and what a reader may therefore see."""

    allowed: dict[str, set[bytes]] = field(default_factory=dict)
    refused: dict[str, set[bytes]] = field(default_factory=dict)
    acknowledged: int = 0
    failed: int = 0
    unknown: int = 0

    def acknowledge(self, key: str, value: bytes) -> None:
        self.allowed[key] = {value}
        self.acknowledged += 1

    def fail(self, key: str, value: bytes, error: CoffreError) -> None:
        if isinstance(error, OutcomeUnknown):
            self.allowed.setdefault(key, {b""}).add(value)
            self.unknown += 1
        else:
            self.refused.setdefault(key, set()).add(value)
            self.failed += 1

    def check(self, key: str, seen: bytes) -> None:
        assert seen not in self.refused.get(key, set()), f"{key}: a refused write became visible"
        mixed = f"{key}: {seen[:60]!r} of {len(seen)} bytes was not written"
        assert seen in self.allowed.get(key, {b""}), mixed


def value_of(worker: int, number: int, chance: random.Random) -> bytes:
    """A value that names itself, so that a mixture of two would not pass for either."""
    size_bytes = 1_200_000 if worker == 0 and number % 8 == 0 else chance.randrange(20, 6000)
    stamp = b"worker %d write %d of %016x " % (worker, number, chance.getrandbits(64))
    return (stamp * (size_bytes // len(stamp) + 1))[:size_bytes] + stamp


async def write_until(
    stop: asyncio.Event, client: AsyncClient, worker: int, ledger: Ledger, seed: int
) -> None:
    chance = random.Random(seed * 1000 + worker)
    number = 0
    while not stop.is_set():
        key, value = f"{worker}/{number % KEYS_PER_WRITER}", value_of(worker, number, chance)
        number += 1
        try:
            await client.put("load", key, value)
            ledger.acknowledge(key, value)
        except RetryableError as error:
            ledger.fail(key, value, error)


async def check_all(cluster: LocalCluster, ledger: Ledger) -> None:
    """Read every key as somebody who was not there before."""
    async with await connect(cluster.client_config(), keys=keys_of(cluster.directory)) as client:
        keys = sorted(ledger.allowed.keys() | ledger.refused.keys())
        for key, seen in zip(keys, await client.get_many("load", keys), strict=True):
            if isinstance(seen, CoffreError) and not isinstance(seen, NotFound):
                raise seen
            ledger.check(key, b"" if isinstance(seen, NotFound) else seen)


async def one_round(
    cluster: LocalCluster, client: AsyncClient, ledger: Ledger, chance: random.Random
) -> None:
    """Write, kill two nodes in the middle of it, restart them, read everything that was written."""
    stop = asyncio.Event()
    seed = chance.randrange(1 << 30)
    writers = [
        asyncio.create_task(write_until(stop, client, worker, ledger, seed)) for worker in range(WRITERS)
    ]
    try:
        chosen = chance.sample(cluster.numbers, 2)
        for node in chosen:
            pace_seconds = chance.random() * 0.03
            await asyncio.sleep(pace_seconds)
            cluster.kill(node, signal.SIGKILL)
        await cluster.start(chosen)
    finally:
        stop.set()
        await asyncio.gather(*writers)
    await check_all(cluster, ledger)


async def rounds(tmp_path: Path, count: int) -> Ledger:
    chance = random.Random(SEED)
    total = Ledger()
    async with LocalCluster.create(tmp_path / "cluster", ClusterShape()) as cluster:
        for _ in range(count):
            keys = keys_of(cluster.directory)
            async with await connect(cluster.client_config(), keys=keys, options=OPTIONS) as client:
                await one_round(cluster, client, total, chance)
    print(
        f"seed {SEED}: {count} rounds, {total.acknowledged} writes acknowledged, {total.failed} refused, "
        f"{total.unknown} of unknown outcome"
    )
    assert total.acknowledged > count * WRITERS
    return total


@pytest.mark.first
@pytest.mark.timeout(600)
async def test_kill_two_nodes_under_load(tmp_path: Path) -> None:
    total = await rounds(tmp_path, ROUNDS)
    assert total.failed, "no write ever met a killed pair: the test did not test"


@pytest.mark.soak
@pytest.mark.timeout(0)
async def test_soak(tmp_path: Path) -> None:
    await rounds(tmp_path, int(os.environ.get("COFFRE_SOAK_ROUNDS", "2000")))


async def test_kill_all_at_once(own_cluster: LocalCluster) -> None:
    ledger, stop = Ledger(), asyncio.Event()
    async with await connect(own_cluster.client_config(), options=OPTIONS) as client:
        for seed in range(3):
            stop.clear()
            writers = [
                asyncio.create_task(write_until(stop, client, worker, ledger, seed))
                for worker in range(WRITERS)
            ]
            pace_seconds = 0.4
            await asyncio.sleep(pace_seconds)
            for number in own_cluster.numbers:
                os.kill(own_cluster.pid(number), signal.SIGKILL)
            stop.set()
            await asyncio.gather(*writers)
            for number in own_cluster.numbers:
                own_cluster.kill(number)
            await own_cluster.start()
            await check_all(own_cluster, ledger)
    assert ledger.acknowledged


async def test_reads_with_two_nodes_dead(own_cluster: LocalCluster) -> None:
    """Every pair of dead nodes: everything reads, puts are refused and leave nothing, deletes work."""
    async with await connect(own_cluster.client_config(), options=ClientOptions(patience=3.0)) as client:
        values = {f"key-{i}": os.urandom(size) for i, size in enumerate((0, 10, 4096, 1_000_000, 2_500_000))}
        for key, value in values.items():
            await client.put("b", key, value)
        await client.flush()
        for dead in ((1, 2), (1, 4), (3, 6)):
            for number in dead:
                own_cluster.kill(number)
            for key, value in values.items():
                assert await client.get("b", key) == value
            with pytest.raises(Unavailable):
                await client.put("b", "key-0", b"never seen")
            await client.put_many("b", [])
            assert await client.get("b", "key-0") == b""
            await own_cluster.start(dead)
            assert await client.get("b", "key-0") == b""
        for number in (2, 5):
            own_cluster.kill(number)
        await client.delete("b", "key-1")
        await own_cluster.start((2, 5))
        with pytest.raises(NotFound):
            await client.get("b", "key-1")


async def test_sigterm_ends_within_five_seconds_and_keeps_everything(own_cluster: LocalCluster) -> None:
    ledger, stop = Ledger(), asyncio.Event()
    async with await connect(own_cluster.client_config(), options=OPTIONS) as client:
        writers = [asyncio.create_task(write_until(stop, client, w, ledger, 1)) for w in range(WRITERS)]
        pace_seconds = 0.5
        await asyncio.sleep(pace_seconds)
        begun = time.monotonic()
        await asyncio.gather(
            *(asyncio.to_thread(own_cluster.kill, number, signal.SIGTERM) for number in own_cluster.numbers)
        )
        assert time.monotonic() - begun < STOP_SECONDS_MAX
        stop.set()
        await asyncio.gather(*writers)
        await own_cluster.start()
        await check_all(own_cluster, ledger)
    assert ledger.acknowledged


async def test_a_paused_node_does_not_stop_readers_or_writers(own_cluster: LocalCluster) -> None:
    async with await connect(own_cluster.client_config(), options=OPTIONS) as client:
        await client.put("b", "key", b"before" * 1000)
        await client.flush()
        own_cluster.kill(3, signal.SIGSTOP)
        try:
            assert await client.get("b", "key") == b"before" * 1000
            await client.put("b", "other", b"during")
            assert await client.get("b", "other") == b"during"
        finally:
            own_cluster.kill(3, signal.SIGCONT)
