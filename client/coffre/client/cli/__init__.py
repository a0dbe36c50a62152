"""The `coffre` command: objects here, and the branches that the other rooms bring (`coffre.commands` entry points)."""

from coffre.client.cli._main import main

__all__ = ["main"]
