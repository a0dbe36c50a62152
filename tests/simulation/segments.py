"""Segments of half a kilobyte, so that objects of many segments cost what small ones do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

from coffre.client import _streams, async_client
from coffre.client.puts import _puts

__all__ = ["SEGMENT_BYTES", "tiny_segments"]

SEGMENT_BYTES = 512


@contextmanager
def tiny_segments() -> Iterator[None]:
    """Let clients cut what they write into segments of `SEGMENT_BYTES`."""
    with ExitStack() as stack:
        for module in (_streams, _puts, async_client):
            stack.enter_context(patch.object(module, "SEGMENT_BYTES", SEGMENT_BYTES))
        yield
