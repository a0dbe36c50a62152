"""Branches of the command line that need packages which a plain install does not bring: which, and how to get them."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import click
from coffre.cluster.admin import one_line_errors
from coffre.cluster.errors import ConfigurationError

__all__ = ["load"]


def load(point: EntryPoint) -> click.Command | None:
    """The branch that a room brings; where a package of its extra is not installed, one that says so."""
    try:
        command = point.load()
    except ModuleNotFoundError as error:
        if not point.extras or error.name is None or error.name.partition(".")[0] == "coffre":
            raise
        return _lacking(point.name, error.name, f"pip install 'coffre[{','.join(point.extras)}]'")
    return command if isinstance(command, click.Command) else None


def _lacking(name: str, module: str, remedy: str) -> click.Command:
    """A stand-in that takes any arguments."""

    @one_line_errors
    def end(rest: tuple[str, ...]) -> None:
        raise ConfigurationError(f"{name} needs {module}, which is not installed: {remedy}")

    return click.Command(
        name,
        context_settings={"ignore_unknown_options": True},
        params=[click.Argument(["rest"], nargs=-1, type=click.UNPROCESSED, metavar="...")],
        callback=end,
        short_help=f"Not installed: {remedy}",
        help=f"Not installed: it needs {module}. {remedy}",
    )
