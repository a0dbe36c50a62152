"""What JSON holds, as dataclasses, and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
from coffre.cluster.errors import InvalidArgument

__all__ = ["decoded", "plain"]

_Kind = TypeVar("_Kind")


def plain(value: object, hook: Callable[[Any], object] | None = None) -> Any:
    """Dataclasses and enums as JSON has them. `hook` does what msgspec does not know."""
    return msgspec.to_builtins(value, enc_hook=hook)


def decoded(kind: type[_Kind], content: object, hook: Callable[[type, Any], object] | None = None) -> _Kind:
    """The opposite, every field checked. Raises `InvalidArgument` that says which one is not in order."""
    try:
        return msgspec.convert(content, kind, dec_hook=hook)
    except msgspec.ValidationError as error:
        raise InvalidArgument(f"not in order: {error}") from None
