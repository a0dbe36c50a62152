"""`coffre dev`: clusters on this machine: an empty one to develop against, and the demo."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import click
import uvloop
from coffre.bench.demo import DemoOptions, run_demo
from coffre.bench.development import DevelopmentOptions, stay_up
from coffre.cluster.admin import one_line_errors
from coffre.cluster.clock import SystemClock
from rich.console import Console

__all__ = ["dev"]


@click.group()
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
