"""What the groups of figures share: how much to measure, where, and what becomes of a result or an error."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from coffre.bench._isal import IsalMissing
from coffre.bench._workload import Blocks
from coffre.bench.local_cluster import ClusterShape, LocalCluster
from coffre.bench.references import Measurement, ReferenceServer
from coffre.bench.result import Row, Target, alternate, one_line
from coffre.client import AsyncClient, connect
from coffre.cluster.clock import Clock
from coffre.cluster.errors import CoffreError
from rich.console import Console

__all__ = [
    "BUCKET",
    "CALLERS",
    "CONDITIONS",
    "FULL",
    "QUICK",
    "DataPath",
    "FigureOptions",
    "Figures",
    "Group",
    "Scale",
    "Session",
    "Turns",
    "measure_turns",
]

BUCKET = "bench"
CALLERS = 64
CONDITIONS = "six nodes, 4+2, mutual TLS, loopback, uvloop"
_MIB = 1 << 20
_FAILURES = (CoffreError, IsalMissing, AssertionError, OSError, subprocess.SubprocessError, grpc.RpcError)


@dataclass(frozen=True, slots=True)
class Scale:
    """How long and how large. Large objects have whole MiB."""

    small_rounds: int  # of small objects, and of latencies
    large_rounds: int  # of everything that takes seconds a round
    fault_rounds: int  # one for each node
    duration_s: float
    warmup_s: float
    small_objects: int
    large_bytes: int
    memory_bytes: int
    range_bytes: int  # of the object that ranges are read from
    bulk_records: int  # through put_many and get_many in one round, and for the space on disk
    bulk_call_records: int  # in one call of them
    listed_keys: int  # in the large bucket
    listed_keys_few: int  # in the small one that it is compared with
    indexed_shards: int
    index_lookups: int
    pipeline_rounds: int
    pipeline_bytes: int


FULL = Scale(
    small_rounds=7,
    large_rounds=5,
    fault_rounds=6,
    duration_s=2.0,
    warmup_s=0.5,
    small_objects=2048,
    large_bytes=256 * _MIB,
    memory_bytes=10**9,
    range_bytes=1024 * _MIB,
    bulk_records=10_000,
    bulk_call_records=1000,
    listed_keys=1_000_000,
    listed_keys_few=10_000,
    indexed_shards=10_000_000,
    index_lookups=20_000,
    pipeline_rounds=25,
    pipeline_bytes=64 * _MIB,
)
QUICK = Scale(
    small_rounds=1,
    large_rounds=1,
    fault_rounds=1,
    duration_s=0.3,
    warmup_s=0.1,
    small_objects=128,
    large_bytes=16 * _MIB,
    memory_bytes=32 * 10**6,
    range_bytes=32 * _MIB,
    bulk_records=400,
    bulk_call_records=200,
    listed_keys=3000,
    listed_keys_few=1000,
    indexed_shards=20_000,
    index_lookups=500,
    pipeline_rounds=1,
    pipeline_bytes=16 * _MIB,
)


@dataclass(frozen=True, slots=True)
class FigureOptions:
    """Which figures (ids of `TARGETS`), where the clusters live meanwhile, and how."""

    directory: Path
    only: Collection[str] = ()
    scale: Scale = FULL
    seed: int = 1

    def wants(self, *ids: str) -> list[str]:
        return [name for name in ids if not self.only or name in self.only]


@dataclass(slots=True)
class Figures:
    """What was measured, and why the others were not, by id."""

    rows: list[Row] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)

    def missed(self, targets: Mapping[str, Target]) -> list[str]:
        """Ids of the rows that do not reach their target."""
        return [row.id for row in self.rows if row.id in targets and not targets[row.id].reached(row)]


@dataclass(frozen=True, slots=True)
class DataPath:
    """Nodes, raw gRPC beside them, a client that writes, and one that reads: it never wrote and so knows nothing."""

    cluster: LocalCluster
    server: ReferenceServer
    writer: AsyncClient
    reader: AsyncClient
    blocks: Blocks


@dataclass(frozen=True, slots=True)
class Session:
    """One run of figures."""

    options: FigureOptions
    clock: Clock
    console: Console
    figures: Figures

    @property
    def scale(self) -> Scale:
        return self.options.scale

    @property
    def seed(self) -> int:
        return self.options.seed

    def say(self, text: str) -> None:
        """One line of progress."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def add(self, *rows: Row) -> None:
        """Keep rows, and show them at once: a run takes long."""
        for row in rows:
            self.figures.rows.append(row)
            self.say(f"  {one_line(row)}")

    def recorded(self, ids: Sequence[str]) -> _Recorded:
        """Context manager: an error becomes the reason why these figures are missing."""
        return _Recorded(self.figures, ids)

    @asynccontextmanager
    async def cluster(self) -> AsyncIterator[LocalCluster]:
        """Six running nodes, 4+2, that served nothing before; nothing is left of them afterwards."""
        async with self.idle_cluster() as cluster, cluster:
            yield cluster

    @asynccontextmanager
    async def idle_cluster(self, shape: ClusterShape | None = None) -> AsyncIterator[LocalCluster]:
        """The same, or one of another shape, not started."""
        home = self.options.directory / "cluster"
        async with AsyncExitStack() as exits:
            cluster = LocalCluster.create(home, shape or ClusterShape(), self.clock)
            exits.callback(shutil.rmtree, home)
            yield cluster

    @asynccontextmanager
    async def data_path(self) -> AsyncIterator[DataPath]:
        async with (
            self.cluster() as cluster,
            ReferenceServer() as server,
            await connect(cluster.client_config()) as writer,
            await connect(cluster.client_config()) as reader,
        ):
            yield DataPath(cluster, server, writer, reader, Blocks(self.seed))


class _Recorded:
    def __init__(self, figures: Figures, ids: Sequence[str]) -> None:
        self._figures = figures
        self._ids = ids

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, _FAILURES):
            return False
        measured = {row.id for row in self._figures.rows}
        text = str(error) if isinstance(error, CoffreError | IsalMissing) else repr(error)
        for name in self._ids:
            if name not in measured:
                self._figures.failures.setdefault(name, " ".join(text.split()))
        return True


@dataclass(frozen=True, slots=True)
class Group:
    """Figures that are measured together: their targets by id, and what appends their rows to a session's figures."""

    targets: Mapping[str, Target]
    measure: Callable[[Session, Sequence[str]], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Turns:
    """A product and the reference that it takes turns with."""

    product: Callable[[], Awaitable[Measurement]]
    reference: Callable[[], Awaitable[Measurement]]
    rounds: int


async def measure_turns(session: Session, wanted: Sequence[str], turns: Mapping[str, Turns]) -> None:
    """One figure after the other. One that fails does not keep the others away."""
    for name in wanted:
        found = turns[name]
        session.say(f"measuring {name}, {found.rounds} rounds")
        with session.recorded([name]):
            session.add(await alternate(found.product, found.reference, rounds=found.rounds))
