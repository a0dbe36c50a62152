"""`make run`: real records in, two nodes killed, every record back, compared by SHA-256."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

from coffre.client import AsyncClient, connect
from coffre.cluster.clock import Clock
from coffre.cluster.errors import CoffreError, IntegrityError
from coffre.dev.dataset import Record, generate, records
from coffre.dev.local_cluster import ClusterShape, LocalCluster, share_of_disk
from coffre.dev.tables import Table
from coffre.dev.tasks import for_each, together
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

__all__ = ["DemoOptions", "run_demo"]

BUCKET = "records"
SMALL_BYTES = 1 << 20
SMALL_IN_FLIGHT = 64
LARGE_IN_FLIGHT = 2
NODES_TO_KILL = 2
_Move = Callable[[AsyncClient, Record, Callable[[int], None]], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """Where the cluster and the data set live, and how the demo runs."""

    directory: Path
    dataset: Path
    scale: str = "full"
    once: bool = False
    seed: int = 1


@dataclass(frozen=True, slots=True)
class _Phase:
    """One direction of the demo. `failures` maps keys to what went wrong."""

    objects: int
    size_bytes: int
    seconds: float
    failures: dict[str, str]


async def run_demo(options: DemoOptions, clock: Clock, console: Console) -> bool:
    """Run the demo; True when every record came back bit for bit. Without `once`, stay up until SIGINT or SIGTERM."""
    all_records = _generate(options, console)
    shape = ClusterShape()
    shape = replace(shape, capacity_bytes=share_of_disk(options.directory, shape.nodes))
    cluster = LocalCluster.create(options.directory, shape, clock)
    console.print(f"starting {len(cluster.numbers)} nodes at three sites, 4+2, below {options.directory}")
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with cluster:
        work = asyncio.create_task(_store_kill_read(cluster, all_records, options, clock, console))
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait([work, stopped], return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            console.print("stopped before the end")
            return False
        intact = work.result()
        if not options.once:
            await _stay_up(cluster, options, console, stop)
        stopped.cancel()
    return intact


def _generate(options: DemoOptions, console: Console) -> list[Record]:
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("generating the data set", total=1.0)
        summary = generate(
            options.dataset,
            scale=options.scale,
            progress=lambda step, done: progress.update(task, description=step, completed=done),
        )
    how = "reused" if summary.reused else "generated"
    console.print(
        f"data set {how}: {summary.objects} objects, {_mb(summary.size_bytes)}, digest {summary.digest[:16]}"
    )
    return list(records(options.dataset))


async def _store_kill_read(
    cluster: LocalCluster, all_records: Sequence[Record], options: DemoOptions, clock: Clock, console: Console
) -> bool:
    async with await connect(cluster.client_config()) as client:
        stored = await _transfer(client, all_records, _put, "storing", clock, console)
        await client.flush()
        _table(stored, cluster.disk_bytes()).show(console)
        chosen = sorted(random.Random(options.seed).sample(cluster.numbers, NODES_TO_KILL))
        for number in chosen:
            cluster.kill(number, signal.SIGKILL)
        names = " and ".join(cluster.map.node(number).node_id for number in chosen)
        console.print(
            f"killed {names} with SIGKILL (seed {options.seed}); reading everything back from the others"
        )
        returned = await _transfer(client, all_records, _get, "reading", clock, console)
    for phase in (stored, returned):
        for key, why in list(phase.failures.items())[:10]:
            console.print(f"{key}: {why}", style="red", markup=False)
    lost = stored.failures.keys() | returned.failures.keys()
    if lost:
        console.print(f"[bold red]{len(lost)} of {len(all_records)} records did not come back")
        return False
    speed = returned.size_bytes / 1e6 / returned.seconds
    console.print(
        f"[bold green]all {returned.objects} records came back bit for bit[/] (SHA-256), "
        f"{_mb(returned.size_bytes)} at {speed:.0f} MB/s, {NODES_TO_KILL} of {len(cluster.numbers)} nodes dead"
    )
    return True


async def _stay_up(
    cluster: LocalCluster, options: DemoOptions, console: Console, stop: asyncio.Event
) -> None:
    dead = [number for number in cluster.numbers if not cluster.running(number)]
    await cluster.start(dead)
    console.print(
        f"the killed nodes are back; the cluster stays up until Ctrl-C. From another terminal:\n"
        f"  export COFFRE_CONFIG={cluster.client_config()}\n"
        f"  .venv/bin/coffre ls {BUCKET}/fhir/",
        soft_wrap=True,
    )
    await stop.wait()
    console.print("stopping")


async def _transfer(
    client: AsyncClient, all_records: Sequence[Record], one: _Move, label: str, clock: Clock, console: Console
) -> _Phase:
    """Move every record, many small ones and few large ones at once."""
    failures: dict[str, str] = {}
    size_bytes = sum(record.size_bytes for record in all_records)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn())
    begun = clock.monotonic()
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(f"{label} {len(all_records)} objects", total=size_bytes)

        async def move(record: Record) -> None:
            try:
                await one(client, record, lambda count: progress.advance(task, count))
            except CoffreError as error:
                failures[record.key] = f"{type(error).__name__}: {error}"

        async with together() as group:
            for is_small, at_once in ((True, SMALL_IN_FLIGHT), (False, LARGE_IN_FLIGHT)):
                chosen = [one for one in all_records if (one.size_bytes <= SMALL_BYTES) is is_small]
                group.create_task(for_each(chosen, move, at_once=at_once))
    return _Phase(len(all_records), size_bytes, clock.monotonic() - begun, failures)


async def _put(client: AsyncClient, record: Record, advance: Callable[[int], None]) -> None:
    if record.size_bytes <= SMALL_BYTES:
        await client.put(BUCKET, record.key, record.path.read_bytes())
        advance(record.size_bytes)
    else:
        await client.put_file(BUCKET, record.key, record.path, progress=advance)


async def _get(client: AsyncClient, record: Record, advance: Callable[[int], None]) -> None:
    digest = sha256()
    async with aclosing(client.get_stream(BUCKET, record.key)) as pieces:
        async for piece in pieces:
            digest.update(piece)
            advance(len(piece))
    if digest.hexdigest() != record.sha256:
        raise IntegrityError("the SHA-256 differs")


def _mb(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:,.1f} MB"


def _table(phase: _Phase, disk_bytes: int) -> Table:
    objects = phase.objects - len(phase.failures)
    rows = {
        "objects": f"{objects:,}",
        "bytes in": _mb(phase.size_bytes),
        "bytes on disk, six nodes": _mb(disk_bytes),
        "overhead": f"{disk_bytes / phase.size_bytes:.2f} x",
        "seconds": f"{phase.seconds:.1f}",
        "puts/s": f"{objects / phase.seconds:,.0f}",
        "MB/s": f"{phase.size_bytes / 1e6 / phase.seconds:,.0f}",
    }
    return Table(("stored", ""), list(rows.items()))
