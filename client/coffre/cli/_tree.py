"""The root of the command tree. Branches load only when used, so that completion and small commands stay quick."""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path

import click
from coffre.cli import _extras

__all__ = ["tree"]

_OBJECT_COMMANDS = {
    "put": "Store a file, a folder or standard input.",
    "get": "Fetch an object, or a folder of them (-r).",
    "ls": "List objects.",
    "rm": "Delete objects.",
    "stat": "Show what is known of an object.",
    "locate": "Show where every shard of an object lies.",
    "versions": "List the versions of an object that are still kept.",
    "bucket": "Make, list and forget buckets; code objects anew after a change of policy.",
    "keyring": "Make and rotate the key ring.",
}


_WHOLE = 1_000  # characters: nothing is cut


class _Tree(click.Group):
    """Object commands of this room, and one branch for each entry point."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [
            *_OBJECT_COMMANDS,
            *sorted(point.name for point in entry_points(group="coffre.commands")),
            "completion",
        ]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name == "completion":
            return completion
        if cmd_name in _OBJECT_COMMANDS:
            return _object_command(cmd_name)
        for point in entry_points(group="coffre.commands", name=cmd_name):
            return _extras.load(point)
        return None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(
                [
                    (name, _OBJECT_COMMANDS.get(name) or self._help_of(ctx, name))
                    for name in self.list_commands(ctx)
                ]
            )

    def _help_of(self, ctx: click.Context, name: str) -> str:
        command = self.get_command(ctx, name)
        return command.get_short_help_str(_WHOLE) if command else ""


def _object_command(name: str) -> click.Command:
    from coffre.cli import _buckets, _get, _objects, _put, _rm

    commands: dict[str, click.Command] = {
        "put": _put.put,
        "get": _get.get,
        "ls": _objects.ls,
        "rm": _rm.rm,
        "stat": _objects.stat,
        "locate": _objects.locate,
        "versions": _objects.versions,
        "bucket": _buckets.bucket,
        "keyring": _objects.keyring,
    }
    return commands[name]


@click.command(
    cls=_Tree, context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "COFFRE"}
)
@click.version_option(package_name="coffre", prog_name="coffre")
@click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    help="client.toml; else $COFFRE_CONFIG, ./.coffre/client.toml, ~/.config/coffre/client.toml.",
)
@click.pass_context
def tree(ctx: click.Context, config: Path | None) -> None:
    """Coffre: an object store for health records that no node and no hosting company alone can read.

    Objects are named BUCKET/KEY. Exit status: 0 done, 1 failure, 2 usage or configuration, 3 not found, 4 not
    permitted, 5 unavailable (try again), 6 damaged data, 130 interrupted.
    """
    ctx.obj = config


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the shell completion script, to be sourced: `source <(coffre completion bash)`."""
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    if kind is None:
        raise click.ClickException(f"no completion for {shell}")
    click.echo(kind(tree, {}, "coffre", "_COFFRE_COMPLETE").source())
