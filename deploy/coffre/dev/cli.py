"""`coffre dev`: clusters on this machine: an empty one to develop against, and the demo."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import uvloop
from coffre.cluster.admin import CommandGroup, one_line_errors
from coffre.cluster.clock import Clock, SystemClock
from coffre.cluster.errors import ConfigurationError
from coffre.dev.demo import DemoOptions, run_demo
from coffre.dev.local_cluster import ClusterShape, LocalCluster, share_of_disk
from rich.console import Console

__all__ = ["DevelopmentOptions", "dev", "stay_up"]

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


@click.group(cls=CommandGroup)
def dev() -> None:
    """Development clusters on this machine."""


_directory = click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(".coffre"),
    show_default=True,
    help="The cluster; one of an earlier run is replaced.",
)


@dev.command(context_settings={"ignore_unknown_options": True})
@_directory
@click.option(
    "--tenant", "tenants", multiple=True, default=("clinic",), show_default=True, help="May be repeated."
)
@click.option(
    "--nodes",
    default=6,
    show_default=True,
    type=click.IntRange(6, 60),
    help="At three sites in turn; 4+2 takes six.",
)
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@one_line_errors
def up(directory: Path, tenants: tuple[str, ...], nodes: int, command: tuple[str, ...]) -> None:
    """Start an empty cluster, print the environment to paste, and stay up until Ctrl-C.

    With a COMMAND (`coffre dev up -- pytest`) it runs that with the environment set, and ends with its status.
    """
    options = DevelopmentOptions(directory.resolve(), tenants, nodes, command)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        status = runner.run(stay_up(options, SystemClock()))
    sys.exit(status)


@dev.command()
@click.option("--once", is_flag=True, help="End by itself; exit status 1 when anything was lost.")
@click.option("--scale", type=click.Choice(["full", "small"]), default="full", show_default=True)
@click.option("--seed", default=1, show_default=True, help="Which two nodes die.")
@_directory
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    default=Path(".demo-data"),
    show_default=True,
    help="The generated data set; kept and used again.",
)
@one_line_errors
def run(once: bool, scale: str, seed: int, directory: Path, data: Path) -> None:
    """Store a data set on six nodes, kill two, read everything back and compare."""
    options = DemoOptions(directory.resolve(), (data / scale).resolve(), scale, once, seed)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        intact = runner.run(run_demo(options, SystemClock(), Console()))
    sys.exit(0 if intact else 1)
