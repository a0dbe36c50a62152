"""What a node's store costs per small operation, alone: no network, no client, one process.

    python -m coffre.bench.store DIRECTORY [--keys N] [--batch N] [--cell-bytes N] [--seed N]

fills a new store below DIRECTORY in batches, as many concurrent puts would, and prints one JSON line: microseconds of
CPU of the committer's thread per accept and settle, and of the event loop per read; how long look-ups, a page of
1,000 keys and opening again take; bytes of index per shard. All of it is read from the page cache. The store is
removed afterwards.
"""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import click
from coffre.bench._workload import percentile
from coffre.bench.index_probe import accept, applied, opened, stamp_of
from coffre.cluster.names import ObjectName
from coffre.node.disk import LmdbStore
from coffre.node.store import Accept, DropRepair, Mark, Settle

READS_MAX = 20_000
PAGES = 11


class Meter:
    """Adds up the CPU time that a store's committer spends on its batches."""

    def __init__(self, store: LmdbStore) -> None:
        self._cpu_seconds = 0.0
        committer = store._committer
        commit = committer._commit

        def metered(jobs: list[Any]) -> None:
            start = time.thread_time()
            commit(jobs)
            self._cpu_seconds += time.thread_time() - start

        committer._commit = metered  # type: ignore[method-assign]

    def take(self) -> float:
        """CPU seconds since the last call."""
        found, self._cpu_seconds = self._cpu_seconds, 0.0
        return found


class Load:
    """Names in random order of their keys, in batches of so many."""

    def __init__(self, keys: int, batch: int, cell_bytes: int, seed: int) -> None:
        self.keys, self._batch, self._seed = keys - keys % batch, batch, seed
        self._cell = random.Random(seed).randbytes(cell_bytes)

    def names(self) -> Iterator[ObjectName]:
        """Of all objects, the same at each call."""
        rng = random.Random(self._seed)
        for number in range(self.keys):
            yield ObjectName("clinic", "records", f"patient/{rng.randrange(1 << 30):09d}/obs/{number}.json")

    def batches(self) -> Iterator[list[Accept]]:
        """What stores them."""
        made = (accept(number, name, cell=self._cell) for number, name in enumerate(self.names()))
        while batch := list(islice(made, self._batch)):
            yield batch


async def measure(directory: Path, load: Load) -> dict[str, float]:
    """All figures; times in microseconds unless their name says otherwise."""
    figures = {}
    async with opened(directory) as store:
        meter = Meter(store)
        for batch in load.batches():
            await applied(store, batch)
        figures["accept_cpu"] = meter.take() / load.keys * 1e6
        await store.apply([Mark("clinic", stamp_of(load.keys))])
        figures["read_marked_cpu"], _ = await _reads(store, load)
        meter.take()
        settled = await _settle(store, load)
        figures["settle_cpu"] = meter.take() / settled * 1e6
        figures["read_cpu"], figures["read_p99"] = await _reads(store, load)
        figures["page_ms"] = await _page_ms(store)
    start = time.perf_counter()
    async with opened(directory):
        figures["open_ms"] = (time.perf_counter() - start) * 1e3
        figures["index_bytes_per_shard"] = (directory / "index" / "data.mdb").stat().st_size / load.keys
    return figures


async def _reads(store: LmdbStore, load: Load) -> tuple[float, float]:
    """CPU time of a read, and the 99th percentile of its duration."""
    names = list(islice(load.names(), READS_MAX * 10))
    random.Random(1).shuffle(names)
    names = names[:READS_MAX]
    times = []
    cpu = time.thread_time()
    for name in names:
        start = time.perf_counter()
        (version,) = await store.read(name, want_cell=True)
        times.append(time.perf_counter() - start)
        assert version.cell is not None
    cpu = time.thread_time() - cpu
    return cpu / len(names) * 1e6, percentile(times, 99) * 1e6


async def _settle(store: LmdbStore, load: Load) -> int:
    """Settle the first objects; how many."""
    settled = 0
    for batch in load.batches():
        # What comes along asks for a sync, so that the batch does not wait for company.
        first = batch[0]
        company = DropRepair(first.name, first.partition, first.stamp, 0)
        await store.apply([Settle(item.name, item.partition, item.stamp) for item in batch] + [company])
        settled += len(batch)
        if settled >= READS_MAX:
            break
    return settled


async def _page_ms(store: LmdbStore) -> float:
    times = []
    for _ in range(PAGES):
        start = time.perf_counter()
        await store.list("clinic", "records", "patient/5")
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e3


@click.command(help=__doc__.partition("\n")[0])
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--keys", default=20_000, show_default=True)
@click.option("--batch", default=64, show_default=True)
@click.option("--cell-bytes", default=1045, show_default=True)
@click.option("--seed", default=1, show_default=True)
def main(directory: Path, **asked: int) -> None:
    """Print the figures."""
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory) as place:
        figures = asyncio.run(measure(Path(place) / "node", Load(**asked)))
    click.echo(json.dumps(asked | {name: round(value, 1) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
