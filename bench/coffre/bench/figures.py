"""`make bench`: every published figure in one run, each beside its reference and its target."""

from __future__ import annotations

import itertools
import shutil
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import grpc
from coffre.bench import references
from coffre.bench._isal import IsalMissing
from coffre.bench._memory import measure_memory
from coffre.bench._workload import Blocks, SmallObjects, get_large, put_large, sustained_rate
from coffre.bench.codec import SHARD_BYTES, measure_encode
from coffre.bench.local_cluster import ClusterShape, LocalCluster
from coffre.bench.references import Measurement, ReferenceServer
from coffre.bench.result import Bound, Row, Target, alternate, row_of
from coffre.client import AsyncClient, connect
from coffre.cluster.clock import Clock
from coffre.cluster.errors import CoffreError
from rich.console import Console

__all__ = ["FULL", "QUICK", "TARGETS", "FigureOptions", "Figures", "Scale", "measure_figures"]

BUCKET = "bench"
CALLERS = 64
_MIB = 1 << 20
_ENCODE_SCHEMES = ((4, 2), (8, 3), (10, 4))
_CLIENT_MEMORY, _NODE_MEMORY = "client_memory_1g", "node_memory_1g"
_MEMORY_BOUNDS_MB = {_CLIENT_MEMORY: 150.0, _NODE_MEMORY: 200.0}


def _targets() -> dict[str, Target]:
    found = {}
    for k, m in _ENCODE_SCHEMES:
        found[f"encode_{k}_{m}_vs_zfec"] = Target(Bound.AT_LEAST, 10.0)
        found[f"encode_{k}_{m}_vs_isal"] = Target(Bound.AT_LEAST, 0.8)
    found["put_4k_c64"] = Target(Bound.AT_LEAST, 0.25)
    found["get_4k_c64"] = Target(Bound.AT_LEAST, 0.35)
    found["put_256m"] = Target(Bound.AT_LEAST, 0.35)
    found["get_256m"] = Target(Bound.AT_LEAST, 0.35)
    found[_CLIENT_MEMORY] = Target(Bound.AT_MOST, 1.0)
    found[_NODE_MEMORY] = Target(Bound.AT_MOST, 1.0)
    return found


TARGETS: Mapping[str, Target] = MappingProxyType(_targets())
"""What has to be reached, by figure, in the order of the table."""


@dataclass(frozen=True, slots=True)
class Scale:
    """How long and how large. Large objects have whole MiB."""

    small_rounds: int
    large_rounds: int
    duration_s: float
    warmup_s: float
    small_objects: int
    large_bytes: int
    memory_bytes: int


FULL = Scale(7, 5, 2.0, 0.5, 2048, 256 * _MIB, 10**9)
QUICK = Scale(1, 1, 0.3, 0.1, 128, 16 * _MIB, 32 * 10**6)


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

    def missed(self) -> list[str]:
        """Ids of the rows that do not reach their target."""
        return [row.id for row in self.rows if row.id in TARGETS and not TARGETS[row.id].reached(row)]


async def measure_figures(options: FigureOptions, clock: Clock, console: Console) -> Figures:
    """Measure what the options ask for, one figure after the other. One that fails does not keep the others away.

    The clusters are gone when this returns, with all that they stored. Raises `ConfigurationError` when the
    directory holds something else.
    """
    figures = Figures()
    _encode(options, figures, console)
    if wanted := options.wants("put_4k_c64", "get_4k_c64", "put_256m", "get_256m"):
        with _recorded(figures, wanted):
            async with _cluster(options.directory, clock) as cluster:
                await _data_path(cluster, options, wanted, figures, console)
    if wanted := options.wants(_CLIENT_MEMORY, _NODE_MEMORY):
        console.print(f"measuring {' and '.join(wanted)}")
        with _recorded(figures, wanted):
            # Nodes that served nothing before, so that the figure does not depend on the other rows.
            async with _cluster(options.directory, clock) as cluster:
                figures.rows += await _memory(cluster, options, wanted)
    return figures


class _recorded:
    """Context manager: an error becomes the reason why these figures are missing."""

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


_FAILURES = (CoffreError, IsalMissing, AssertionError, OSError, subprocess.SubprocessError, grpc.RpcError)


# -------------------------------------------------------------------- coding


def _encode(options: FigureOptions, figures: Figures, console: Console) -> None:
    for k, m in _ENCODE_SCHEMES:
        versus = {f"encode_{k}_{m}_vs_zfec": "zfec", f"encode_{k}_{m}_vs_isal": "isal"}
        wanted = options.wants(*versus)
        if not wanted:
            continue
        console.print(f"measuring {' and '.join(wanted)}")
        with _recorded(figures, wanted):
            found = measure_encode(k, m, SHARD_BYTES, with_zfec=True)
            value = found.kernel_gb_per_s * 1e9
            assert found.zfec_gb_per_s is not None
            speeds = {"zfec": found.zfec_gb_per_s * 1e9, "isal": found.isal_gb_per_s * 1e9}
            ratios = {"zfec": found.vs_zfec, "isal": found.vs_isal}
            for name in wanted:
                other = versus[name]
                reference_id = f"{other}_encode_{k}_{m}"
                figures.rows.append(Row(name, value, "bytes/s", speeds[other], reference_id, ratios[other]))


# -------------------------------------------------------------------- the data path


