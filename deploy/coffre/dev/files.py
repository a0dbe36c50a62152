"""Files that are written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from coffre.cluster.errors import ConfigurationError

__all__ = ["check_writable", "write_whole"]


def check_writable(path: Path) -> None:
    """Raise `ConfigurationError` when the file could not be written: better before a long run than after it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error.strerror}") from None
    if path.is_dir() or not os.access(path if _is_special(path) else path.parent, os.W_OK):
        raise ConfigurationError(f"{path} cannot be written")


def write_whole(path: Path, text: str) -> None:
    """Make the file, or replace it, synced. Raises `ConfigurationError` when that cannot be.

    Links are followed, and what is no regular file (/dev/null, a pipe) is written into.
    """
    target = Path(os.path.realpath(path))
    draft = target.with_name(target.name + ".tmp")
    try:
        if _is_special(path):
            path.write_text(text, "utf-8")
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("w", encoding="utf-8") as sink:
            sink.write(text)
            sink.flush()
            os.fsync(sink.fileno())
        draft.replace(target)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error.strerror}") from None


def _is_special(path: Path) -> bool:
    return path.exists() and not path.is_file() and not path.is_dir()
