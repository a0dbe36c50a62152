"""`coffre node`: run a storage node."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import uvloop
from coffre.cluster.admin import CommandGroup, exit_code_of
from coffre.cluster.clock import SystemClock
from coffre.cluster.errors import CoffreError
from coffre.node.config import load_node_config
from coffre.node.logs import set_up_logs
from coffre.node.server import serve

__all__ = ["node"]

_log = logging.getLogger("coffre.node")


@click.group(cls=CommandGroup)
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
def run(config_path: Path, new_cluster: bool) -> None:
    """Serve until SIGTERM; in-flight work that was acknowledged is kept. All that it says are JSON lines."""
    set_up_logs("info")
    with _refusals_in_the_log():
        config = load_node_config(config_path)
        set_up_logs(config.log_level)
        _, descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)
        # Every client keeps a connection open.
        resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(config, SystemClock(), os.urandom, new_cluster=new_cluster))


@contextmanager
def _refusals_in_the_log() -> Iterator[None]:
    """What keeps a node from running is a line of its log, and the exit status of any other command."""
    try:
        yield
    except CoffreError as error:
        _log.critical("cannot run", extra={"error": type(error).__name__, "reason": str(error)})
        raise SystemExit(int(exit_code_of(error))) from None
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        reason = f"{where}{error.strerror or error}"
        _log.critical("cannot run", extra={"error": type(error).__name__, "reason": reason})
        raise SystemExit(1) from None
