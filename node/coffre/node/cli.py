"""`coffre node`: run a storage node."""

from __future__ import annotations

import asyncio
import os
import resource
from pathlib import Path

import click
import uvloop
from coffre.cluster.admin import one_line_errors
from coffre.cluster.clock import SystemClock
from coffre.node.config import load_node_config
from coffre.node.logs import set_up_logs
from coffre.node.server import serve

__all__ = ["node"]


@click.group()
def node() -> None:
    """Run a storage node."""


@node.command()
@click.option(
    "--config",
    "config_path",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="node.toml",
)
@click.option(
    "--new-cluster",
    is_flag=True,
    help="The first start in a new cluster: do not wait for other nodes to say what they have seen of this one. "
    "Refused when its disk is not empty, when the map has changed, or when a node has seen it before.",
)
@one_line_errors
def run(config_path: Path, new_cluster: bool) -> None:
    """Serve until SIGTERM; in-flight work that was acknowledged is kept."""
    config = load_node_config(config_path)
    set_up_logs(config.log_level)
    _, descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (descriptors, descriptors)
    )  # every client keeps a connection open
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(config, SystemClock(), os.urandom, new_cluster=new_cluster))
