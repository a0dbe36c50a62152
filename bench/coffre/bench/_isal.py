"""ISA-L's erasure coding through ctypes: the copy that PyECLib's wheel brings along."""

from __future__ import annotations

import ctypes
import importlib.metadata
from collections.abc import Callable, Sequence
from functools import cache

from coffre.cluster.errors import ConfigurationError
from coffre.codec import Codec

_TABLE_BYTES_PER_COEFFICIENT = 32


class IsalMissing(ConfigurationError):
    """ISA-L is not installed; the text tells how to get it."""


@cache
def library() -> ctypes.CDLL:
    """The shared library. Raises IsalMissing."""
    advice = "ISA-L is needed for this comparison; install it with: pip install 'coffre[bench]'"
    try:
        files = importlib.metadata.files("pyeclib") or []
    except importlib.metadata.PackageNotFoundError:
        raise IsalMissing(advice) from None
    for file in files:
        if file.name.startswith("libisal") and ".so" in file.name:
            try:
                return ctypes.CDLL(str(file.locate()))
            except OSError as error:
                raise IsalMissing(f"{advice} (found, but it cannot be loaded: {error})") from error
    raise IsalMissing(f"{advice} (the installed PyECLib brings no ISA-L)")


def generator_rows(k: int, m: int) -> bytes:
    """Coffre's m parity rows of k coefficients, read off the code itself by encoding unit vectors."""
    parity = bytearray(m * k)
    cells = b"".join(bytes(i == j for i in range(k)) for j in range(k))
    Codec(k, m).encode_segment(cells, parity, crc=False)
    return bytes(parity)


def encoder(
    k: int, m: int, data: Sequence[bytearray], parity: Sequence[bytearray], size: int
) -> Callable[[], None]:
    """A call that encodes `data` into `parity`, `size` bytes each, with Coffre's generator matrix.

    The arrays of pointers are made once, outside the call: only ISA-L's own work is left to measure. The call keeps the
    buffers, which must not change their size.
    """
    isal = library()
    rows = (ctypes.c_ubyte * (k * m)).from_buffer_copy(generator_rows(k, m))
    tables = (ctypes.c_ubyte * (k * m * _TABLE_BYTES_PER_COEFFICIENT))()
    isal.ec_init_tables(k, m, rows, tables)
    sources, targets = _pointers(data), _pointers(parity)
    function = isal.ec_encode_data
    function.restype = None
    length, source_count, target_count = ctypes.c_int(size), ctypes.c_int(k), ctypes.c_int(m)

    buffers = (*data, *parity)  # pointers alone would not keep them

    def encode(_buffers: tuple[bytearray, ...] = buffers) -> None:
        function(length, source_count, target_count, tables, sources, targets)

    return encode


def _pointers(buffers: Sequence[bytearray]) -> ctypes.Array[ctypes.c_void_p]:
    addresses = [ctypes.addressof(ctypes.c_char.from_buffer(buffer)) for buffer in buffers]
    return (ctypes.c_void_p * len(addresses))(*addresses)