@asynccontextmanager
async def _cluster(directory: Path, clock: Clock) -> AsyncIterator[LocalCluster]:
    """Six running nodes, 4+2; nothing is left of them afterwards."""
    home = directory / "cluster"
    async with AsyncExitStack() as exits:
        cluster = LocalCluster.create(home, ClusterShape(), clock)
        exits.callback(shutil.rmtree, home)
        await exits.enter_async_context(cluster)
        yield cluster


Turn = Callable[[], Awaitable[Measurement]]


class _DataPath:
    """The product's turns. One client writes; another, which never wrote and so knows nothing, reads."""

    def __init__(self, writer: AsyncClient, reader: AsyncClient, scale: Scale, seed: int) -> None:
        self._writer = writer
        self._reader = reader
        self._scale = scale
        self._blocks = Blocks(seed)
        self._rounds = itertools.count()

    async def put_4k(self) -> Measurement:
        rate = 0.0
        for duration_s in (self._scale.warmup_s, self._scale.duration_s):
            objects = self._fresh("put")
            rate = await self._rate(self._writer, objects.put, duration_s)
        return Measurement("put_4k_c64", rate, "puts/s", _detail("4 KiB"))

    async def get_4k(self) -> Measurement:
        objects, count = self._fresh("get"), self._scale.small_objects
        await objects.put_all(self._writer, count, CALLERS)

        async def get(client: AsyncClient, number: int) -> None:
            await objects.get(client, number % count)

        rate = 0.0
        for duration_s in (self._scale.warmup_s, self._scale.duration_s):
            rate = await self._rate(self._reader, get, duration_s)
        return Measurement("get_4k_c64", rate, "gets/s", _detail("4 KiB"))

    async def put_256m(self) -> Measurement:
        key = f"large/put/{next(self._rounds)}"
        rate = await put_large(self._writer, self._blocks, BUCKET, key, self._scale.large_bytes)
        return Measurement("put_256m", rate, "bytes/s", _detail(f"{self._scale.large_bytes >> 20} MiB"))

    async def get_256m(self) -> Measurement:
        key, size_bytes = f"large/get/{next(self._rounds)}", self._scale.large_bytes
        await put_large(self._writer, self._blocks, BUCKET, key, size_bytes)
        rate = await get_large(self._reader, self._blocks, BUCKET, key, size_bytes)
        return Measurement("get_256m", rate, "bytes/s", _detail(f"{size_bytes >> 20} MiB"))

    async def check_large(self) -> None:
        """One large object in and out, not timed, every byte compared; opens the connections, too."""
        key, size_bytes = "large/check", self._scale.large_bytes
        await put_large(self._writer, self._blocks, BUCKET, key, size_bytes)
        await get_large(self._reader, self._blocks, BUCKET, key, size_bytes, compare_all=True)

    def _fresh(self, what: str) -> SmallObjects:
        return SmallObjects(self._blocks, BUCKET, f"small/{what}/{next(self._rounds)}")

    async def _rate(
        self, client: AsyncClient, call: Callable[[AsyncClient, int], Awaitable[None]], duration_s: float
    ) -> float:
        return await sustained_rate(
            lambda number: call(client, number), client.flush, callers=CALLERS, duration_s=duration_s
        )


def _detail(what: str) -> str:
    return f"{what}, six nodes, 4+2, mutual TLS, loopback, uvloop"


async def _data_path(
    cluster: LocalCluster, options: FigureOptions, wanted: Sequence[str], figures: Figures, console: Console
) -> None:
    scale = options.scale
    async with (
        ReferenceServer() as server,
        await connect(cluster.client_config()) as writer,
        await connect(cluster.client_config()) as reader,
    ):
        path = _DataPath(writer, reader, scale, options.seed)
        if any(name.endswith("_256m") for name in wanted):
            await path.check_large()
        window = {"duration_s": scale.duration_s, "warmup_s": scale.warmup_s}
        turns: dict[str, tuple[Turn, Turn, int]] = {
            "put_4k_c64": (
                path.put_4k,
                lambda: references.grpc_unary_4k(server, callers=CALLERS, **window),
                scale.small_rounds,
            ),
            "get_4k_c64": (
                path.get_4k,
                lambda: references.grpc_unary_4k_reply(server, callers=CALLERS, **window),
                scale.small_rounds,
            ),
            "put_256m": (
                path.put_256m,
                lambda: references.grpc_stream_1m(server, size_bytes=scale.large_bytes),
                scale.large_rounds,
            ),
            "get_256m": (
                path.get_256m,
                lambda: references.grpc_stream_1m_reply(server, size_bytes=scale.large_bytes),
                scale.large_rounds,
            ),
        }
        for name in wanted:
            product, reference, rounds = turns[name]
            console.print(f"measuring {name}, {rounds} rounds")
            with _recorded(figures, [name]):
                figures.rows.append(await alternate(product, reference, rounds=rounds))


# -------------------------------------------------------------------- memory


async def _memory(cluster: LocalCluster, options: FigureOptions, wanted: Sequence[str]) -> list[Row]:
    pids = {number: cluster.pid(number) for number in cluster.numbers}
    peaks = await measure_memory(
        cluster.client_config(), pids, size_bytes=options.scale.memory_bytes, seed=options.seed
    )
    values = {_CLIENT_MEMORY: peaks.client_bytes, _NODE_MEMORY: peaks.highest_node_bytes}
    return [
        row_of(
            Measurement(name, values[name] / 1e6, "MB", "peak of anonymous memory"),
            Measurement("bound", _MEMORY_BOUNDS_MB[name], "MB", "what it may be at most"),
        )
        for name in wanted
    ]
