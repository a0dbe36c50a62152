"""The kernel's face on stock zfec, blake3 and plain Python: for machines without a C compiler. Correct, not fast."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import zfec
from blake3 import blake3

if TYPE_CHECKING:
    from typing_extensions import Buffer

_POINTS = 256
_HASH_BYTES = 16
_POLYNOMIAL_REFLECTED = 0x82F63B78


def _crc_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = value >> 1 ^ (_POLYNOMIAL_REFLECTED if value & 1 else 0)
        table.append(value)
    return tuple(table)


_CRC_TABLE = _crc_table()


def crc32c(data: Buffer, value: int = 0) -> int:
    """CRC32C of `data`, continuing from `value`; see `coffre.codec.crc32c`."""
    if not 0 <= value <= 0xFFFFFFFF:
        raise ValueError("value must be between 0 and 2**32 - 1")
    with _opened(data, "data", writable=False) as view:
        return _crc32c_of_bytes(view, value)


def blake3_128(data: Buffer, /) -> bytes:
    """The first 16 bytes of BLAKE3 of `data`; see `coffre.codec.blake3_128`."""
    with _opened(data, "data", writable=False) as view:
        return blake3(view).digest(_HASH_BYTES)


def _crc32c_of_bytes(view: memoryview, value: int) -> int:
    value ^= 0xFFFFFFFF
    table = _CRC_TABLE
    for byte in view:
        value = value >> 8 ^ table[(value ^ byte) & 0xFF]
    return value ^ 0xFFFFFFFF


@contextmanager
def _opened(buffer: Buffer, label: str, *, writable: bool) -> Iterator[memoryview]:
    """The buffer as flat bytes, with the kernel's errors for what cannot be one."""
    try:
        view = memoryview(buffer)
    except TypeError:
        raise TypeError(f"{label} must be a buffer, not {type(buffer).__name__}") from None
    except (ValueError, BufferError):
        raise ValueError(f"{label} is not a contiguous buffer, or is closed") from None
    with view:
        if not view.c_contiguous:
            raise ValueError(f"{label} is not a contiguous buffer, or is closed")
        if writable and view.readonly:
            raise ValueError(f"{label} is read-only")
        # cast() cannot flatten a shape that holds a zero.
        with view.cast("B") if view.nbytes else memoryview(bytearray()) as flat:
            yield flat


class _PyBuffer(ctypes.Structure):
    """Py_buffer of the stable C interface: the one way to learn where a read-only buffer lies."""

    _fields_ = (
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.c_void_p),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_void_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    )


def _address(view: memoryview) -> int:
    raw = _PyBuffer()
    ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(view), ctypes.byref(raw), 0)
    try:
        return int(raw.buf or 0)
    finally:
        ctypes.pythonapi.PyBuffer_Release(ctypes.byref(raw))


def _overlap(a: memoryview, b: memoryview) -> bool:
    if not a.nbytes or not b.nbytes:
        return False
    left, right = _address(a), _address(b)
    return left < right + b.nbytes and right < left + a.nbytes


class Transform:
    """The linear map from the `sources` shards to the `targets` shards; twin of `_kernel.Transform`."""

    __slots__ = ("_sources", "_targets")

    def __init__(self, sources: bytes, targets: bytes) -> None:
        self._sources = sources
        self._targets = targets

    def apply(
        self, sources: Sequence[Buffer], targets: Sequence[Buffer], checks: bool = True, /
    ) -> tuple[tuple[int, ...], bytes]:
        """Compute every target; see `coffre.codec.Codec.encode_into` for results and errors."""
        labels = [f"input shard {i}" for i in self._sources] + [f"output shard {i}" for i in self._targets]
        buffers = [
            *_listed(sources, "input", len(self._sources)),
            *_listed(targets, "output", len(self._targets)),
        ]
        return self._apply_from(0, buffers, labels, [], checks)

    def _apply_from(
        self, position: int, buffers: list[Buffer], labels: list[str], views: list[memoryview], checks: bool
    ) -> tuple[tuple[int, ...], bytes]:
        """Open the buffers one inside the other, so that each is released whatever happens; then compute."""
        if position == len(buffers):
            _check_overlaps(views, labels, len(self._sources))
            return self._compute(views, checks)
        label = labels[position]
        with _opened(buffers[position], label, writable=position >= len(self._sources)) as view:
            if views and view.nbytes != views[0].nbytes:
                raise ValueError(f"{label} has {view.nbytes} bytes but {labels[0]} has {views[0].nbytes}")
            return self._apply_from(position + 1, buffers, labels, [*views, view], checks)

    def apply_segment(
        self, segment: Buffer, parity: Buffer, checks: bool = True, /
    ) -> tuple[tuple[int, ...], bytes]:
        """Compute every target cell; see `coffre.codec.Codec.encode_segment` for results and errors."""
        source_count, target_count = len(self._sources), len(self._targets)
        with (
            _opened(segment, "segment", writable=False) as data,
            _opened(parity, "parity", writable=True) as output,
        ):
            if data.nbytes % source_count:
                raise ValueError(
                    f"segment has {data.nbytes} bytes, which is not a multiple of {source_count}"
                )
            size = data.nbytes // source_count
            if output.nbytes != size * target_count:
                raise ValueError(
                    f"parity has {output.nbytes} bytes; {target_count} cells of {size} bytes are needed"
                )
            if _overlap(data, output):
                raise ValueError("parity overlaps segment")
            cells = [data[i * size : (i + 1) * size] for i in range(source_count)]
            cells += [output[i * size : (i + 1) * size] for i in range(target_count)]
            try:
                return self._compute(cells, checks)
            finally:
                for cell in cells:
                    cell.release()

    def _compute(self, shards: list[memoryview], checks: bool) -> tuple[tuple[int, ...], bytes]:
        k = len(self._sources)
        if self._targets and shards[0].nbytes:
            given = tuple(bytes(shard) for shard in shards[:k])
            data = tuple(zfec.Decoder(k, _POINTS).decode(given, tuple(self._sources)))
            results = zfec.Encoder(k, _POINTS).encode(data, tuple(self._targets))
            for target, result in zip(shards[k:], results, strict=True):
                target[:] = result
        if not checks:
            return (), b""
        return tuple(_crc32c_of_bytes(shard, 0) for shard in shards), b"".join(map(blake3_128, shards))


def _listed(buffers: Sequence[Buffer], role: str, count: int) -> tuple[Buffer, ...]:
    try:
        listed = tuple(buffers)
    except TypeError:
        name = type(buffers).__name__
        raise TypeError(f"the {role} shards must be a sequence of buffers, not {name}") from None
    if len(listed) != count:
        raise ValueError(f"{count} {role} shards are needed, not {len(listed)}")
    return listed


def _check_overlaps(views: list[memoryview], labels: list[str], source_count: int) -> None:
    for target in range(source_count, len(views)):
        for other in range(target):
            if _overlap(views[target], views[other]):
                raise ValueError(f"{labels[target]} overlaps {labels[other]}")
