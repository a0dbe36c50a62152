"""One run from start to end: fill, load, look back, clean up; and what it costs the nodes."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from coffre.bench.load.plan import LoadPlan
from coffre.bench.load.recorder import Latencies, Slice, Timeline, total
from coffre.bench.load.result import Check, ClusterFacts, Counters, Event, LoadResult, Usage
from coffre.bench.load.tables import LiveProgress
from coffre.bench.processes import Child, child, cpu_s
from coffre.bench.result import Machine
from coffre.bench.typed_json import decoded, plain
from coffre.client import load_client_config
from coffre.cluster import errors
from coffre.cluster.clock import Clock
from coffre.cluster.errors import CoffreError, InternalError
from coffre.cluster.identity import TlsFiles
from coffre.cluster.map import ClusterMap, NodeState, read_map
from coffre.cluster.transport import GrpcTransport
from coffre.cluster.version import __version__
from coffre.dev.local_cluster import LocalCluster
from coffre.dev.tasks import together

__all__ = [
    "Disturb",
    "Fleet",
    "Observe",
    "Target",
    "connected",
    "fleet",
    "observing",
    "run_load",
    "started",
]

_ERRORS = {kind.__name__: kind for kind in map(errors.__dict__.get, errors.__all__) if isinstance(kind, type)}
_Hear = Callable[[dict[str, Any]], None]


class Fleet:
    """Workers that do the same at the same time."""

    def __init__(self, members: list[Child]) -> None:
        self._members = members

    async def command(self, command: dict[str, object], hear: _Hear) -> list[dict[str, Any]]:
        """Have all do it at once; what each said at the end. `hear` gets what they say meanwhile.

        Raises the error of the first that failed, and `InternalError` when one ended.
        """
        async with together() as group:
            tasks = [group.create_task(_obeyed(member, command, hear)) for member in self._members]
        return [task.result() for task in tasks]


@asynccontextmanager
async def fleet(config: Path, plan: LoadPlan) -> AsyncIterator[Fleet]:
    """`plan.processes` workers, which end with the block, or with this process."""
    async with AsyncExitStack() as exits:
        members = []
        for number in range(plan.processes):
            worker = child(f"client process {number}", "coffre.bench.load.worker", str(config), str(number))
            members.append(await exits.enter_async_context(worker))
            await members[-1].say(plain(plan))
        yield Fleet(members)


async def _obeyed(member: Child, command: dict[str, object], hear: _Hear) -> dict[str, Any]:
    await member.say(command)
    while (message := await member.hear()) is not None:
        match message["event"]:
            case "done":
                return message
            case "failed":
                # By its class, so that the command ends with the same status as in one process.
                kind = _ERRORS.get(message["error"], InternalError)
                raise kind(f"{member.name}: {message['text'] or message['error']}")
            case _:
                hear(message)
    raise InternalError(f"{member.name} ended before it had done what it was told")


STATUS_TIMEOUT_S = 5.0
HEAD_START_S = 0.5  # from the command until the load begins, so that all processes are connected

Observe = Callable[[], Awaitable[Counters]]
"""Reads the counters as they are now. A node that does not answer is left out, and `answering` says so."""
Disturb = Callable[[float], Coroutine[Any, Any, tuple[Event, ...]]]
"""Gets the start of the load, does something to the cluster meanwhile, and returns what."""


@dataclass(frozen=True, slots=True)
class Target:
    """The cluster under load. `observe` asks its nodes what it costs them."""

    config: Path
    cluster_map: ClusterMap
    observe: Observe
    disturb: Disturb | None = None


@asynccontextmanager
async def observing(
    cluster_map: ClusterMap, operator: TlsFiles | None, pids: Callable[[], Iterable[int]] = lambda: ()
) -> AsyncIterator[Observe]:
    """Without an operator's certificate or local processes, there is less to say."""
    transport = None if operator is None else GrpcTransport(cluster_map, operator)
    numbers = [node.number for node in cluster_map.nodes if node.state is not NodeState.REMOVED]

    async def observe() -> Counters:
        used_s = sum(map(cpu_s, local)) if (local := list(pids())) else None
        if transport is None:
            return Counters(cpu_s=used_s)
        asked = (transport.status(number, STATUS_TIMEOUT_S) for number in numbers)
        replies = await asyncio.gather(*asked, return_exceptions=True)
        for reply in replies:
            if isinstance(reply, BaseException) and not isinstance(reply, CoffreError):
                raise reply
        found = [reply for reply in replies if not isinstance(reply, BaseException)]
        names = ("syncs", "objects", "live_bytes", "disk_bytes")
        syncs, objects, live, disk = (sum(getattr(reply, name) for reply in found) for name in names)
        return Counters(len(found), syncs, objects, live, disk, used_s)

    try:
        yield observe
    finally:
        if transport is not None:
            await transport.close()


