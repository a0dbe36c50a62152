"""Groups of commands: their help says the whole first sentence of each, on as many lines as that takes."""

from __future__ import annotations

import click

__all__ = ["CommandGroup"]

_WHOLE = 1_000  # characters; click cuts what is longer than a line


class CommandGroup(click.Group):
    """Lists its commands with nothing cut off: what stands behind the dots may be what one is looking for."""

    group_class = type  # groups below it are of this kind, too

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the section "Commands"."""
        found = ((name, self.get_command(ctx, name)) for name in self.list_commands(ctx))
        rows = [(name, command.get_short_help_str(_WHOLE)) for name, command in found if command is not None]
        if rows:
            with formatter.section("Commands"):
                formatter.write_dl(rows)
