"""What the groups of figures share: how much to measure, where, and what becomes of a result or an error."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import tomllib
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TypeVar

import grpc
from coffre.bench._workload import Blocks
from coffre.bench.references import ReferenceServer, grpc_unary, reference_server
from coffre.bench.result import Bound, Figure, Measurement, Row, Target, one_line, row_of, take_turns
from coffre.bench.typed_json import decoded
from coffre.client import AsyncClient, connect
from coffre.cluster.clock import Clock
from coffre.cluster.errors import CoffreError
from coffre.dev.local_cluster import ClusterShape, LocalCluster
from rich.console import Console

__all__ = [
    "BUCKET",
    "CALLERS",
    "FULL",
    "QUICK",
    "DataPath",
    "FigureOptions",
    "Figures",
    "Group",
    "Scale",
    "Session",
    "at_least",
    "at_most",
    "bound",
]

BUCKET = "bench"
CALLERS = 64
_FAILURES = (CoffreError, AssertionError, OSError, subprocess.SubprocessError, grpc.RpcError)
_Found = TypeVar("_Found")


@dataclass(frozen=True, slots=True)
class Scale:
    """How long and how large; scales.toml says what each is."""

    small_rounds: int
    large_rounds: int
    fault_rounds: int
    duration_s: float
    warmup_s: float
    small_objects: int
    large_bytes: int
    memory_bytes: int
    range_bytes: int
    bulk_records: int
    bulk_call_records: int
    listed_keys: int
    listed_keys_few: int
    indexed_shards: int
    index_lookups: int
    pipeline_rounds: int
    pipeline_bytes: int
    rebuilt_large: int
    rebuilt_large_bytes: int
    rebuilt_small: int
    repair_get_s: float
    joined_objects: int
    idle_objects: int
    idle_rounds: int


_SCALES = tomllib.loads(Path(__file__).with_name("scales.toml").read_text("utf-8"))
FULL, QUICK = (decoded(Scale, _SCALES[name]) for name in ("full", "quick"))


@dataclass(frozen=True, slots=True)
class FigureOptions:
    """Which figures (by id), where the clusters live meanwhile, and how."""

    directory: Path
    only: Collection[str] = ()
    scale: Scale = FULL
    seed: int = 1


@dataclass(slots=True)
class Figures:
    """What was measured, and why the others were not, by id."""

    rows: list[Row] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)

    def missed(self, targets: Mapping[str, Target | None]) -> list[str]:
        """Ids of the rows that do not reach their target."""
        return [row.id for row in self.rows if (target := targets.get(row.id)) and not target.reached(row)]


@dataclass(frozen=True, slots=True)
class DataPath:
    """Nodes, raw gRPC beside them, a client that writes, and one that reads: it never wrote and so knows nothing."""

    cluster: LocalCluster
    server: ReferenceServer
    writer: AsyncClient
    reader: AsyncClient
    blocks: Blocks
    _numbers: Iterator[int] = field(default_factory=count)

    def fresh(self, what: str) -> str:
        """A prefix of keys that nobody has used: every round has keys of its own."""
        return f"{what}/{next(self._numbers)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Session(FigureOptions):
    """One run of figures."""

    clock: Clock
    console: Console
    figures: Figures

    def wants(self, *figures: Figure) -> list[Figure]:
        """Those that are asked for, and that have not failed yet."""
        only, failed = self.only, self.figures.failures
        return [each for each in figures if (not only or each.id in only) and each.id not in failed]

    def say(self, text: str) -> None:
        """One line of progress."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def add(self, row: Row) -> None:
        """Keep a row, and show it at once: a run takes long."""
        self.figures.rows.append(row)
        self.say(f"  {one_line(row)}")

    def add_once(self, figure: Figure, value: float, reference: Measurement) -> None:
        """Keep the row of a figure that is measured once, if it is wanted."""
        if self.wants(figure):
            self.add(row_of(figure, (value, reference)))

    async def turns(
        self,
        figure: Figure,
        product: Callable[[], Awaitable[float]],
        reference: Callable[[], Awaitable[Measurement]],
        rounds: int,
    ) -> None:
        """Measure both in turns, if the figure is wanted. When that fails, it does not keep others away."""
        if self.wants(figure):
            self.say(f"measuring {figure.id}, {rounds} rounds")
            with self.recorded(figure):
                self.add(row_of(figure, *await take_turns(product, reference, rounds=rounds)))

    async def warmed_up(self, measure: Callable[[float], Awaitable[_Found]]) -> _Found:
        """What is measured in the time of a round, after the time of a warm-up."""
        await measure(self.scale.warmup_s)
        return await measure(self.scale.duration_s)

    async def unary(self, name: str, path: DataPath, *, duration_s: float | None = None) -> Measurement:
        """A reference of calls, warmed up as the product is."""
        duration_s = duration_s or self.scale.duration_s
        return await grpc_unary(name, path.server, duration_s=duration_s, warmup_s=self.scale.warmup_s)

    @contextmanager
    def recorded(self, *figures: Figure) -> Iterator[None]:
        """An error becomes the reason why these figures are missing."""
        try:
            yield
        except _FAILURES as error:
            measured = {row.id for row in self.figures.rows}
            text = str(error) if isinstance(error, CoffreError) else repr(error)
            for figure in self.wants(*figures):
                if figure.id not in measured:
                    self.figures.failures[figure.id] = " ".join(text.split())

    @asynccontextmanager
    async def cluster(self) -> AsyncIterator[LocalCluster]:
        """Six running nodes, 4+2, that served nothing before; nothing is left of them afterwards."""
        async with self.idle_cluster() as cluster:
            await cluster.start()
            yield cluster

    @asynccontextmanager
    async def idle_cluster(self, shape: ClusterShape | None = None) -> AsyncIterator[LocalCluster]:
        """The same, or one of another shape, of which no node runs yet."""
        home = self.directory / "cluster"
        cluster = LocalCluster.create(home, shape or ClusterShape(), self.clock)
        try:
            yield cluster
        finally:
            await asyncio.to_thread(cluster.stop)
            shutil.rmtree(home)

    @asynccontextmanager
    async def data_path(self) -> AsyncIterator[DataPath]:
        """A running cluster and all that measures it."""
        async with (
            self.cluster() as cluster,
            reference_server() as server,
            await connect(cluster.client_config()) as writer,
            await connect(cluster.client_config()) as reader,
        ):
            yield DataPath(cluster, server, writer, reader, Blocks(self.seed))


@dataclass(frozen=True, slots=True)
class Group:
    """Figures that are measured together, and what adds the rows of those that are wanted to a session."""

    figures: tuple[Figure, ...]
    measure: Callable[[Session], Awaitable[None]]


def at_least(limit: float) -> Target:
    """A ratio that has to be so high."""
    return Target(Bound.AT_LEAST, limit)


def at_most(limit: float) -> Target:
    """A ratio that may be so high."""
    return Target(Bound.AT_MOST, limit)


def bound(value: float, unit: str) -> Measurement:
    """The reference of what nothing is measured beside: what it may be at most."""
    return Measurement("bound", value, unit)
