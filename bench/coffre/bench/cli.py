"""`coffre dev`: the demo, on a development cluster."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import click
import uvloop
from coffre.bench.demo import DemoOptions, run_demo
from coffre.cluster.admin import one_line_errors
from coffre.cluster.clock import SystemClock
from rich.console import Console

__all__ = ["dev"]


@click.group()
def dev() -> None:
    """Development clusters on this machine."""


@dev.command()
@click.option("--once", is_flag=True, help="End by itself; exit status 1 when anything was lost.")
@click.option("--scale", type=click.Choice(["full", "small"]), default="full", show_default=True)
@click.option("--seed", default=1, show_default=True, help="Which two nodes die.")
@click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path),
    default=Path(".coffre"),
    show_default=True,
    help="The cluster; one of an earlier run is replaced.",
)
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