@asynccontextmanager
async def connected(config: Path, operator: tuple[Path, Path] | None) -> AsyncIterator[Target]:
    """A cluster that is already there. Raises `ConfigurationError` when a file is not in order."""
    settings = load_client_config(config)
    cluster_map, _ = read_map(settings.map, settings.tls.authority)
    tls = None if operator is None else TlsFiles(settings.tls.authority, *operator)
    async with observing(cluster_map, tls) as observe:
        yield Target(config, cluster_map, observe)


@asynccontextmanager
async def started(cluster: LocalCluster) -> AsyncIterator[Target]:
    """A cluster of this run's own, which ends with it."""

    def pids() -> list[int]:
        return [cluster.pid(number) for number in cluster.numbers if cluster.running(number)]

    async with cluster, observing(cluster.map, cluster.operator_tls(), pids) as observe:
        yield Target(cluster.client_config(), cluster.map, observe)


async def run_load(
    target: Target,
    plan: LoadPlan,
    machine: Machine,
    clock: Clock,
    progress: LiveProgress,
    *,
    check: bool,
    clean: bool,
) -> LoadResult:
    """Put the load of the plan on the target. Raises `CoffreError` when a client process fails as a whole.

    `check` reads back at the end all that was written. `clean` deletes all of it, and what was stored to be read; a
    run that does not come to its end deletes nothing.
    """
    time = datetime.fromtimestamp(clock.unixtime_ms() / 1000, UTC)
    timeline = Timeline()

    def hear(message: dict[str, Any]) -> None:
        slices = decoded(list[Slice], message["slices"])
        for each in slices:
            timeline.add(each)
        progress.show(slices)

    async with fleet(target.config, plan) as clients:

        async def part(what: str, command: str) -> list[dict[str, Any]]:
            progress.begin(what, None)
            return await clients.command({"do": command}, lambda said: progress.advance(said["bytes"]))

        await part("storing what is read", "fill")
        before = await target.observe()
        progress.begin("load", None if plan.count is not None else plan.end_interval * plan.interval_s)
        start = clock.monotonic() + HEAD_START_S
        async with together() as group:
            disturbing = None if target.disturb is None else group.create_task(target.disturb(start))
            said = await clients.command({"do": "run", "start": start}, hear)
        elapsed_s = clock.monotonic() - start
        usage = Usage(tuple(each["cpu_s"] for each in said), before, await target.observe(), elapsed_s)
        checked = await part("reading everything back", "check") if check else []
        if clean:
            try:
                await part("deleting", "clean")
            except CoffreError as error:  # the result stands all the same
                progress.warn(f"not all was deleted below {plan.bucket}/{plan.prefix}/: {error}")
    ended = None if plan.count is None else max(each["last"] for each in said)
    lags = [Latencies.decode(each["lag"]) for each in said if each["lag"] is not None]
    return LoadResult(
        version=__version__,
        time=time,
        machine=machine,
        plan=plan,
        cluster=ClusterFacts.of(target.cluster_map),
        usage=usage,
        seconds=plan.measured_s if ended is None else ended - start,
        not_started=sum(each["not_started"] for each in said),
        lag=total(lags) if lags else None,
        timeline=timeline,
        check=_check(checked) if check else None,
        events=disturbing.result() if disturbing else (),
        examples=tuple(line for each in [*said, *checked] for line in each["examples"]),
    )


def _check(said: list[dict[str, Any]]) -> Check:
    errors: Counter[str] = Counter()
    for each in said:
        errors.update(each["errors"])
    return Check(sum(each["checked"] for each in said), dict(errors))
