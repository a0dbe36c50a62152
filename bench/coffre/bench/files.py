"""Files that are written whole or not at all, and what JSON holds as dataclasses."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from coffre.cluster.errors import ConfigurationError, InvalidArgument

__all__ = ["check_writable", "decoded", "plain", "write_whole"]

_Kind = TypeVar("_Kind")


def check_writable(path: Path) -> None:
    """Raise `ConfigurationError` when the file could not be written: better before a long run than after it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error.strerror}") from None
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise ConfigurationError(f"{path} cannot be written")


def write_whole(path: Path, text: str) -> None:
    """Make the file, or replace it, synced. Raises `ConfigurationError` when that cannot be."""
    draft = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("w", encoding="utf-8") as sink:
            sink.write(text)
            sink.flush()
            os.fsync(sink.fileno())
        draft.replace(path)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error.strerror}") from None


def plain(value: object, hook: Callable[[Any], object] | None = None) -> Any:
    """Dataclasses and enums as JSON has them. `hook` does what msgspec does not know."""
    return msgspec.to_builtins(value, enc_hook=hook)


def decoded(kind: type[_Kind], content: object, hook: Callable[[type, Any], object] | None = None) -> _Kind:
    """The opposite, every field checked. Raises `InvalidArgument` that says which one is not in order."""
    try:
        return msgspec.convert(content, kind, dec_hook=hook)
    except msgspec.ValidationError as error:
        raise InvalidArgument(f"not in order: {error}") from None
