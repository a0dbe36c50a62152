"""An empty cluster on this machine for who develops an application: it stays up, or as long as a command runs."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
from coffre.bench.local_cluster import ClusterShape, LocalCluster, share_of_disk
from coffre.cluster.clock import Clock
from coffre.cluster.errors import ConfigurationError

__all__ = ["DevelopmentOptions", "stay_up"]

LOOK_SECONDS = 1.0  # between two looks at whether all nodes run


@dataclass(frozen=True, slots=True)
class DevelopmentOptions:
    """Where the cluster lives, whose it is, and what runs beside it: nothing, or one command."""

    directory: Path
    tenants: tuple[str, ...] = ("clinic",)
    nodes: int = 6
    command: tuple[str, ...] = ()


async def stay_up(options: DevelopmentOptions, clock: Clock) -> int:
    """Make an empty cluster, print how to use it, and wait; returns the exit status.

    Until SIGINT or SIGTERM; or, with a command, until that ends. Raises `ConfigurationError` when the directory holds
    something else, or a cluster that is in use, and `Unavailable` when a node does not start.
    """
    capacity_bytes = share_of_disk(options.directory, options.nodes)
    shape = ClusterShape(nodes=options.nodes, tenants=options.tenants, capacity_bytes=capacity_bytes)
    cluster = LocalCluster.create(options.directory, shape, clock)
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with cluster:
        if options.command:
            return await _beside(cluster, options.command, stop)
        click.echo(_how_to_use(cluster, options))
        await _until(cluster, stop)
    return 0


def _how_to_use(cluster: LocalCluster, options: DevelopmentOptions) -> str:
    first, *others = options.tenants
    lines = [
        f"An empty cluster of {options.nodes} nodes at three sites is up, 4+2, below {options.directory}.",
        "It forgets everything when it is made again. Ctrl-C ends it. Paste into another terminal:",
        "",
        f"export COFFRE_CONFIG={shlex.quote(str(cluster.client_config()))}",
    ]
    lines += [f"# as {name}: {shlex.quote(str(cluster.client_config(name)))}" for name in others]
    lines += [
        f"# as its operator: coffre cluster status --operator {shlex.quote(str(cluster.operator_config()))}"
    ]
    return "\n".join([*lines, "", f"# then, as {first}: coffre put README.md notes/readme.md"])


async def _until(cluster: LocalCluster, stop: asyncio.Event) -> None:
    """Wait, and say so when a node ends that nobody has ended."""
    gone: set[int] = set()
    while not stop.is_set():
        for number in cluster.numbers:
            if number not in gone and not cluster.running(number):
                gone.add(number)
                click.echo(f"{cluster.map.node(number).node_id} has ended: {cluster.log(number)}", err=True)
        try:
            await asyncio.wait_for(stop.wait(), LOOK_SECONDS)
        except TimeoutError:
            continue


async def _beside(cluster: LocalCluster, command: Sequence[str], stop: asyncio.Event) -> int:
    """Run a command with this cluster in its environment; its exit status, 128 and more for a signal."""
    environment = {**os.environ, "COFFRE_CONFIG": str(cluster.client_config())}
    try:
        process = await asyncio.create_subprocess_exec(*command, env=environment)
    except FileNotFoundError:
        raise ConfigurationError(f"there is no command {command[0]!r}") from None
    stopped = asyncio.create_task(stop.wait())
    ended = asyncio.create_task(process.wait())
    await asyncio.wait([stopped, ended], return_when=asyncio.FIRST_COMPLETED)
    if not ended.done():
        process.terminate()
    stopped.cancel()
    status = await ended
    return status if status >= 0 else 128 - status
