"""One run from start to end: fill, load, look back, clean up."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from coffre.bench.load.facts import ClusterFacts, Observer
from coffre.bench.load.fleet import Fleet
from coffre.bench.load.latency import Latencies, total
from coffre.bench.load.plan import LoadPlan
from coffre.bench.load.recorder import Slice, Timeline
from coffre.bench.load.result import Check, Event, LoadResult, Usage
from coffre.bench.local_cluster import LocalCluster
from coffre.bench.result import Machine
from coffre.bench.tasks import together
from coffre.client import load_client_config
from coffre.cluster.clock import Clock
from coffre.cluster.errors import CoffreError
from coffre.cluster.identity import TlsFiles
from coffre.cluster.map import ClusterMap, read_map
from coffre.cluster.version import __version__

__all__ = ["Progress", "Target", "connected", "run_load", "started"]

HEAD_START_S = 0.5  # from the command until the load begins, so that all processes are connected


@dataclass(frozen=True, slots=True)
class Target:
    """The cluster under load. `observer` asks its nodes what it costs them."""

    config: Path
    cluster_map: ClusterMap
    observer: Observer


class Progress(Protocol):
    """What the run tells while it goes on."""

    def begin(self, what: str, expected: float | None) -> None:
        """A part of the run begins. `expected` is in bytes, or in seconds for the load itself."""

    def advance(self, amount: float) -> None:
        """So much more of it is done."""

    def show(self, slices: list[Slice]) -> None:
        """Intervals that are over, of one client process."""

    def warn(self, text: str) -> None:
        """Something that the user must know, and that does not change the result."""


Disturb = Callable[[float, Clock], Coroutine[Any, Any, tuple[Event, ...]]]


@asynccontextmanager
async def connected(config: Path, operator: TlsFiles | None) -> AsyncIterator[Target]:
    """A cluster that is already there. Raises `ConfigurationError` when a file is not in order."""
    settings = load_client_config(config)
    cluster_map, _ = read_map(settings.map, settings.tls.authority)
    async with Observer(cluster_map, operator) as observer:
        yield Target(config, cluster_map, observer)


@asynccontextmanager
async def started(cluster: LocalCluster) -> AsyncIterator[Target]:
    """A cluster of this run's own, which ends with it."""

    def pids() -> list[int]:
        return [cluster.pid(number) for number in cluster.numbers if cluster.running(number)]

    async with cluster, Observer(cluster.map, cluster.operator_tls(), pids) as observer:
        yield Target(cluster.client_config(), cluster.map, observer)


async def run_load(
    target: Target,
    plan: LoadPlan,
    machine: Machine,
    clock: Clock,
    progress: Progress,
    *,
    check: bool,
    clean: bool,
    disturb: Disturb | None = None,
) -> LoadResult:
    """Put the load of the plan on the target. Raises `CoffreError` when a client process fails as a whole.

    `check`: read everything back at the end that was written. `clean`: delete it, and what was there to be read; a
    run that does not come to its end deletes nothing.
    `disturb` runs beside the load: it gets the start of the load, and returns what it has done.
    """
    time = datetime.fromtimestamp(clock.unixtime_ms() / 1000, UTC)
    async with Fleet(target.config, plan) as fleet:
        progress.begin("storing what is read", None)
        await fleet.command({"do": "fill"}, lambda message: _forward(message, progress))
        loaded = await _load(fleet, target, plan, clock, progress, disturb)
        checked: list[dict[str, Any]] = []
        if check:
            progress.begin("reading everything back", None)
            checked = await fleet.command({"do": "check"}, lambda message: _forward(message, progress))
        if clean:
            progress.begin("deleting", None)
            try:
                await fleet.command({"do": "clean"}, lambda message: _forward(message, progress))
            except CoffreError as error:  # the result stands all the same
                progress.warn(f"not all was deleted below {plan.bucket}/{plan.prefix}/: {error}")
    lags = [Latencies.decode(each["lag"]) for each in loaded.said if each["lag"] is not None]
    return LoadResult(
        version=__version__,
        time=time,
        machine=machine,
        plan=plan,
        cluster=ClusterFacts.of(target.cluster_map),
        usage=loaded.usage,
        seconds=loaded.seconds,
        not_started=sum(each["not_started"] for each in loaded.said),
        lag=total(lags) if lags else None,
        timeline=loaded.timeline,
        check=_check(checked) if check else None,
        events=loaded.events,
        examples=tuple(line for each in [*loaded.said, *checked] for line in each["examples"]),
    )


@dataclass(frozen=True, slots=True)
class _Loaded:
    said: list[dict[str, Any]]
    timeline: Timeline
    usage: Usage
    seconds: float
    events: tuple[Event, ...]


async def _load(
    fleet: Fleet,
    target: Target,
    plan: LoadPlan,
    clock: Clock,
    progress: Progress,
    disturb: Disturb | None,
) -> _Loaded:
    timeline = Timeline()

    def hear(message: dict[str, Any]) -> None:
        slices = [Slice.from_json(row) for row in message["slices"]]
        for each in slices:
            timeline.add(each)
        progress.show(slices)

    before = await target.observer.counters()
    progress.begin("load", None if plan.count is not None else plan.end_interval * plan.interval_s)
    start = clock.monotonic() + HEAD_START_S
    async with together() as group:
        disturbing = None if disturb is None else group.create_task(disturb(start, clock))
        said = await fleet.command({"do": "run", "start": start}, hear)
    elapsed_s = clock.monotonic() - start
    after = await target.observer.counters()
    if plan.count is not None:
        seconds = max(each["last"] for each in said) - start
    else:
        seconds = (plan.end_interval - plan.ramp_intervals) * plan.interval_s
    usage = Usage(tuple(each["cpu_s"] for each in said), before, after, elapsed_s)
    return _Loaded(said, timeline, usage, seconds, disturbing.result() if disturbing else ())


def _forward(message: dict[str, Any], progress: Progress) -> None:
    progress.advance(message["bytes"])


def _check(said: list[dict[str, Any]]) -> Check:
    errors: dict[str, int] = {}
    for each in said:
        for name, count in each["errors"].items():
            errors[name] = errors.get(name, 0) + count
    return Check(sum(each["checked"] for each in said), errors)
