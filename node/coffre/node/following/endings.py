"""Whether the process before this one ended as it was told: a restart that somebody planned is no fall."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

from coffre.cluster.errors import CoffreError
from coffre.proto import coffre_pb2 as pb

__all__ = ["note_end", "read_last_end"]

_log = logging.getLogger("coffre.node")
_TITLE = "ended in order"


class Notes(Protocol):
    """What is needed of a `ShardStore`."""

    async def keep_note(self, title: str, note: bytes, *, sync: bool = False) -> None:
        """Remember a few bytes under a title."""

    async def note(self, title: str) -> bytes:
        """What was kept; empty when nothing was."""


async def read_last_end(notes: Notes) -> Callable[[pb.StatusReply], None]:
    """Forget how the process before this one ended; returns what adds it to a status."""
    in_order = False
    try:
        in_order = bool(await notes.note(_TITLE))
        if in_order:
            await notes.keep_note(_TITLE, b"")
    except CoffreError as error:  # a hint for others, no more
        _log.info("how the last process ended is not known", extra={"reason": str(error)})

    def tell(reply: pb.StatusReply) -> None:
        reply.ended_in_order = in_order

    return tell


async def note_end(notes: Notes) -> None:
    """This process ends because it was told to."""
    try:
        await notes.keep_note(_TITLE, b"1", sync=True)
    except CoffreError as error:
        _log.info("that this process ended in order is not kept", extra={"reason": str(error)})
