"""Memory of segments and of messages that is used again and again."""

from __future__ import annotations

from collections import deque
from io import BytesIO

__all__ = ["MessageMemory", "SegmentMemory"]

KEPT_SEGMENTS_MAX = 32  # more than all streams of an upload together hold on to while none of them lags


class SegmentMemory:
    """Memory of coded segments, taken again when nobody looks at it any more. Threads may share one.

    Fresh memory is zeroed, and often faulted in page by page, which takes longer than coding.
    """

    def __init__(self) -> None:
        self._kept: list[bytearray] = []  # few, and for one-segment objects none

    def take(self, size_bytes: int) -> memoryview:
        """Return memory with anything in it; it is free again when this view and all made from it are gone."""
        if not size_bytes:
            return memoryview(bytearray())
        buffer = self._take_kept() if self._kept else None
        if buffer is None or len(buffer) < size_bytes:
            buffer = bytearray(size_bytes)
        view = memoryview(buffer)[:size_bytes]
        self._kept.append(buffer)
        return view

    def _take_kept(self) -> bytearray | None:
        """The memory that was taken the longest ago, when nobody looks at it."""
        try:
            buffer = self._kept.pop(0)
        except IndexError:
            return None  # another thread was faster
        if not _is_viewed(buffer):
            return buffer
        if len(self._kept) < KEPT_SEGMENTS_MAX:
            self._kept.insert(0, buffer)
        return None


def _is_viewed(buffer: bytearray) -> bool:
    """Whether a view of it is left: Python then refuses to change its size."""
    try:
        buffer.append(buffer.pop())
    except BufferError:
        return True
    return False


class MessageMemory:
    """Memory of a stream's messages, taken again in turn: `kept` of them, more than are under way while nothing lags.

    A message that is still looked at then costs a copy, since BytesIO never changes a value that it has given out.
    """

    def __init__(self, kept: int) -> None:
        self._kept: deque[BytesIO] = deque()
        self._kept_max = kept

    def take(self) -> BytesIO:
        """A buffer for one message; one that is used again when enough were made."""
        memory = self._kept.popleft() if len(self._kept) == self._kept_max else BytesIO()
        self._kept.append(memory)
        return memory
